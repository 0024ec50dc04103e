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
        rest(input + block_count * kBlockSize),
        stripe_count((size - 1) % kBlockSize / kStripeSize),
        last_stripe(input + size - kStripeSize) {}

  const uint8_t* data;
  size_t block_count;   // Blocks to be stirred.
  const uint8_t* rest;  // What follows them:
  size_t stripe_count;  // ... so many stripes, without the last.
  const uint8_t* last_stripe;
};

// Where in the secret the stirring and the last stripe find their 64 bytes.
constexpr size_t kStirSecretOffset = kSecretSize - kStripeSize;
constexpr size_t kLastSecretOffset = kSecretSize - kStripeSize - 7;

// Where the blocks of an input are copied to beside the hashing. A block is taken into `block` by one load of
// each of its bytes, hashed there and streamed from there: what arrives is what was hashed, whatever becomes
// of the source meanwhile. Lines of the target begin `head` bytes after a stripe, so each block but the first
// sends a line that began in the one before it.
struct Copying {
  uint8_t* to = nullptr;
  size_t head = 0;
  alignas(kStripeSize) uint8_t block[kStripeSize + kBlockSize];  // The last stripe before it, and the block.

  uint8_t* stripes() { return block + kStripeSize; }
  // The same once they are filled. A compiler that knows what was stored there could load the source once
  // more instead.
  const uint8_t* taken() {
    asm volatile("" : : : "memory");
    return stripes();
  }
  // Where a block's i-th line comes from and goes to. The first block has none with number 0, unless its
  // lines are stripes.
  size_t first_line(size_t number) const { return head != 0 && number == 0; }
  const uint8_t* line(size_t i) const { return block + (head ? head : kStripeSize) + i * kStripeSize; }
  uint8_t* target(size_t i) const { return to + i * kStripeSize - (head ? kStripeSize - head : 0); }
  void keep_last_stripe() { std::memcpy(block, block + kBlockSize, kStripeSize); }
  void begin(size_t number) {
    if (number == 0) std::memcpy(to, stripes(), head);
  }
  // What the last block left of a line.
  void end() {
    if (head) std::memcpy(to - (kStripeSize - head), block + kBlockSize + head, kStripeSize - head);
  }
};

// Adds all of a long input to the sums.
using AddInput = void (*)(uint64_t sums[8], const LongInput& input, const uint8_t* secret, Copying* copying);

// Does not copy: see hash_while_copying.
void add_input_portable(uint64_t sums[8], const LongInput& input, const uint8_t* secret, Copying*) {
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

MARU_AVX512 void add_words_avx512(__m512i& sum, __m512i words, const uint8_t* secret) {
  const __m512i mixed = _mm512_xor_si512(words, _mm512_loadu_si512(secret));
  const __m512i product = _mm512_mul_epu32(mixed, _mm512_srli_epi64(mixed, 32));
  const __m512i swapped = _mm512_shuffle_epi32(words, _MM_PERM_BADC);
  sum = _mm512_add_epi64(sum, _mm512_add_epi64(product, swapped));
}

MARU_AVX512 void add_stripe_avx512(__m512i& sum, const uint8_t* stripe, const uint8_t* secret) {
  add_words_avx512(sum, _mm512_loadu_si512(stripe), secret);
}

// One block, hashed and not copied, or by way of copying->block.
MARU_AVX512 void add_block_avx512(__m512i& sum, const uint8_t* data, const uint8_t* secret, Copying* copying,
                                  size_t block) {
  if (copying) {
#pragma GCC unroll 16
    for (size_t i = 0; i < kBlockStripes; ++i)
      _mm512_store_si512(copying->stripes() + i * kStripeSize, _mm512_loadu_si512(data + i * kStripeSize));
    data = copying->taken();
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kBlockStripes; ++i)
    add_stripe_avx512(sum, data + i * kStripeSize, secret + i * kSecretStep);
  if (!copying) return;
  copying->begin(block);
  for (size_t i = copying->first_line(block); i < kBlockStripes; ++i)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(copying->target(i)), _mm512_loadu_si512(copying->line(i)));
  copying->keep_last_stripe();
  copying->to += kBlockSize;
}

