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

// Candidates of one chunk size (and, where shares count, for one tenant); private to the process.
struct CandidateList {
  static constexpr uint32_t kSize = 16;
  struct Entry {
    uint64_t slot;
    uint64_t word;
  };
  uint64_t units = 0;   // 0: of any size.
  uint32_t tenant = 0;  // For whom room is looked for, where that makes a difference.
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

// Instead of a unit: there is what could be evicted, but nothing that should be.
inline constexpr uint64_t kGateClosed = UINT64_MAX - 1;

// Evict one chunk of `units` units for `tenant`, but nothing that a chunk of this parent word would continue,
// and of others only what shares.h lets go; its extent is then owned by this process, on that tenant's
// account. `others_only`: nothing of `tenant`'s own either. kNoUnit: every other chunk of that size is
// pinned, or there is none. kGateClosed: what would have to go is wanted sooner than what comes in (reuse.h).
uint64_t evict_for(Pool& pool, uint64_t units, bool device, uint64_t parent, uint32_t tenant,
                   bool others_only);

// Free the coldest chunk of a tenant's own, of any size. False: there is none that could go.
bool evict_own(Pool& pool, uint32_t tenant, uint64_t parent);

// Where a slot stands in the order of leaving: 0 when it cannot go, higher goes sooner, leaves before
// parents.
uint32_t eviction_order(Pool& pool, uint64_t slot);

// How cold a sealed chunk is, pinned or not: higher goes sooner. What continues it is left aside.
uint32_t leaving_rank(Pool& pool, uint64_t slot);

// Ages are in epochs, kAgeStale for what does not count any more.
inline constexpr uint32_t kAgeStale = 8192;

// What a sample of a slab's chunks says of it to `tenant`, which may give chunks of its own with `own_too`
// even if it is within its share.
struct SlabContent {
  bool may_go = false;  // Nothing that was looked at is pinned, private to a process, half done or protected.
  uint64_t load = 0;    // About so many of its chunks hold something.
  uint32_t age = 0;     // Of an average chunk that does; kAgeStale if none does. 0 when the slab may not go.
};
SlabContent look_at_slab(Pool& pool, uint64_t slab, uint64_t chunk_units, uint64_t sample, uint32_t tenant,
                         bool own_too);

// Of the coldest candidate of a chunk size: for deciding whether a slab should change its chunk size.
uint32_t coldest_age(Pool& pool, uint64_t units, uint32_t tenant);

}  // namespace maru
