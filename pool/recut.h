// Slabs that change their chunk size.
//
// A slab's word is DRAINING|me from the moment we begin until every chunk in it is ours, or one of them is
// pinned, being written or cooling: then all are given back and it stays as it was. Somebody who claimed a
// unit under the old size sees the word changed and lets go. If we die, the cleaner sets the word back to
// ACTIVE with the old size and a new generation, and frees every owner word that names us.
//
// A slab of small chunks has thousands of them, and to evict them all takes as long as hundreds of ordinary
// allocations. So where there is time, since the caller can be served otherwise, a slab is recut a few chunks
// at each allocation of this process: what was claimed is ours alone meanwhile, by words that say so, as a
// draft's is. Few slabs at a time in a pool; whoever stops allocating gives his up at the housekeeper's next
// tick but one.
#pragma once

#include <mutex>

#include "pool.h"

namespace maru {

// A slab on its way to another chunk size; private to the process.
struct Recut {
  uint64_t slab = UINT64_MAX;  // None.
  uint64_t old_units = 0;
  uint64_t units = 0;   // What its chunks will have.
  uint32_t tenant = 0;  // Who wants it: what it holds makes way for that one.
  uint64_t generation = 0;
  uint64_t claimed = 0;  // Chunks of the old size that are ours, from the first on,
  uint64_t evicted = 0;  // ... so many of which held something.

  bool is_under_way() const { return slab != UINT64_MAX; }
};

// The one that this process does bit by bit.
struct SlowRecut {
  std::mutex mutex;  // Between threads of this process only.
  Recut recut;
  bool went_on = false;  // Since the housekeeper's last tick.
};

// Give a slab another chunk size and take its first chunk: kNoUnit when something in it cannot go.
uint64_t recut_at_once(Pool& pool, uint64_t slab, uint64_t units, bool device, uint32_t tenant);

// Begin to, unless as many slabs of the pool as should be are being recut already.
void begin_recut(Pool& pool, uint64_t slab, uint64_t units, uint32_t tenant);

// Claim a few chunks more of what was begun. The unit of the first new chunk when that was the end of it,
// which it only is where chunks of its size are wanted; kNoUnit otherwise.
uint64_t go_on_recutting(Pool& pool, uint64_t units, bool device, uint32_t tenant);

// There is no time for it any more: do the rest of it now, if chunks of its size are wanted, or give it up.
uint64_t end_recut(Pool& pool, uint64_t units, bool device, uint32_t tenant);

// Give up what was begun. `only_idle`: if nothing was claimed since the last such call.
void give_up_recut(Pool& pool, bool only_idle);

}  // namespace maru
