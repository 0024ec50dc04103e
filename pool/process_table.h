// Who is attached. A process is alive exactly as long as its byte lock is held, and the lock is tied to its
// memory: it ends with the address space, not with a descriptor, a fork, or a PID somebody else now has.
//
// Who writes a row: the process that holds the byte lock, be it the owner or the cleaner that took it after
// the owner's death. The worst a stale `attached` flag can do is one needless look at a byte lock.
#pragma once

#include <string>

#include "pool.h"

namespace maru {

// Take the first free process number, cleaning up after its last owner if that one died. Raises PoolBusy.
void claim_process(Pool& pool, const std::string& name);

// Give everything back that this process still holds, and its number. The byte lock goes with the mapping.
void leave_process(Pool& pool);

// Everything of `pool` that depends on who we are, for the row whose byte lock `tied_page` holds.
void own_row(Pool& pool, uint32_t process, void* tied_page);

// Is the process with this number alive, or its lease running? Costs a few system calls (about 2 us): ask
// only when it blocks you.
bool process_is_alive(const Pool& pool, uint32_t process);

}  // namespace maru
