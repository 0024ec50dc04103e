// Who goes when space is needed: the coldest chunk that nothing continues and nobody pins.
//
// Leaf-first CLOCK. A hit writes the current epoch into the slot (any order, racy is fine); an epoch is half
// a pool's worth of references. The hand walks the slots, collects leaves (no resident child) as candidates
// and the oldest goes. When a leaf goes, its parent becomes a leaf and a candidate at once, so a cold prefix
// leaves from its tail up and what remains of it is always a usable prefix. That is a preference: after a
// turn of the hand without a victim any unpinned chunk goes, except what the incoming one continues.
//
// Stamps, child counts and candidates are hints. The decision itself is the protocol of pins.h: SEALED ->
// EVICTING|me, then every pin column, then on or back. Who dies in between is named by the word.
#pragma once

#include <array>
#include <mutex>
#include <vector>

#include "pool.h"

namespace maru {

// Candidates of one chunk size; private to the process.
struct CandidateList {
  static constexpr uint32_t kSize = 16;
  struct Entry {
    uint64_t slot;
    uint64_t word;
  };
  uint64_t units = 0;
  uint32_t count = 0;
  uint64_t barren_until_ns = 0;  // A whole turn of a long index saw nothing: not looked at again before.
  std::array<Entry, kSize> entries{};
};

struct Evictor {
  static constexpr size_t kListLimit = 64;
  static constexpr size_t kMissingLimit = 65536;  // So that the keys of a few long prompts do not meet.
  std::mutex mutex;                               // Between threads of this process only.
  std::vector<CandidateList> lists;
  Atomic<uint64_t> looked_at{0};  // Slots looked at, and victims found: how hard the hand works.
  Atomic<uint64_t> victims{0};
  Atomic<uint64_t> comparisons{0};  // Allocations that might have compared slabs; every few do.
  Atomic<uint64_t> slab_hand{0};    // Slab of another size to compare with next.
  // Mixed keys that were asked for in vain and counted. One overwrites another, which is then counted twice.
  std::array<Atomic<uint32_t>, kMissingLimit> missing{};
};

// An epoch is a sixteenth of a pool's worth of references: fine enough that among chunks of one epoch it does
// not matter who goes.
inline constexpr uint32_t kEpochsPerPool = 16;

// The epoch that a hit stamps.
inline uint32_t eviction_epoch(const Pool& pool) {
  return static_cast<uint32_t>(pool.super->eviction_epoch.load(std::memory_order_relaxed)) & kStampEpochMask;
}

// Count chunks asked for, there or not: epochs and reuse distances are measured in them. Returns the epoch
// that a hit stamps.
uint32_t count_references(Pool& pool, const Key* keys, uint64_t count);

// These were counted and are missing: whoever stores one of them next in this process asks for nothing new.
void remember_missing(Pool& pool, const Key* keys, uint64_t count);

// Count a chunk that is about to be stored, unless it was counted when it was found missing.
void count_incoming(Pool& pool, Key key);

// One more, one fewer sealed chunk.
void count_resident(Pool& pool, int64_t by);

// Instead of a unit: there is what could be evicted, but nothing that should be.
inline constexpr uint64_t kGateClosed = UINT64_MAX - 1;

// Evict one chunk of `units` units, but nothing that a chunk of this parent word would continue; its extent
// is then owned by this process. kNoUnit: every other chunk of that size is pinned, or there is none.
// kGateClosed: what would have to go is wanted sooner than what comes in (reuse.h).
uint64_t evict_for(Pool& pool, uint64_t units, bool device, uint64_t parent);

// Take chunk `slot` out of the index if nobody pins it and it still lies at `unit`; the extent is then ours.
// False: pinned, or no longer what it was.
bool evict_slot(Pool& pool, uint64_t slot, uint64_t unit, bool device);

// As evict_slot, and give the extent back. For remove, expiry and full buckets.
bool drop_slot(Pool& pool, uint64_t slot);

// Where a slot stands in the order of leaving: 0 when it cannot go, higher goes sooner, leaves before
// parents.
uint32_t eviction_order(Pool& pool, uint64_t slot);

// How cold a sealed chunk is, pinned or not: higher goes sooner. What continues it is left aside.
uint32_t leaving_rank(Pool& pool, uint64_t slot);

// Ages are in epochs, kAgeStale for what does not count any more.
inline constexpr uint32_t kAgeStale = 8192;

// What a sample of a slab's chunks says of it.
struct SlabContent {
  bool may_go = false;  // Nothing that was looked at is pinned, private to a process or half done.
  uint64_t load = 0;    // About so many of its chunks hold something.
  uint32_t age = 0;     // Of an average chunk that does; kAgeStale if none does. 0 when the slab may not go.
};
SlabContent look_at_slab(Pool& pool, uint64_t slab, uint64_t chunk_units, uint64_t sample);

// Of the coldest candidate of a chunk size: for deciding whether a slab should change its chunk size.
uint32_t coldest_age(Pool& pool, uint64_t units);

// One more, one fewer resident child of the chunk named by a parent word.
void add_child(Pool& pool, uint64_t parent);
void remove_child(Pool& pool, uint64_t parent);

// Recount children, and sealed chunks, from the words.
void recount_children(Pool& pool);

}  // namespace maru
