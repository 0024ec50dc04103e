// BLAKE3's compression function in two shapes. Included by blake3.cpp only.
//
// *Lanes*: N independent inputs advance together, vector i holding state word i of all of them. This is where
// throughput comes from. Written once, on compiler vector types, as always-inline templates; a function with
// a `target` attribute for each instruction set instantiates them. Nothing in there may become a plain (not
// inlined) call: it would be compiled for the baseline CPU and lose the vectors.
//
// *Words*: one input in plain integers, for whatever cannot be parallel: the key chain, small inputs, the top
// of a tree. Holding the 4x4 state of one input as four vectors was measured too, and is 1.8 times (AVX-512)
// to 2.5 times (SSE2) slower on Zen 5, presumably because its vector instructions take longer to answer.
//
// Leaves to blake3.cpp: which path this CPU gets, chunks, parents, roots.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "blake3.h"

// Vectors wider than the baseline never cross a real call, so the ABI that the warning is about never
// matters.
#pragma GCC diagnostic ignored "-Wpsabi"

#define MARU_ALWAYS_INLINE __attribute__((always_inline)) inline

namespace maru {

static_assert(std::endian::native == std::endian::little, "words are read from memory as they lie");

// One input in one lane: its whole 64-byte blocks, the counter of its chunk, where its 32 bytes go.
struct LaneJob {
  const uint8_t* input;
  uint64_t counter;
  uint8_t* out;
};

// Domain flags of a chunk's (or parent's) blocks: for every block, and those added to the first and the last.
struct BlockFlags {
  uint32_t every;
  uint32_t first;
  uint32_t last;
};

struct Blake3Path {
  const char* name;
  size_t lane_count;
  // Runs exactly `lane_count` jobs of `block_count` blocks each.
  void (*hash_lanes)(const LaneJob* jobs, size_t block_count, BlockFlags flags);
};

namespace {

constexpr size_t kBlockSize = 64;
constexpr size_t kPartSize = 16;  // Vectors are shuffled within parts of this size at lowest cost.
constexpr size_t kKeySize = 16;   // A chunk key: the first half of a digest.

constexpr uint32_t kChunkStart = 1 << 0;
constexpr uint32_t kChunkEnd = 1 << 1;
constexpr uint32_t kRoot = 1 << 3;

constexpr uint32_t kIv[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                             0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

constexpr size_t kRoundCount = 7;
constexpr size_t kPermutation[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};

// kSchedule.word[r][i]: which word of the block takes place i in round r.
struct Schedule {
  size_t word[kRoundCount][16];
};
constexpr Schedule kSchedule = [] {
  Schedule schedule{};
  for (size_t i = 0; i < 16; ++i) schedule.word[0][i] = i;
  for (size_t r = 1; r < kRoundCount; ++r)
    for (size_t i = 0; i < 16; ++i) schedule.word[r][i] = schedule.word[r - 1][kPermutation[i]];
  return schedule;
}();

template <size_t kSize, class Item>
struct Vector {
  typedef Item Type __attribute__((vector_size(kSize)));
};
template <size_t N>
using Words = typename Vector<4 * N, uint32_t>::Type;

template <class V>
MARU_ALWAYS_INLINE V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// ---- Rounds, on V = uint32_t or a vector of them.

// AVX-512 and integers have a rotate instruction that the compiler finds by itself; AVX2 turns whole bytes
// faster with one byte shuffle than with two shifts and an or; plain SSE2 has the shifts only.
enum class Rotate { kShift, kShuffleBytes };

template <size_t kBits, class V, size_t... B>
MARU_ALWAYS_INLINE V rotate_bytes(const V& x, std::index_sequence<B...>) {
  using Bytes = typename Vector<sizeof(V), uint8_t>::Type;
  const Bytes bytes = reinterpret_cast<Bytes>(x);
  return reinterpret_cast<V>(
      __builtin_shufflevector(bytes, bytes, static_cast<int>(B / 4 * 4 + (B + kBits / 8) % 4)...));
}

template <Rotate kRotate, size_t kBits, class V>
MARU_ALWAYS_INLINE V rotate_right(const V& x) {
  if constexpr (kRotate == Rotate::kShuffleBytes && kBits % 8 == 0) {
    return rotate_bytes<kBits, V>(x, std::make_index_sequence<sizeof(V)>{});
  } else {
    return (x >> kBits) | (x << (32 - kBits));
  }
}

// The quarter round G. `b` comes last into the sums because it is the value that was computed last.
template <Rotate kRotate, class V>
MARU_ALWAYS_INLINE void quarter_round(V& a, V& b, V& c, V& d, const V& x, const V& y) {
  a = (a + x) + b;
  d = rotate_right<kRotate, 16, V>(d ^ a);
  c = c + d;
  b = rotate_right<kRotate, 12, V>(b ^ c);
  a = (a + y) + b;
  d = rotate_right<kRotate, 8, V>(d ^ a);
  c = c + d;
  b = rotate_right<kRotate, 7, V>(b ^ c);
}

template <class V>
MARU_ALWAYS_INLINE void start_state(V (&v)[16], const V* cv, const V& counter_low, const V& counter_high,
                                    uint32_t block_size, uint32_t flags) {
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) v[i] = cv[i];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) v[8 + i] = V{} + kIv[i];
  v[12] = counter_low;
  v[13] = counter_high;
  v[14] = V{} + block_size;
  v[15] = V{} + flags;
}

template <Rotate kRotate, size_t kRound, class V>
MARU_ALWAYS_INLINE void one_round(V (&v)[16], const V (&m)[16]) {
  constexpr auto& s = kSchedule.word[kRound];
  quarter_round<kRotate>(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  quarter_round<kRotate>(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  quarter_round<kRotate>(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  quarter_round<kRotate>(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  quarter_round<kRotate>(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  quarter_round<kRotate>(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  quarter_round<kRotate>(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  quarter_round<kRotate>(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

template <Rotate kRotate, class V, size_t... R>
MARU_ALWAYS_INLINE void all_rounds(V (&v)[16], const V (&m)[16], std::index_sequence<R...>) {
  (one_round<kRotate, R>(v, m), ...);
}

// ---- Lanes.

// Picks from words a[0..N) b[0..N): inside each 128-bit part, units of `kUnit` words alternately from a and
// b, from the lower or upper half of the part.
template <size_t kUnit, bool kUpper, size_t N, size_t... K>
MARU_ALWAYS_INLINE Words<N> interleave(const Words<N>& a, const Words<N>& b, std::index_sequence<K...>) {
  return __builtin_shufflevector(a, b,
                                 static_cast<int>((K / kUnit % 2) * N + K / 4 * 4 +
                                                  K % 4 / (2 * kUnit) * kUnit + K % kUnit + kUpper * 2)...);
}

// The two halves of a 2x2 transposition of parts that are kDistance words wide.
template <size_t kDistance, bool kUpper, size_t N, size_t... K>
MARU_ALWAYS_INLINE Words<N> exchange(const Words<N>& a, const Words<N>& b, std::index_sequence<K...>) {
  return __builtin_shufflevector(a, b,
                                 static_cast<int>(kUpper ? ((K & kDistance) ? N + K : K + kDistance)
                                                         : ((K & kDistance) ? N + K - kDistance : K))...);
}

// Transposes 4x4 words in every 128-bit part of four vectors.
template <size_t N>
MARU_ALWAYS_INLINE void transpose_parts(Words<N>* rows) {
  constexpr auto kEach = std::make_index_sequence<N>{};
  const Words<N> low01 = interleave<1, false, N>(rows[0], rows[1], kEach);
  const Words<N> high01 = interleave<1, true, N>(rows[0], rows[1], kEach);
  const Words<N> low23 = interleave<1, false, N>(rows[2], rows[3], kEach);
  const Words<N> high23 = interleave<1, true, N>(rows[2], rows[3], kEach);
  rows[0] = interleave<2, false, N>(low01, low23, kEach);
  rows[1] = interleave<2, true, N>(low01, low23, kEach);
  rows[2] = interleave<2, false, N>(high01, high23, kEach);
  rows[3] = interleave<2, true, N>(high01, high23, kEach);
}

template <size_t kDistance, size_t N>
MARU_ALWAYS_INLINE void exchange_parts(Words<N>* rows) {
  constexpr auto kEach = std::make_index_sequence<N>{};
#pragma GCC unroll 16
  for (size_t i = 0; i < N; ++i) {
    if (i & kDistance) continue;
    const Words<N> low = exchange<kDistance, false, N>(rows[i], rows[i + kDistance], kEach);
    rows[i + kDistance] = exchange<kDistance, true, N>(rows[i], rows[i + kDistance], kEach);
    rows[i] = low;
  }
}

// Block `block` of all lanes, as 16 vectors of one message word each.
template <size_t N>
MARU_ALWAYS_INLINE void load_message(const LaneJob* jobs, size_t block, Words<N> (&message)[16]) {
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i)
    message[i] = load<Words<N>>(jobs[i % N].input + block * kBlockSize + i / N * sizeof(Words<N>));
#pragma GCC unroll 4
  for (size_t i = 0; i < 16; i += 4) transpose_parts<N>(message + i);
#pragma GCC unroll 2
  for (size_t i = 0; i < 16; i += N) {
    if constexpr (N > 4) exchange_parts<4, N>(message + i);
    if constexpr (N > 8) exchange_parts<8, N>(message + i);
  }
}

template <Rotate kRotate, size_t N>
MARU_ALWAYS_INLINE void hash_lanes(const LaneJob* jobs, size_t block_count, BlockFlags flags) {
  using V = Words<N>;
  uint32_t counter_low[N];
  uint32_t counter_high[N];
  for (size_t i = 0; i < N; ++i) {
    counter_low[i] = static_cast<uint32_t>(jobs[i].counter);
    counter_high[i] = static_cast<uint32_t>(jobs[i].counter >> 32);
  }
  V cv[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) cv[i] = V{} + kIv[i];
  for (size_t block = 0; block < block_count; ++block) {
    const uint32_t block_flags =
        flags.every | (block == 0 ? flags.first : 0) | (block + 1 == block_count ? flags.last : 0);
    V message[16];
    load_message<N>(jobs, block, message);
    V v[16] = {};
    start_state(v, cv, load<V>(counter_low), load<V>(counter_high), kBlockSize, block_flags);
    all_rounds<kRotate>(v, message, std::make_index_sequence<kRoundCount>{});
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) cv[i] = v[i] ^ v[i + 8];
  }
  // After this, part p of cv[4 * g + j] holds words 4 * g .. 4 * g + 3 of lane 4 * p + j.
  transpose_parts<N>(cv);
  transpose_parts<N>(cv + 4);
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i)
    for (size_t part = 0; part < N / 4; ++part)
      std::memcpy(jobs[4 * part + i % 4].out + i / 4 * kPartSize,
                  reinterpret_cast<const uint8_t*>(&cv[i]) + part * kPartSize, kPartSize);
}

// ---- Paths.
#define MARU_BLAKE3_PATH(name, rotate, lane_count, attribute)                                   \
  attribute void hash_lanes_##name(const LaneJob* jobs, size_t block_count, BlockFlags flags) { \
    hash_lanes<rotate, lane_count>(jobs, block_count, flags);                                   \
  }                                                                                             \
  constexpr Blake3Path kPath_##name = {#name, lane_count, hash_lanes_##name};

MARU_BLAKE3_PATH(portable, Rotate::kShift, 4, )
#if defined(__x86_64__)
MARU_BLAKE3_PATH(avx2, Rotate::kShuffleBytes, 8, __attribute__((target("avx2"))))
MARU_BLAKE3_PATH(avx512, Rotate::kShift, 16, __attribute__((target("avx512f,avx512vl"))))
#endif

#undef MARU_BLAKE3_PATH

// ---- Words.

// One compression; `out` takes all 16 words, as extended output needs them, and may begin at `cv`.
void compress(const uint32_t cv[8], const uint8_t block[kBlockSize], uint64_t counter, uint32_t block_size,
              uint32_t flags, uint32_t out[16]) {
  uint32_t message[16];
  std::memcpy(message, block, sizeof message);
  uint32_t v[16];
  start_state(v, cv, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), block_size, flags);
  all_rounds<Rotate::kShift>(v, message, std::make_index_sequence<kRoundCount>{});
  for (size_t i = 0; i < 8; ++i) {
    const uint32_t input = cv[i];
    out[i] = v[i] ^ v[i + 8];
    out[i + 8] = v[i + 8] ^ input;
  }
}

// A step is one compression of a 48-byte root chunk, and each waits for the one before: its latency is all
// that counts. The key of one step stays in place as the first words of the next message.
void chain(const uint8_t* seed, const uint8_t* digests, size_t count, uint8_t* keys_out) {
  uint32_t message[16] = {};
  std::memcpy(message, seed, kKeySize);
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(message + 4, digests + i * kBlake3DigestSize, kBlake3DigestSize);
    uint32_t v[16];
    start_state(v, kIv, 0u, 0u, kKeySize + kBlake3DigestSize, kChunkStart | kChunkEnd | kRoot);
    all_rounds<Rotate::kShift>(v, message, std::make_index_sequence<kRoundCount>{});
    for (size_t word = 0; word < 4; ++word) message[word] = v[word] ^ v[word + 8];
    std::memcpy(keys_out + i * kKeySize, message, kKeySize);
  }
}

}  // namespace
}  // namespace maru

#undef MARU_ALWAYS_INLINE
