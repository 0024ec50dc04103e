// What the dead left behind.
//
// Recovery needs no log: for each word that names a dead process, finish what it began or undo it. Every step
// is one store or CAS on one word, in an order that can be repeated from the start, so a cleaner may itself
// die anywhere and the next one begins again. The right to clean process q is q's byte lock: exactly one
// cleaner, and the kernel hands the right on when it dies.
//
// A single word that blocks somebody needs no such right: resolve_word takes it over by CAS, which makes it
// name the living, and then finishes as its new owner.
#pragma once

#include "pool.h"

namespace maru {

// Clean up after process number `process`. The caller holds its byte lock.
void clean_process(Pool& pool, uint32_t process);

// Somebody died, maybe between a word and its account: the next sweeps count accounts anew.
void ask_for_recount(Pool& pool);

// Clean up after everyone who died; returns how many.
uint32_t clean_dead_processes(Pool& pool);

// Resolve one slot whose word names a dead process. The word is compared, so a stale look does nothing.
void resolve_word(Pool& pool, uint64_t slot, uint64_t word);

// The whole round of the housekeeper: the dead, left-over parts, quarantined and expired chunks nobody reads.
// Looks at `slot_budget` slots from where it stood last time.
void sweep(Pool& pool, uint64_t slot_budget, uint64_t* cursor);

}  // namespace maru
