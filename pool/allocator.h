// Extents: who owns which unit of memory.
//
// The data is cut into slabs, a slab into equal chunks of one size, in units. The word of a chunk's first
// unit in `owners` is the allocator's only truth: free, private to a process, a slot's, or cooling.
// Everything else here (free counts, cursors, the class table) is a hint: wrong hints cost a longer search,
// never a chunk handed out twice, since every hand-over is one CAS on the owner word.
//   Who writes an owner word: whoever wins the CAS from free; from then on only the process it names, or that
//   process's cleaner; for a slot's extent, the process the slot's word names.
//   A slab changes its chunk size only while its word is DRAINING|p, after p owns every chunk in it: recut.h.
#pragma once

#include "pool.h"

namespace maru {

inline constexpr uint64_t kNoUnit = UINT64_MAX;

// From now on this attachment takes free chunks and fresh slabs from the segments of a NUMA node first, and
// from the others when those have none. Eviction chooses by what a chunk is worth, wherever it lies. A
// negative `node`, and one that no segment lies on: all segments take turns.
void prefer_numa_node(Pool& pool, int32_t node);

// Take an extent of `units` units: a free chunk, else a fresh slab, else by eviction, else a slab of another
// chunk size. Its owner word then names this process. kNoUnit: nothing can be evicted, or nothing should be
// (FULL). `protect_parent` keeps the parent of the chunk being stored from being evicted to make room for it
// (0: none). It is on the account of `tenant` from then on; what others are promised is not touched for it.
uint64_t allocate_extent(Pool& pool, uint64_t units, bool device, uint64_t protect_parent, uint32_t tenant);

// Give back an extent that this process owns, and take it off its account. `device`: it may still be written
// by a device, so it rests first.
void free_extent(Pool& pool, uint64_t unit, bool device);

// Units of a chunk in the slab this unit lies in; 0 when the slab is not cut.
inline uint64_t chunk_units_at(const Pool& pool, uint64_t unit) {
  return slab_chunk_units(pool.slabs[pool.slab_of_unit(unit)].word.load(std::memory_order_acquire));
}

// Overwrite an extent that this process owns with zeros.
void wipe_extent(Pool& pool, uint64_t unit);

// Clear the extent header, so that no scan takes it for a sealed chunk.
void clear_header(Pool& pool, uint64_t unit);

// Has a chunk that a device may have been writing rested for long enough?
inline bool has_cooled_down(uint64_t owner_word) {
  return owner_value(owner_word) <= now_ns() / kMillisecond;
}

// The row of hints for a chunk size.
ClassRow& class_row(Pool& pool, uint64_t chunk_units);

// Recount the free hints of every slab and class.
void recount_free_hints(Pool& pool);

}  // namespace maru
