// What each tenant takes of the pool, what it is promised, and who makes way for whom.
//
// An extent is on the account of the tenant that its owner word names, from the moment it is taken until it
// is free; what an account says is the sum over these words. The sum itself is kept as words change, by
// atomic additions, so that nobody has to walk: like every count it is a hint, exact as long as nobody dies
// between the two, and recounted after a death. A wrong one lets somebody have a chunk too many or too few.
//   What comes in is put on the account before its extent is looked for, and what makes way is taken off
//   before it is evicted, both by compare-and-swap against the bound. So however many threads and processes
//   evict at once, none of them pushes anybody below a share, and nobody passes a limit.
//   Who makes way. As long as nobody has a share: the coldest, whoever it is. Else nobody goes below a share
//   by another's hand; and whoever is above its own takes only from those who are at least as far above
//   theirs, itself among them. Room that nobody was promised is lent to whoever comes, and who has borrowed
//   most gives back first: a burst soon evicts nothing but its own. Whoever is below its share takes from
//   lenders before it gives anything of its own.
#pragma once

#include <string>
#include <vector>

#include "pool.h"

namespace maru {

// Number of the tenant of this name, registering it if new. The caller holds the tables' lock. 0: all rows
// are in use.
uint32_t register_tenant(Pool& pool, const std::string& name);

// Promise a tenant `share_bytes`, allow it `limit_bytes` (0: no limit). At the limit what comes in is
// refused, or takes the place of the tenant's own coldest. Raises ShareTooLarge when the pool has not so much
// left to promise or the limit is below the share, PoolBusy, NamespaceTableFull.
void set_share(Pool& pool, const std::string& tenant, uint64_t share_bytes, uint64_t limit_bytes,
               bool refused_at_limit);

// The tenant that a namespace belongs to.
inline uint32_t tenant_of(const Pool& pool, uint32_t namespace_id) {
  if (namespace_id >= pool.geometry.namespace_limit) return kDefaultTenant;
  const uint32_t tenant = pool.namespaces[namespace_id].tenant_number.load(std::memory_order_relaxed);
  return tenant < pool.geometry.tenant_limit ? tenant : kDefaultTenant;
}

// Put bytes on an account. False, and nothing was changed: it would pass its limit.
bool charge(Pool& pool, uint32_t tenant, uint64_t bytes);

// Take them off again; never below zero.
void discharge(Pool& pool, uint32_t tenant, uint64_t bytes);

// Has anybody a share? Otherwise who goes is a question of age alone.
inline bool shares_count(const Pool& pool) {
  return pool.super->promised_bytes.load(std::memory_order_relaxed) != 0;
}

// Is what is on this account, with all that was put on it for what comes in, within what was promised?
inline bool is_within_share(const Pool& pool, uint32_t tenant) {
  if (!shares_count(pool) || tenant >= pool.geometry.tenant_limit) return false;
  const TenantRow& row = pool.tenants[tenant];
  return row.used_bytes.load(std::memory_order_relaxed) <= row.share_bytes.load(std::memory_order_relaxed);
}

// May `bytes` of tenant `from` make way for what tenant `incoming` brings, whose account has it already? A
// look; take_off decides. `own_too`: `incoming` found nothing else, so its own goes although it is below its
// share.
bool may_make_way(const Pool& pool, uint32_t from, uint32_t incoming, uint64_t bytes, bool own_too);

// Take them off `from`'s account, as what is being evicted for `incoming`. False: it may not be.
bool take_off(Pool& pool, uint32_t from, uint32_t incoming, uint64_t bytes);

// Bytes of the extents on each account, by the owner words: what the accounts should say.
std::vector<uint64_t> used_by_owners(const Pool& pool);

// Make every account the sum over the owner words again: some tenths of a millisecond, not for a caller's
// path. False: so much changed meanwhile that it cannot be told what is right.
bool recount_shares(Pool& pool);

}  // namespace maru
