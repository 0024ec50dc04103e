// Chunk keys, group by group: check (and narrow) the ids, hash the group's chunks in parallel lanes, go on
// with the chain. A group is small enough that its ids are still in the nearest cache when they are hashed.
#include "chunk_keys.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

#include "blake3.h"

namespace maru {
namespace {

static_assert(std::endian::native == std::endian::little, "ids are hashed as they lie in memory");

constexpr size_t kIdSize = 4;                            // A hashed id: little-endian u32.
constexpr size_t kRunTokens = kBlake3RunSize / kIdSize;  // The most that is read (and narrowed) at a time.
constexpr size_t kGroupTokens = 32 * 1024 / kIdSize;     // Fits the first-level cache.
constexpr size_t kGroupChunksMax = 256;                  // Bounds the digests on the stack.

// Both loops are left to the compiler's vectoriser, once for each instruction set.
#define MARU_ALWAYS_INLINE __attribute__((always_inline)) inline

// The bits that occur in any of the ids.
MARU_ALWAYS_INLINE uint32_t join_bits(const uint8_t* ids, size_t count) {
  uint32_t joined = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t id;
    std::memcpy(&id, ids + i * sizeof id, sizeof id);
    joined |= id;
  }
  return joined;
}

// Keeps the lower halves, and returns the bits that occur in any of the ids.
MARU_ALWAYS_INLINE uint64_t narrow(const uint8_t* ids, size_t count, uint32_t* narrowed) {
  uint64_t joined = 0;
  for (size_t i = 0; i < count; ++i) {
    uint64_t id;
    std::memcpy(&id, ids + i * sizeof id, sizeof id);
    joined |= id;
    narrowed[i] = static_cast<uint32_t>(id);
  }
  return joined;
}

struct IdLoops {
  uint32_t (*join_bits)(const uint8_t* ids, size_t count);
  uint64_t (*narrow)(const uint8_t* ids, size_t count, uint32_t* narrowed);
};

#define MARU_ID_LOOPS(name, attribute)                                                                    \
  attribute uint32_t join_bits_##name(const uint8_t* ids, size_t count) { return join_bits(ids, count); } \
  attribute uint64_t narrow_##name(const uint8_t* ids, size_t count, uint32_t* narrowed) {                \
    return narrow(ids, count, narrowed);                                                                  \
  }                                                                                                       \
  constexpr IdLoops kLoops_##name = {join_bits_##name, narrow_##name};

MARU_ID_LOOPS(portable, )
#if defined(__x86_64__)
MARU_ID_LOOPS(avx2, __attribute__((target("avx2"))))
MARU_ID_LOOPS(avx512, __attribute__((target("avx512f,avx512vl"))))
#endif

#undef MARU_ID_LOOPS
#undef MARU_ALWAYS_INLINE

const IdLoops& id_loops() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return kLoops_avx512;
  if (__builtin_cpu_supports("avx2")) return kLoops_avx2;
#endif
  return kLoops_portable;
}

// Hands out the ids as the bytes to be hashed, checked.
class TokenReader {
 public:
  TokenReader(const void* tokens, TokenWidth width)
      : tokens_(static_cast<const uint8_t*>(tokens)), wide_(width == TokenWidth::k64), loops_(id_loops()) {
    if (wide_) narrowed_ = std::make_unique_for_overwrite<uint32_t[]>(kRunTokens);
  }

  // Ids `first` to `first + count - 1`, `count` at most kRunTokens, valid until the next read.
  // Null if one of them is bad.
  const uint8_t* read(size_t first, size_t count) {
    const uint8_t* ids = tokens_ + first * (wide_ ? sizeof(uint64_t) : sizeof(uint32_t));
    if (!wide_) return loops_.join_bits(ids, count) >> 31 ? nullptr : ids;
    if (loops_.narrow(ids, count, narrowed_.get()) >> 32) return nullptr;
    return reinterpret_cast<const uint8_t*>(narrowed_.get());
  }

  // The index of the first bad id at or after `first`, of which there is one.
  size_t find_bad(size_t first) const {
    const auto is_bad = [this](size_t index) {
      uint32_t id;
      if (wide_) return narrow_portable(tokens_ + index * sizeof(uint64_t), 1, &id) >> 32 != 0;
      return join_bits_portable(tokens_ + index * sizeof(uint32_t), 1) >> 31 != 0;
    };
    while (!is_bad(first)) ++first;
    return first;
  }

 private:
  const uint8_t* tokens_;
  bool wide_;
  const IdLoops& loops_;
  std::unique_ptr<uint32_t[]> narrowed_;
};

}  // namespace

ChunkKeysResult chunk_keys(const void* tokens, TokenWidth width, size_t token_count, size_t chunk_tokens,
                           const uint8_t seed[kChunkKeySize], uint8_t* keys_out) {
  TokenReader reader(tokens, width);
  const auto refuse = [&](size_t first) { return ChunkKeysResult{0, false, reader.find_bad(first)}; };

  const size_t key_count = token_count / chunk_tokens;
  uint8_t digests[kGroupChunksMax * kBlake3DigestSize];
  const uint8_t* last_key = seed;
  const auto extend_chain = [&](size_t first_key, size_t count) {
    uint8_t* keys = keys_out + first_key * kChunkKeySize;
    blake3_chain(last_key, digests, count, keys);
    last_key = keys + (count - 1) * kChunkKeySize;
  };

  size_t token = 0;
  if (chunk_tokens <= kRunTokens) {
    const size_t group_max = std::clamp<size_t>(kGroupTokens / chunk_tokens, 1, kGroupChunksMax);
    for (size_t key = 0; key < key_count;) {
      const size_t group = std::min(group_max, key_count - key);
      const uint8_t* ids = reader.read(token, group * chunk_tokens);
      if (!ids) return refuse(token);
      blake3_equal_inputs(ids, chunk_tokens * kIdSize, group, digests);
      extend_chain(key, group);
      key += group;
      token += group * chunk_tokens;
    }
  } else {
    for (size_t key = 0; key < key_count; ++key) {
      Blake3Runs chunk;
      size_t left = chunk_tokens;
      for (; left > kRunTokens; left -= kRunTokens, token += kRunTokens) {
        const uint8_t* ids = reader.read(token, kRunTokens);
        if (!ids) return refuse(token);
        chunk.append_run(ids);
      }
      const uint8_t* ids = reader.read(token, left);
      if (!ids) return refuse(token);
      chunk.finish(ids, left * kIdSize, digests, kBlake3DigestSize);
      token += left;
      extend_chain(key, 1);
    }
  }
  while (token < token_count) {
    const size_t count = std::min(kRunTokens, token_count - token);
    if (!reader.read(token, count)) return refuse(token);
    token += count;
  }
  return {key_count, true, 0};
}

}  // namespace maru