// The same without leaving the registers, for targets whose lines begin kWords 8-byte words after a stripe.
template <int kWords>
MARU_AVX512 void copy_block_avx512(__m512i& sum, __m512i& before, const uint8_t* data, const uint8_t* secret,
                                   Copying& copying, size_t block) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kBlockStripes; ++i) {
    __m512i words = _mm512_loadu_si512(data + i * kStripeSize);
    asm("" : "+v"(words));  // One load for both uses: a compiler may make two of it, and they could differ.
    add_words_avx512(sum, words, secret + i * kSecretStep);
    auto* to = reinterpret_cast<__m512i*>(copying.target(i));
    if constexpr (kWords == 0)
      _mm512_stream_si512(to, words);
    else if (i > 0 || block > 0)
      _mm512_stream_si512(to, _mm512_alignr_epi64(words, before, kWords));
    else
      _mm512_mask_storeu_epi64(copying.to, (1u << kWords) - 1, words);  // What comes before the first line.
    before = words;
  }
  copying.to += kBlockSize;
}

template <int kWords>
__attribute__((target("avx512f"))) void add_input_avx512_to(uint64_t sums[8], const LongInput& input,
                                                            const uint8_t* secret, Copying* copying) {
  constexpr bool kInRegisters = kWords >= 0;
  const uint8_t* data = input.data;
  const __m512i stir_secret = _mm512_loadu_si512(secret + kStirSecretOffset);
  const __m512i prime = _mm512_set1_epi64(kPrime32_1);
  __m512i sum = _mm512_loadu_si512(sums), before = _mm512_setzero_si512();
  for (size_t block = 0; block < input.block_count; ++block, data += kBlockSize) {
    if constexpr (kInRegisters)
      copy_block_avx512<kWords>(sum, before, data, secret, *copying, block);
    else
      add_block_avx512(sum, data, secret, copying, block);
    sum = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)), stir_secret);
    const __m512i upper = _mm512_mul_epu32(_mm512_srli_epi64(sum, 32), prime);
    sum = _mm512_add_epi64(_mm512_mul_epu32(sum, prime), _mm512_slli_epi64(upper, 32));
  }
  if (kInRegisters && input.block_count > 0) _mm512_storeu_si512(copying->block + kBlockSize, before);
  for (size_t i = 0; i < input.stripe_count; ++i)
    add_stripe_avx512(sum, input.rest + i * kStripeSize, secret + i * kSecretStep);
  add_stripe_avx512(sum, input.last_stripe, secret + kLastSecretOffset);
  _mm512_storeu_si512(sums, sum);
}

