#include "namespace_table.h"

#include <algorithm>

#include "chunk_index.h"
#include "failure.h"
#include "shares.h"

namespace maru {

namespace {

uint32_t find(const Pool& pool, const uint8_t digest[16]) {
  for (uint32_t id = 1; id < pool.geometry.namespace_limit; id++) {
    if (pool.namespaces[id].word.load(std::memory_order_acquire) == 0) continue;
    if (std::memcmp(pool.namespaces[id].digest, digest, 16) == 0) return id;
  }
  return 0;
}

// Somebody may be invalidating it at this moment: an epoch that is marked never goes back.
void raise_mark(NamespaceMark& mark, uint64_t epoch) {
  uint64_t seen = mark.epoch.load();
  while (seen < epoch && !mark.epoch.compare_exchange_weak(seen, epoch)) {
  }
}

// Does the first segment say whose it is, for an index that is made anew? A reader leaves that to the first
// writer.
bool is_marked(const Pool& pool, uint32_t id) {
  if (pool.reads_only || !pool.segment_is_there(0)) return true;
  const NamespaceMark& mark = pool.namespace_marks[id];
  return mark.in_use.load(std::memory_order_acquire) != 0 &&
         std::memcmp(mark.digest, pool.namespaces[id].digest, sizeof mark.digest) == 0;
}

// Under the table's lock.
void mark_in_segment(Pool& pool, uint32_t id) {
  const NamespaceRow& row = pool.namespaces[id];
  NamespaceMark& mark = pool.namespace_marks[id];
  std::memcpy(mark.digest, row.digest, sizeof mark.digest);
  raise_mark(mark, row.epoch.load());
  std::memcpy(mark.tenant, row.tenant, sizeof mark.tenant);
  mark.in_use.store(1, std::memory_order_release);
}

}  // namespace

uint32_t register_namespace(Pool& pool, const uint8_t digest[16], const std::string& tenant, uint64_t ttl_ns,
                            uint32_t flags) {
  uint32_t id = find(pool, digest);
  if (id == 0 || !is_marked(pool, id)) {
    const uint32_t table_lock = pool.geometry.shard_count;  // The lock after the shards' locks.
    if (!lock_shard(pool, table_lock))
      throw Failure("PoolBusy",
                    "the namespace table of " + pool.folder + " is locked by a stalled process; try again",
                    {{"path", pool.folder}});
    id = find(pool, digest);
    const uint32_t owner = id ? 0 : register_tenant(pool, tenant);
    if (id != 0 && !is_marked(pool, id)) mark_in_segment(pool, id);
    for (uint32_t row = 1; id == 0 && owner != 0 && row < pool.geometry.namespace_limit; row++) {
      NamespaceRow& fresh = pool.namespaces[row];
      if (fresh.word.load() != 0) continue;
      std::memcpy(fresh.digest, digest, 16);
      std::memset(fresh.tenant, 0, sizeof fresh.tenant);
      std::memcpy(fresh.tenant, tenant.data(), std::min(tenant.size(), sizeof fresh.tenant - 1));
      if (!is_marked(pool, row)) mark_in_segment(pool, row);
      fresh.tenant_number.store(owner);
      fresh.flags.store(flags);
      MARU_POINT("namespace.before_word");
      fresh.word.store(1, std::memory_order_release);
      id = row;
    }
    unlock_shard(pool, table_lock);
    if (id == 0)
      throw Failure(
          "NamespaceTableFull",
          "all " + std::to_string(pool.geometry.namespace_limit) + " namespaces of " + pool.folder +
              ", or all rows for tenants, are in use; create the pool with a larger namespace_limit",
          {{"path", pool.folder}, {"namespace_limit", static_cast<int64_t>(pool.geometry.namespace_limit)}});
  }
  if (pool.reads_only) return id;  // How its chunks live is said by whoever stores them.
  if (pool.namespaces[id].ttl_ns.load() != ttl_ns) pool.namespaces[id].ttl_ns.store(ttl_ns);
  // What one instance asks for counts for all: the stricter of two is the safe one.
  if (flags & ~pool.namespaces[id].flags.load()) pool.namespaces[id].flags.fetch_or(flags);
  return id;
}

uint32_t policy_of(const Pool& pool, const uint8_t digest[16]) {
  const uint32_t id = find(pool, digest);  // 0, the default namespace, when there is none.
  return id ? pool.namespaces[id].flags.load(std::memory_order_relaxed) : 0;
}

uint64_t bump_namespace(Pool& pool, uint32_t id) {
  Atomic<uint64_t>& epoch = pool.namespaces[id].epoch;
  uint64_t seen = epoch.load();
  while (true) {
    // The mark first: what an index rebuilt from the segments finds valid must not be more than what was.
    if (pool.segment_is_there(0)) raise_mark(pool.namespace_marks[id], seen + 1);
    MARU_POINT("namespace.marked");
    if (epoch.compare_exchange_strong(seen, seen + 1)) return seen + 1;
  }
}

}  // namespace maru
