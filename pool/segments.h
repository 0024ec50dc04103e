// Data segments that change while the pool lives: added, emptied, taken back, given up.
//
// A segment's word is the only truth about it. A pool is made with rows for segments that come later
// (AWAITED): their slabs are numbered and the index has room for their chunks, so that nothing in the index
// moves when the memory comes. Who writes: the creator; then whoever changes a segment, one compare-and-swap
// each. If somebody dies while he adds one: the row is AWAITED still, and the next one begins again.
#pragma once

#include <string>

#include "creation.h"
#include "pool.h"

namespace maru {

// Empty segment `number` from now on (kDraining), take it back (kOnline, from kDraining only), or give it up
// (kLost, for ever: everything in it is a miss from that moment, in every process, and nobody touches its
// memory again). Works whether or not anybody is attached. Raises PoolNotFound, PoolMismatch (also: no such
// segment, or lost already).
void set_segment_state(const std::string& folder, uint32_t number, SegmentState state);

// Give the pool's first awaited segment its memory: a file of its size is made, a device is taken. Attached
// processes map it within a tick of their housekeepers; meanwhile its chunks are misses to them. Returns its
// number. Raises PoolNotFound, PoolBusy, PoolMismatch (no segment is awaited; or as create_pool), NoSpace,
// BadSize (the device is too small).
uint32_t add_segment(const std::string& folder, const SegmentSpec& spec, CreateResult* result);

// Give up segments whose file was cut off under us: what lay behind its new end would kill whoever touches
// it. Everything in them is a miss from then on, in every process; see set_segment_state. Returns how many.
uint32_t lose_cut_off_segments(Pool& pool);

}  // namespace maru
