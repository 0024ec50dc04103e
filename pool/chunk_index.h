// Finding a chunk by its key: a bucketed hash table without a lock for readers.
//
// The argument. A key has a home bucket and, when that is full, the next one. A bucket is one cache line of
// 15 tags (32 bits of the key each) and stands for 15 slots. A reader compares tags, then reads the slot:
// state word, key, the rest, and the state word again. If both readings are equal and SEALED, everything read
// between them belongs to one sealed chunk, since no field of a slot changes while it is SEALED with the same
// generation.
//   Who writes: a slot's fields, only the process its word names; its tag, the same; `overflowed`, whoever
//   holds the shard lock. Readers write nothing. The worst a stale tag can do: a needless look at a slot (tag
//   of a chunk that left) or a miss (tag not yet stored), never a wrong hit, because the key is compared in
//   full between the two readings of the word. A writer that dies between two stores leaves a word that names
//   it; cleaner.h finishes or reverts it.
//
// Uniqueness. At most one slot binds a key. The shard lock serialises "look, then claim" between writers of
// one shard and guards nothing else; whoever holds it and dies is recognised by its byte lock and the lock is
// taken over.
#pragma once

#include <type_traits>

#include "pool.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace maru {

inline constexpr uint64_t kLockWaitNs = 2 * kMillisecond;

// What makes a sealed chunk count right now: its namespace's epoch, its expiry, its segment. Whoever asks for
// many hands in the time, so that the clock is read once; 0: read it when it matters.
inline bool is_valid(const Pool& pool, const SlotHot& slot, uint64_t slot_number, uint64_t known_ns = 0) {
  const uint32_t id = slot.namespace_id.load(std::memory_order_relaxed);
  if (id >= pool.geometry.namespace_limit) return false;
  const uint64_t epoch = pool.namespaces[id].epoch.load(std::memory_order_acquire);
  if (static_cast<uint32_t>(epoch) != slot.namespace_epoch.load(std::memory_order_relaxed)) {
    if (!MARU_MUTANT("stale_epoch_accepted")) return false;
  }
  if (slot.flags.load(std::memory_order_relaxed) & kSlotExpires) {
    const uint64_t now = known_ns ? known_ns : now_ns();
    if (pool.cold[slot_number].expiry_ns.load(std::memory_order_relaxed) <= now) return false;
  }
  return true;
}

// Does it count, wherever its memory is mapped?
inline bool is_current(const Pool& pool, const SlotHot& slot, uint64_t slot_number, uint64_t known_ns = 0) {
  const uint32_t segment = extent_segment(slot.extent.load(std::memory_order_relaxed));
  return is_valid(pool, slot, slot_number, known_ns) && segment < pool.maps.size() &&
         segment_state(pool.segments[segment].word.load(std::memory_order_relaxed)) != SegmentState::kLost;
}

// Does it count, and is its memory mapped here? A segment that was just added is not, for a moment: its
// chunks are misses to us, but nobody's to throw away.
inline bool is_readable(const Pool& pool, const SlotHot& slot, uint64_t slot_number) {
  const uint32_t segment = extent_segment(slot.extent.load(std::memory_order_relaxed));
  return is_valid(pool, slot, slot_number) && pool.is_mapped(segment) &&
         segment_state(pool.segments[segment].word.load(std::memory_order_relaxed)) != SegmentState::kLost;
}

// Whose chunks a caller may know of: handed to the calls below, which treat every other chunk as absent. The
// number is read between the two readings of the slot's word, so it belongs to the chunk that was found.
struct Everybody {
  constexpr bool owns(const SlotHot&) const { return true; }
};
struct NamespaceSet {
  const uint8_t* bits;  // Bit n of byte n / 8, lowest first: namespace n. Those beyond the end are not in it.
  uint64_t byte_count;  // At least 1.

  bool owns(const SlotHot& slot) const {
    const uint32_t id = slot.namespace_id.load(std::memory_order_relaxed);
    const bool within = id / 8 < byte_count;
    return static_cast<unsigned>(within) & (bits[within ? id / 8 : 0] >> (id % 8));
  }
};

// Keys come from anywhere: BLAKE3 chains are uniform, but a caller may also count 0, 1, 2. So all 128 bits
// are mixed first, and tag, shard and home bucket are taken from different bits of the mixture.
inline uint64_t mix_key(Key key) {
  const auto product =
      static_cast<unsigned __int128>(key.lo ^ 0x9e3779b97f4a7c15ull) * (key.hi ^ 0xd1b54a32d192ed03ull);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}
inline uint32_t tag_of(Key key) {
  const auto tag = static_cast<uint32_t>(mix_key(key) >> 32);
  return tag ? tag : 1;
}
inline uint32_t shard_of(const Pool& pool, Key key) {
  return static_cast<uint32_t>(mix_key(key)) & (pool.geometry.shard_count - 1);
}
inline uint64_t home_bucket(const Pool& pool, Key key) {
  const uint64_t spread = mix_key(key) * 0xff51afd7ed558ccdull;
  const auto within =
      static_cast<uint64_t>((static_cast<unsigned __int128>(spread) * pool.geometry.buckets_per_shard) >> 64);
  return shard_of(pool, key) * pool.geometry.buckets_per_shard + within;
}
inline uint64_t next_bucket(const Pool& pool, uint64_t bucket) {
  const uint64_t first = bucket / pool.geometry.buckets_per_shard * pool.geometry.buckets_per_shard;
  return bucket + 1 == first + pool.geometry.buckets_per_shard ? first : bucket + 1;
}

