// How one chunk leaves the index, for whatever reason.
//
// SEALED (or QUARANTINED) -> EVICTING|me, then every pin column, then on or back: the protocol of pins.h.
// From the mark on the word names who is responsible; the extent is ours before the slot is free, so that it
// is never two chunks'. Who dies in between is named by the word, and the cleaner goes on or back. What is
// left behind are hints: the parent's count of children, the number of residents, accounts.
#pragma once

#include "pool.h"

namespace maru {

// The states in which a chunk can leave.
inline bool may_be_evicted(SlotState state) {
  return state == SlotState::kSealed || state == SlotState::kQuarantined;
}

// Take chunk `slot` out of the index for what `incoming` brings, if nobody pins it, it still lies at `unit`
// and shares let it go; the extent is then ours, on the account of `account` (0: on nobody's).
bool push_out(Pool& pool, uint64_t slot, uint64_t unit, bool device, uint32_t incoming, uint32_t account);

// As push_out, and give the extent back. For full buckets.
bool drop_for(Pool& pool, uint64_t slot, uint32_t incoming);

// Take a chunk out and give its extent back, whoever's it is. For remove and expiry.
bool drop_slot(Pool& pool, uint64_t slot);

// One more, one fewer resident child of the chunk named by a parent word.
void add_child(Pool& pool, uint64_t parent);
void remove_child(Pool& pool, uint64_t parent);

// Recount children, and sealed chunks, from the words.
void recount_children(Pool& pool);

// One more, one fewer sealed chunk.
void count_resident(Pool& pool, int64_t by);

}  // namespace maru
