// Giving a key a slot: the only code that runs under a shard lock. Looks for whoever binds the key already,
// decides whether that one still counts, and claims a slot in the key's two buckets.
#pragma once

#include "pool.h"
#include "reservation.h"

namespace maru {

// Bind `request.key` to the extent at `unit`, which this process owns. RESERVED, EXISTS, IN_FLIGHT, BUSY, or
// FULL when all its buckets are full of chunks that cannot go. RESERVED with out->joined: somebody else's
// reservation of the same key and parts was joined and `unit` is not needed.
Outcome claim_key(Pool& pool, const ReserveRequest& request, uint64_t unit, Reservation* out);

// Join a reservation of the same key, size and number of parts. LOST: there is none to join.
Outcome join_chunk(Pool& pool, const ReserveRequest& request, Reservation* out);

// Is a living process writing this key, within its deadline?
bool is_being_written(Pool& pool, Key key);

}  // namespace maru