// Bit j: tag j equals `tag`.
inline uint32_t match_tags(const Bucket& bucket, uint32_t tag) {
#if defined(__SSE2__)
  const auto* lines = reinterpret_cast<const __m128i*>(&bucket);
  const __m128i wanted = _mm_set1_epi32(static_cast<int>(tag));
  const __m128i a = _mm_cmpeq_epi32(_mm_load_si128(lines), wanted),
                b = _mm_cmpeq_epi32(_mm_load_si128(lines + 1), wanted);
  const __m128i c = _mm_cmpeq_epi32(_mm_load_si128(lines + 2), wanted),
                d = _mm_cmpeq_epi32(_mm_load_si128(lines + 3), wanted);
  const __m128i bytes = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
  return static_cast<uint32_t>(_mm_movemask_epi8(bytes)) & 0x7fff;
#else
  uint32_t bits = 0;
  for (uint32_t j = 0; j < kBucketSlots; j++)
    bits |= static_cast<uint32_t>(bucket.tag[j].load(std::memory_order_relaxed) == tag) << j;
  return bits;
#endif
}

inline bool key_equals(const SlotHot& slot, Key key) {
  return slot.key_lo.load(std::memory_order_relaxed) == key.lo &&
         slot.key_hi.load(std::memory_order_relaxed) == key.hi;
}

// Call `look(slot number)` for every slot whose tag matches, until one returns true. `decoy`: the bit of the
// slot of a bucket that is looked at where no tag matches; 0 for none.
template <class Look>
inline bool probe(const Pool& pool, Key key, Look look, uint32_t decoy = 0) {
  const uint32_t tag = tag_of(key);
  uint64_t bucket = home_bucket(pool, key);
  for (uint32_t n = 0; n < kBucketsProbed; n++) {
    uint32_t bits = match_tags(pool.buckets[bucket], tag);
    bits |= decoy & -static_cast<uint32_t>(bits == 0);
    std::atomic_thread_fence(std::memory_order_acquire);
    for (; bits; bits &= bits - 1)
      if (look(bucket * kBucketSlots + static_cast<uint32_t>(__builtin_ctz(bits)))) return true;
    if (n + 1 == kBucketsProbed || !pool.buckets[bucket].overflowed.load(std::memory_order_acquire))
      return false;
    bucket = next_bucket(pool, bucket);
  }
  return false;
}

// As probe, for a caller who may know of some chunks only; `look` sees no other. A key that nobody has and
// one that is another's take the same instructions: as many slots are looked at, and what is asked of each
// has no branches. The time of an answer is to tell as little as its words.
template <class Mine, class Look>
inline bool probe_among(const Pool& pool, Key key, const Mine& mine, Look look) {
  if constexpr (std::is_same_v<Mine, Everybody>) {
    return probe(pool, key, look);
  } else {
    const auto is_mine = [&](uint64_t i) {
      const SlotHot& slot = pool.hot[i];
      const uint64_t other = (slot.key_lo.load(std::memory_order_relaxed) ^ key.lo) |
                             (slot.key_hi.load(std::memory_order_relaxed) ^ key.hi);
      uint32_t is_ours = static_cast<uint32_t>(other == 0) & mine.owns(slot);
      __asm__("" : "+r"(is_ours));  // One number: the compiler is not to jump at its first half.
      return is_ours && look(i);
    };
    return probe(pool, key, is_mine, 1u << (mix_key(key) >> 40) % kBucketSlots);
  }
}

// Is the chunk sealed and current? No pin is taken: only a hint.
template <class Mine = Everybody>
inline bool is_sealed(const Pool& pool, Key key, const Mine& mine = Mine()) {
  return probe_among(pool, key, mine, [&](uint64_t i) {
    const SlotHot& slot = pool.hot[i];
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    if (slot_state(word) != SlotState::kSealed || !key_equals(slot, key) || !is_readable(pool, slot, i) ||
        !mine.owns(slot))
      return false;
    std::atomic_thread_fence(std::memory_order_acquire);
    return slot.word.load(std::memory_order_relaxed) == word;
  });
}

// Prefetching for walks over many keys: the bucket far ahead, the slot it points to nearer.
inline constexpr uint64_t kBucketsAhead = 8, kSlotsAhead = 4;
inline void prefetch_bucket(const Pool& pool, Key key) { prefetch(&pool.buckets[home_bucket(pool, key)]); }
inline void prefetch_slot(const Pool& pool, Key key, bool with_pins) {
  const uint64_t bucket = home_bucket(pool, key);
  const uint32_t bits = match_tags(pool.buckets[bucket], tag_of(key)) | 1u << (kBucketSlots - 1);
  const uint64_t i = bucket * kBucketSlots + static_cast<uint32_t>(__builtin_ctz(bits));
  prefetch(&pool.hot[i]);
  if (with_pins) prefetch(&pool.my_pins[i]);
}

// How many leading keys are sealed and current.
uint64_t count_leading(const Pool& pool, const Key* keys, uint64_t count);
uint64_t count_leading(const Pool& pool, const Key* keys, uint64_t count, const NamespaceSet& mine);

// Is somebody writing this key?
bool is_reserved(const Pool& pool, Key key);
bool is_reserved(const Pool& pool, Key key, const NamespaceSet& mine);

// The slot that binds `key` (sealed or being written) as a parent word; 0 when there is none.
uint64_t find_parent(const Pool& pool, Key key);

inline void clear_tag(Pool& pool, uint64_t slot) {
  pool.buckets[slot / kBucketSlots].tag[slot % kBucketSlots].store(0, std::memory_order_release);
}

// The shard lock. `lock` waits at most kLockWaitNs; false means BUSY.
bool lock_shard(Pool& pool, uint32_t shard);
void unlock_shard(Pool& pool, uint32_t shard);

}  // namespace maru
