// XXH3-64: one formula for each range of lengths, and for long inputs one loop for each instruction set. The
// loops can copy what they hash on the way: hashing waits for memory, and so does copying, so that one pass
// of both takes little longer than either.
#include "xxh3.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "copy.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace maru {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read from memory as they lie");

constexpr uint64_t kPrime32_1 = 0x9E3779B1;
constexpr uint64_t kPrime32_2 = 0x85EBCA77;
constexpr uint64_t kPrime32_3 = 0xC2B2AE3D;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87;
constexpr uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4F;
constexpr uint64_t kPrime64_3 = 0x165667B19E3779F9;
constexpr uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63;
constexpr uint64_t kPrime64_5 = 0x27D4EB2F165667C5;
constexpr uint64_t kPrimeMx1 = 0x165667919E3779F9;
constexpr uint64_t kPrimeMx2 = 0x9FB21C651E98DF25;

constexpr size_t kSecretSize = 192;
alignas(64) constexpr uint8_t kSecret[kSecretSize] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

constexpr size_t kStripeSize = 64;
constexpr size_t kSecretStep = 8;  // Each stripe of a block uses the secret this much further on.
constexpr size_t kBlockStripes = (kSecretSize - kStripeSize) / kSecretStep;
constexpr size_t kBlockSize = kBlockStripes * kStripeSize;
constexpr size_t kShortSizeMax = 240;

