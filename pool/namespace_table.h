// The pool's namespaces: who shares what with whom, and since when.
//
// Rows are appended under a lock and never removed, so a number once given out always means the same
// namespace. A row becomes visible by one store of its `word`, after its digest; a registrar that dies before
// leaves a free row. Readers take no lock. The epoch is one word that only grows: the worst a reader with the
// old value can do is to serve a chunk that was valid when the call began.
#pragma once

#include <string>

#include "pool.h"

namespace maru {

// Number of the namespace with this digest, registering it if new. A TTL other than the row's replaces it;
// `flags` (NamespaceFlag) are added to the row's. Raises NamespaceTableFull, PoolBusy.
uint32_t register_namespace(Pool& pool, const uint8_t digest[16], const std::string& tenant, uint64_t ttl_ns,
                            uint32_t flags = 0);

// NamespaceFlag bits of the namespace with this digest; 0 when there is none.
uint32_t policy_of(const Pool& pool, const uint8_t digest[16]);

// Make everything stored in it so far a miss. Returns the new epoch.
uint64_t bump_namespace(Pool& pool, uint32_t id);

}  // namespace maru
