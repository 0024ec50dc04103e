// Rows of the process table that live by the clock: what another host pins and reserves.
//
// A host that cannot share our memory coherently holds nothing in the index itself; the daemon does it in its
// name, under a process number of the host's own. That number must not die with the daemon, as the host goes
// on reading: so it lives as long as its byte lock is held (by the daemon that serves it now) or its lease
// runs, whichever ends later.
//
//   Who writes `lease_ns`: whoever holds the row's byte lock. The right to clean is that lock too, so that a
//   daemon that takes up a row (adopts it) and a cleaner that thinks its time is over exclude each other.
//   The worst a stale lease can do: keep what the row holds for kLeaseLimitNs.
//   Fenced by `epoch`: a row that was cleaned and given out again has another one, and is not adopted.
#pragma once

#include <cstdint>
#include <string>

#include "pool.h"

namespace maru {

// A lease further away than this is not believed: the word is torn, or hostile.
inline constexpr uint64_t kLeaseLimitNs = 600ull * kSecond;

// Does the row live by its lease now, whoever holds its byte lock?
bool lease_runs(const Pool& pool, uint32_t process);

// As claim_process, for a row that lives `lease_ns` from now even if this process dies. Raises PoolBusy.
void claim_lease(Pool& pool, const std::string& name, uint64_t lease_ns);

// Take up row `process` where a daemon that is gone left it: with its pins and reservations. False when it is
// not there any more: its lease ended, it was given to somebody else, or another daemon holds it.
bool adopt_lease(Pool& pool, uint32_t process, uint64_t epoch);

// Move our row's end to `lease_ns` from now.
void renew_lease(Pool& pool, uint64_t lease_ns);

}  // namespace maru
