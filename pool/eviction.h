// Who goes when space is needed: the coldest chunk that nothing continues and nobody pins.
//
// Leaf-first CLOCK. A hit writes the current epoch into the slot (any order, racy is fine); an epoch is half
// a pool's worth of references. The hand walks the slots, collects leaves (no resident child) as candidates
// and the oldest goes. When a leaf goes, its parent becomes a leaf and a candidate at once, so a cold prefix
// leaves from its tail up and what remains of it is always a usable prefix. That is a preference: after two
// turns of the hand without a victim any unpinned chunk goes.
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
  std::array<Entry, kSize> entries{};
};

struct Evictor {
  static constexpr size_t kListLimit = 64;
  std::mutex mutex;  // Between threads of this process only.
  std::vector<CandidateList> lists;
  Atomic<uint64_t> looked_at{0};  // Slots looked at, and victims found: how hard the hand works.
  Atomic<uint64_t> victims{0};
  Atomic<uint64_t> slab_hand{0};  // Slab of another size to compare with next.
};

// Count `references` chunks asked for; returns the epoch that a hit stamps.
uint32_t eviction_epoch(Pool& pool, uint64_t references);

// One more, one fewer sealed chunk.
void count_resident(Pool& pool, int64_t by);

// Evict one chunk of `units` units (never the slot that parent word `protect_parent` names); its extent is
// then owned by this process. kNoUnit: every chunk of that size is pinned, or there is none.
uint64_t evict_for(Pool& pool, uint64_t units, bool device, uint64_t protect_parent);

// Take chunk `slot` out of the index if nobody pins it and it still lies at `unit`; the extent is then ours.
// False: pinned, or no longer what it was.
bool evict_slot(Pool& pool, uint64_t slot, uint64_t unit, bool device);

// As evict_slot, and give the extent back. For remove, expiry and full buckets.
bool drop_slot(Pool& pool, uint64_t slot);

// Where a slot stands in the order of leaving: 0 when it cannot go, higher goes sooner, leaves before
// parents.
uint32_t eviction_order(Pool& pool, uint64_t slot);

// How much would be lost by emptying a slab: 0 for nothing. kSlabNotEvictable when something in it cannot go.
inline constexpr uint64_t kSlabNotEvictable = UINT64_MAX;
uint64_t slab_value(Pool& pool, uint64_t slab, uint64_t chunk_units);

// Ages (in epochs, kAgeStale for what does not count any more): of the coldest candidate of a chunk size, and
// of an average chunk of a slab. For deciding whether a slab should change its chunk size.
inline constexpr uint32_t kAgeStale = 256;
uint32_t coldest_age(Pool& pool, uint64_t units);
uint32_t slab_age(Pool& pool, uint64_t slab, uint64_t chunk_units);

// One more, one fewer resident child of the chunk named by a parent word.
void add_child(Pool& pool, uint64_t parent);
void remove_child(Pool& pool, uint64_t parent);

// Recount children, and sealed chunks, from the words.
void recount_children(Pool& pool);

}  // namespace maru