uint32_t read32(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint64_t read64(const uint8_t* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint64_t multiply_fold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t avalanche(uint64_t x) {
  x = (x ^ (x >> 37)) * kPrimeMx1;
  return x ^ (x >> 32);
}

uint64_t avalanche_xxh64(uint64_t x) {
  x = (x ^ (x >> 33)) * kPrime64_2;
  x = (x ^ (x >> 29)) * kPrime64_3;
  return x ^ (x >> 32);
}

// ---- Up to 240 bytes. The secret is always the default one; the seed enters the formulas.

uint64_t hash_0_to_16(const uint8_t* data, size_t size, uint64_t seed) {
  if (size == 0) return avalanche_xxh64(seed ^ read64(kSecret + 56) ^ read64(kSecret + 64));
  if (size <= 3) {
    const uint32_t combined = data[size - 1] | static_cast<uint32_t>(size) << 8 |
                              static_cast<uint32_t>(data[0]) << 16 |
                              static_cast<uint32_t>(data[size / 2]) << 24;
    return avalanche_xxh64(((read32(kSecret) ^ read32(kSecret + 4)) + seed) ^ combined);
  }
  if (size <= 8) {
    const uint64_t turned_seed = seed ^ static_cast<uint64_t>(__builtin_bswap32(static_cast<uint32_t>(seed)))
                                            << 32;
    const uint64_t combined = read32(data + size - 4) | static_cast<uint64_t>(read32(data)) << 32;
    uint64_t value = ((read64(kSecret + 8) ^ read64(kSecret + 16)) - turned_seed) ^ combined;
    value = (value ^ std::rotl(value, 49) ^ std::rotl(value, 24)) * kPrimeMx2;
    value = (value ^ ((value >> 35) + size)) * kPrimeMx2;
    return value ^ (value >> 28);
  }
  const uint64_t low = ((read64(kSecret + 24) ^ read64(kSecret + 32)) + seed) ^ read64(data);
  const uint64_t high = ((read64(kSecret + 40) ^ read64(kSecret + 48)) - seed) ^ read64(data + size - 8);
  return avalanche(size + __builtin_bswap64(low) + high + multiply_fold(low, high));
}

uint64_t mix16(const uint8_t* data, size_t secret_offset, uint64_t seed) {
  const uint8_t* secret = kSecret + secret_offset;
  return multiply_fold(read64(data) ^ (read64(secret) + seed),
                       read64(data + 8) ^ (read64(secret + 8) - seed));
}

uint64_t hash_17_to_240(const uint8_t* data, size_t size, uint64_t seed) {
  uint64_t sum = size * kPrime64_1;
  if (size <= 128) {
    // Pairs from both ends towards the middle, where the innermost two may overlap.
    for (size_t i = 0; i <= (size - 1) / 32; ++i) {
      sum += mix16(data + i * 16, i * 32, seed);
      sum += mix16(data + size - i * 16 - 16, i * 32 + 16, seed);
    }
    return avalanche(sum);
  }
  for (size_t i = 0; i < 8; ++i) sum += mix16(data + i * 16, i * 16, seed);
  sum = avalanche(sum);
  for (size_t i = 8; i < size / 16; ++i) sum += mix16(data + i * 16, (i - 8) * 16 + 3, seed);
  return avalanche(sum + mix16(data + size - 16, 119, seed));
}

// ---- More than 240 bytes: eight sums over stripes of 64 bytes, stirred after each block of 1024.

// The parts of a long input. The last 64 bytes are a stripe of their own, overlapping the one before unless
// the size is a multiple of 64; the block they end is never stirred, full or not.
struct LongInput {
  LongInput(const uint8_t* input, size_t size)
      : data(input),
        block_count((size - 1) / kBlockSize),
        stripe_count((size - 1) % kBlockSize / kStripeSize),
        last_stripe(input + size - kStripeSize) {}

  const uint8_t* data;
  size_t block_count;   // Blocks to be stirred.
  size_t stripe_count;  // Stripes after them, without the last.
  const uint8_t* last_stripe;
};

// Where in the secret the stirring and the last stripe find their 64 bytes.
constexpr size_t kStirSecretOffset = kSecretSize - kStripeSize;
constexpr size_t kLastSecretOffset = kSecretSize - kStripeSize - 7;

// Whole blocks of cache lines that are copied beside the hashing: `to` begins a line, and the source of each
// of its lines may lie across two stripes, both of which are in the cache by then.
struct Copying {
  uint8_t* to = nullptr;
  const uint8_t* from = nullptr;
  size_t blocks = 0;
};

// Adds all of a long input to the sums.
using AddInput = void (*)(uint64_t sums[8], const LongInput& input, const uint8_t* secret, Copying copying);

void add_input_portable(uint64_t sums[8], const LongInput& input, const uint8_t* secret, Copying copying) {
  stream_copy(copying.to, copying.from, copying.blocks * kBlockSize);
  const uint8_t* data = input.data;
  const auto add = [sums](const uint8_t* stripe, const uint8_t* stripe_secret) {
    for (size_t i = 0; i < 8; ++i) {
      const uint64_t word = read64(stripe + 8 * i);
      const uint64_t mixed = word ^ read64(stripe_secret + 8 * i);
      sums[i ^ 1] += word;
      sums[i] += (mixed & 0xFFFFFFFF) * (mixed >> 32);
    }
  };
  for (size_t block = 0; block < input.block_count; ++block) {
    for (size_t i = 0; i < kBlockStripes; ++i, data += kStripeSize) add(data, secret + i * kSecretStep);
    for (size_t i = 0; i < 8; ++i) {
      sums[i] ^= (sums[i] >> 47) ^ read64(secret + kStirSecretOffset + 8 * i);
      sums[i] *= kPrime32_1;
    }
  }
  for (size_t i = 0; i < input.stripe_count; ++i) add(data + i * kStripeSize, secret + i * kSecretStep);
  add(input.last_stripe, secret + kLastSecretOffset);
}

#if defined(__x86_64__)

// gcc 12's own header leaves vectors that a full mask overwrites "undefined", and then warns about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// The two loops below differ in the vectors' width only. Intrinsics, because compilers do not see a
// 32 x 32 -> 64 bit multiplication in portable vector code. Prefetching by software (512 bytes to 4 KiB
// ahead) made no difference on Zen 5.
#define MARU_AVX512 __attribute__((target("avx512f"), always_inline)) inline

MARU_AVX512 void add_stripe_avx512(__m512i& sum, const uint8_t* stripe, const uint8_t* secret) {
  const __m512i words = _mm512_loadu_si512(stripe);
  const __m512i mixed = _mm512_xor_si512(words, _mm512_loadu_si512(secret));
  const __m512i product = _mm512_mul_epu32(mixed, _mm512_srli_epi64(mixed, 32));
  const __m512i swapped = _mm512_shuffle_epi32(words, _MM_PERM_BADC);
  sum = _mm512_add_epi64(sum, _mm512_add_epi64(product, swapped));
}

MARU_AVX512 void stream_line_avx512(uint8_t* to, const uint8_t* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}

__attribute__((target("avx512f"))) void add_input_avx512(uint64_t sums[8], const LongInput& input,
                                                         const uint8_t* secret, Copying copying) {
  const uint8_t* data = input.data;
  const __m512i stir_secret = _mm512_loadu_si512(secret + kStirSecretOffset);
  const __m512i prime = _mm512_set1_epi64(kPrime32_1);
  __m512i sum = _mm512_loadu_si512(sums);
  for (size_t block = 0; block < input.block_count; ++block) {
    if (block < copying.blocks) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kBlockStripes; ++i, data += kStripeSize) {
        add_stripe_avx512(sum, data, secret + i * kSecretStep);
        stream_line_avx512(copying.to + i * kStripeSize, copying.from + i * kStripeSize);
      }
      copying.to += kBlockSize;
      copying.from += kBlockSize;
    } else {
#pragma GCC unroll 16
      for (size_t i = 0; i < kBlockStripes; ++i, data += kStripeSize)
        add_stripe_avx512(sum, data, secret + i * kSecretStep);
    }
    sum = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)), stir_secret);
    const __m512i upper = _mm512_mul_epu32(_mm512_srli_epi64(sum, 32), prime);
    sum = _mm512_add_epi64(_mm512_mul_epu32(sum, prime), _mm512_slli_epi64(upper, 32));
  }
  for (size_t i = 0; i < input.stripe_count; ++i)
    add_stripe_avx512(sum, data + i * kStripeSize, secret + i * kSecretStep);
  add_stripe_avx512(sum, input.last_stripe, secret + kLastSecretOffset);
  _mm512_storeu_si512(sums, sum);
}