void add_input_avx512(uint64_t sums[8], const LongInput& input, const uint8_t* secret, Copying* copying) {
  // Large buffers of most allocators begin 0 or 16 bytes after a line, and so their lines after a stripe.
  const auto add = !copying              ? add_input_avx512_to<-1>
                   : copying->head == 0  ? add_input_avx512_to<0>
                   : copying->head == 16 ? add_input_avx512_to<2>
                   : copying->head == 32 ? add_input_avx512_to<4>
                   : copying->head == 48 ? add_input_avx512_to<6>
                                         : add_input_avx512_to<-1>;
  add(sums, input, secret, copying);
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

__attribute__((target("avx2"))) void add_input_avx2(uint64_t sums[8], const LongInput& input,
                                                    const uint8_t* secret, Copying* copying) {
  const uint8_t* data = input.data;
  const uint8_t* stir_secret = secret + kStirSecretOffset;
  __m256i low = load_avx2(sums);
  __m256i high = load_avx2(sums + 4);
  for (size_t block = 0; block < input.block_count; ++block) {
    const uint8_t* stripes = data;
    if (copying) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kBlockSize; i += 32)
        _mm256_store_si256(reinterpret_cast<__m256i*>(copying->stripes() + i), load_avx2(data + i));
      stripes = copying->taken();
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kBlockStripes; ++i) {
      add_half_avx2(low, stripes + i * kStripeSize, secret + i * kSecretStep);
      add_half_avx2(high, stripes + i * kStripeSize + 32, secret + i * kSecretStep + 32);
    }
    if (copying) {
      copying->begin(block);
      for (size_t i = copying->first_line(block); i < kBlockStripes; ++i) {
        auto* to = reinterpret_cast<__m256i*>(copying->target(i));
        _mm256_stream_si256(to, load_avx2(copying->line(i)));
        _mm256_stream_si256(to + 1, load_avx2(copying->line(i) + 32));
      }
      copying->keep_last_stripe();
      copying->to += kBlockSize;
    }
    data += kBlockSize;
    stir_half_avx2(low, stir_secret);
    stir_half_avx2(high, stir_secret + 32);
  }
  for (size_t i = 0; i < input.stripe_count; ++i) {
    add_half_avx2(low, input.rest + i * kStripeSize, secret + i * kSecretStep);
    add_half_avx2(high, input.rest + i * kStripeSize + 32, secret + i * kSecretStep + 32);
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

uint64_t hash_long(AddInput add_input, const LongInput& input, size_t size, uint64_t seed,
                   Copying* copying = nullptr) {
  alignas(64) uint64_t secret_words[kSecretSize / 8];
  std::memcpy(secret_words, kSecret, kSecretSize);
  for (size_t i = 0; i < kSecretSize / 8; i += 2) {
    secret_words[i] += seed;
    secret_words[i + 1] -= seed;
  }
  const uint8_t* secret = reinterpret_cast<const uint8_t*>(secret_words);

  alignas(64) uint64_t sums[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                  kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  add_input(sums, input, secret, copying);

  uint64_t result = size * kPrime64_1;
  for (size_t i = 0; i < 8; i += 2)
    result += multiply_fold(sums[i] ^ read64(secret + 11 + 8 * i), sums[i + 1] ^ read64(secret + 19 + 8 * i));
  return avalanche(result);
}

uint64_t hash_any(AddInput add_input, const void* data, size_t size, uint64_t seed) {
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  if (size <= 16) return hash_0_to_16(bytes, size, seed);
  if (size <= kShortSizeMax) return hash_17_to_240(bytes, size, seed);
  return hash_long(add_input, LongInput(bytes, size), size, seed);
}

// Copies `size` bytes, 1024 at least, and returns the hash of what arrived.
uint64_t hash_while_copying(AddInput add_input, uint8_t* dst, const uint8_t* src, size_t size) {
  if (add_input == add_input_portable) {
    stream_copy(dst, src, size);
    return hash_long(add_input, LongInput(dst, size), size, 0);
  }
  LongInput input(src, size);
  const size_t in_blocks = input.block_count * kBlockSize, rest = size - in_blocks;
  // The rest likewise by one load each. Its last stripe may begin in the blocks: what is loaded once more
  // there is hashed once more, and if it has changed the hash is another.
  alignas(kStripeSize) uint8_t tail[kStripeSize + kBlockSize];
  const size_t before = in_blocks < kStripeSize ? 0 : kStripeSize;
  std::memcpy(tail + kStripeSize - before, src + in_blocks - before, before + rest);
  input.rest = tail + kStripeSize;
  input.last_stripe = tail + rest;
  Copying copying;
  copying.to = dst;
  copying.head = -reinterpret_cast<uintptr_t>(dst) % kStripeSize;
  const uint64_t hash = hash_long(add_input, input, size, 0, &copying);
  if (input.block_count > 0) copying.end();
  std::memcpy(dst + in_blocks, input.rest, rest);
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
    return xxh3_64(dst, size);  // Of what arrived.
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