#undef MARU_AVX512
#define MARU_AVX2 __attribute__((target("avx2"), always_inline)) inline

MARU_AVX2 __m256i load_avx2(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

MARU_AVX2 void add_half_avx2(__m256i& sum, const uint8_t* half, const uint8_t* secret) {
  const __m256i words = load_avx2(half);
  const __m256i mixed = _mm256_xor_si256(words, load_avx2(secret));
  const __m256i product = _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32));
  const __m256i swapped = _mm256_shuffle_epi32(words, _MM_SHUFFLE(1, 0, 3, 2));
  sum = _mm256_add_epi64(sum, _mm256_add_epi64(product, swapped));
}

MARU_AVX2 void stir_half_avx2(__m256i& sum, const uint8_t* secret) {
  const __m256i prime = _mm256_set1_epi64x(kPrime32_1);
  sum = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), load_avx2(secret));
  const __m256i upper = _mm256_mul_epu32(_mm256_srli_epi64(sum, 32), prime);
  sum = _mm256_add_epi64(_mm256_mul_epu32(sum, prime), _mm256_slli_epi64(upper, 32));
}

MARU_AVX2 void stream_line_avx2(uint8_t* to, const uint8_t* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), load_avx2(from));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), load_avx2(from + 32));
}

__attribute__((target("avx2"))) void add_input_avx2(uint64_t sums[8], const LongInput& input,
                                                    const uint8_t* secret, Copying copying) {
  const uint8_t* data = input.data;
  const uint8_t* stir_secret = secret + kStirSecretOffset;
  __m256i low = load_avx2(sums);
  __m256i high = load_avx2(sums + 4);
  for (size_t block = 0; block < input.block_count; ++block) {
    if (block < copying.blocks) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kBlockStripes; ++i, data += kStripeSize) {
        add_half_avx2(low, data, secret + i * kSecretStep);
        add_half_avx2(high, data + 32, secret + i * kSecretStep + 32);
        stream_line_avx2(copying.to + i * kStripeSize, copying.from + i * kStripeSize);
      }
      copying.to += kBlockSize;
      copying.from += kBlockSize;
    } else {
#pragma GCC unroll 16
      for (size_t i = 0; i < kBlockStripes; ++i, data += kStripeSize) {
        add_half_avx2(low, data, secret + i * kSecretStep);
        add_half_avx2(high, data + 32, secret + i * kSecretStep + 32);
      }
    }
    stir_half_avx2(low, stir_secret);
    stir_half_avx2(high, stir_secret + 32);
  }
  for (size_t i = 0; i < input.stripe_count; ++i, data += kStripeSize) {
    add_half_avx2(low, data, secret + i * kSecretStep);
    add_half_avx2(high, data + 32, secret + i * kSecretStep + 32);
  }
  add_half_avx2(low, input.last_stripe, secret + kLastSecretOffset);
  add_half_avx2(high, input.last_stripe + 32, secret + kLastSecretOffset + 32);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 4), high);
}

#undef MARU_AVX2
#pragma GCC diagnostic pop
#endif  // defined(__x86_64__)

// The loop of that name, or the best one if `name` is null; null if this CPU has none of that name.
AddInput find_path(const char* name) {
  const auto wanted = [name](const char* path) { return !name || std::strcmp(name, path) == 0; };
#if defined(__x86_64__)
  // Vector length extensions are not needed here, but a path's name means the same CPUs as in blake3.cpp.
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
    return add_input_avx512;
  if (wanted("avx2") && __builtin_cpu_supports("avx2")) return add_input_avx2;
#endif
  return wanted("portable") ? add_input_portable : nullptr;
}

uint64_t hash_long(AddInput add_input, const uint8_t* data, size_t size, uint64_t seed,
                   Copying copying = {}) {
  alignas(64) uint64_t secret_words[kSecretSize / 8];
  std::memcpy(secret_words, kSecret, kSecretSize);
  for (size_t i = 0; i < kSecretSize / 8; i += 2) {
    secret_words[i] += seed;
    secret_words[i + 1] -= seed;
  }
  const uint8_t* secret = reinterpret_cast<const uint8_t*>(secret_words);

  alignas(64) uint64_t sums[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                  kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  add_input(sums, LongInput(data, size), secret, copying);

  uint64_t result = size * kPrime64_1;
  for (size_t i = 0; i < 8; i += 2)
    result += multiply_fold(sums[i] ^ read64(secret + 11 + 8 * i), sums[i + 1] ^ read64(secret + 19 + 8 * i));
  return avalanche(result);
}

uint64_t hash_any(AddInput add_input, const void* data, size_t size, uint64_t seed) {
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  if (size <= 16) return hash_0_to_16(bytes, size, seed);
  if (size <= kShortSizeMax) return hash_17_to_240(bytes, size, seed);
  return hash_long(add_input, bytes, size, seed);
}

// Copies `size` bytes and returns their hash. What comes before the first whole line of `dst`, and after the
// last whole block of lines, is copied plainly.
uint64_t hash_while_copying(AddInput add_input, uint8_t* dst, const uint8_t* src, size_t size) {
  const size_t head = -reinterpret_cast<uintptr_t>(dst) % kStripeSize;
  const size_t blocks = (size - head) / kBlockSize;
  // The last block is never stirred, so the loops do not come by it.
  const Copying copying{dst + head, src + head, std::min(blocks, LongInput(src, size).block_count)};
  const size_t streamed = head + copying.blocks * kBlockSize;
  std::memcpy(dst, src, head);
  const uint64_t hash = hash_long(add_input, src, size, 0, copying);
  std::memcpy(dst + streamed, src + streamed, size - streamed);
#if defined(__x86_64__)
  _mm_sfence();  // As in copy.cpp: streaming stores are not ordered with later ones.
#endif
  return hash;
}

}  // namespace

uint64_t xxh3_64(const void* data, size_t size, uint64_t seed) {
  static const AddInput add_input = find_path(nullptr);
  return hash_any(add_input, data, size, seed);
}

bool xxh3_64_with(const char* path, const void* data, size_t size, uint64_t seed, uint64_t* hash_out) {
  const AddInput add_input = find_path(path);
  if (add_input) *hash_out = hash_any(add_input, data, size, seed);
  return add_input;
}

uint64_t xxh3_64_copying(void* dst, const void* src, size_t size) {
  static const AddInput add_input = find_path(nullptr);
  if (size < kStreamSizeMin) {
    stream_copy(dst, src, size);
    return xxh3_64(src, size);
  }
  return hash_while_copying(add_input, static_cast<uint8_t*>(dst), static_cast<const uint8_t*>(src), size);
}

bool xxh3_64_copying_with(const char* path, void* dst, const void* src, size_t size, uint64_t* hash_out) {
  const AddInput add_input = find_path(path);
  if (!add_input || size < kBlockSize) return false;
  *hash_out =
      hash_while_copying(add_input, static_cast<uint8_t*>(dst), static_cast<const uint8_t*>(src), size);
  return true;
}

}  // namespace maru
