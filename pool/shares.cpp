#include "shares.h"

#include <algorithm>
#include <vector>

#include "chunk_index.h"
#include "clock.h"
#include "failure.h"

namespace maru {

namespace {

TenantRow& row_of(const Pool& pool, uint32_t tenant) {
  return pool.tenants[tenant < pool.geometry.tenant_limit ? tenant : 0];
}

// Between putting bytes on an account and taking their extent there are some microseconds. What is still the
// same at the next look is no such thing.
constexpr uint32_t kLooks = 4;
constexpr uint64_t kBetweenLooksNs = 200'000;

// How far above its share, in bytes; negative below it.
int64_t above_share(const TenantRow& row) {
  return static_cast<int64_t>(row.used_bytes.load(std::memory_order_relaxed)) -
         static_cast<int64_t>(row.share_bytes.load(std::memory_order_relaxed));
}

// Rows are filled from the first on, and never emptied.
uint32_t rows_in_use(const Pool& pool) {
  uint32_t count = 1;
  while (count < pool.geometry.tenant_limit && pool.tenants[count].word.load(std::memory_order_acquire) != 0)
    count++;
  return count;
}

// Of all slabs whose memory is there: what is awaited or lost can be promised to nobody.
uint64_t bytes_there(const Pool& pool) {
  uint64_t bytes = 0;
  for (uint32_t s = 0; s < pool.maps.size(); s++) {
    const SegmentState state = segment_state(pool.segments[s].word.load(std::memory_order_acquire));
    if (state == SegmentState::kOnline || state == SegmentState::kDraining)
      bytes += pool.geometry.segments[s].slab_count * pool.geometry.slab_bytes;
  }
  return bytes;
}

std::string mebibytes(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

std::vector<uint64_t> used_by_owners(const Pool& pool) {
  const Geometry& g = pool.geometry;
  std::vector<uint64_t> used(rows_in_use(pool), 0);
  for (uint64_t slab = 0; slab < g.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire),
                   units = slab_chunk_units(word);
    if (slab_state(word) == SlabState::kFree || units == 0 || units > g.units_per_slab) continue;
    for (uint64_t n = 0; n < g.units_per_slab / units; n++) {
      const uint32_t tenant =
          owner_tenant(pool.owners[slab * g.units_per_slab + n * units].load(std::memory_order_relaxed));
      if (tenant != 0 && tenant < used.size()) used[tenant] += pool.account_bytes(units);
    }
  }
  return used;
}

uint32_t register_tenant(Pool& pool, const std::string& name) {
  if (name.empty()) return kDefaultTenant;
  uint32_t fresh = 0;
  for (uint32_t number = 1; number < pool.geometry.tenant_limit; number++) {
    const TenantRow& row = pool.tenants[number];
    if (row.word.load(std::memory_order_acquire) == 0) {
      if (fresh == 0) fresh = number;
      continue;
    }
    if (name == std::string(row.name, strnlen(row.name, sizeof row.name))) return number;
  }
  if (fresh == 0) return 0;
  TenantRow& row = pool.tenants[fresh];
  std::memset(row.name, 0, sizeof row.name);
  std::memcpy(row.name, name.data(), std::min(name.size(), sizeof row.name - 1));
  MARU_POINT("tenant.before_word");
  row.word.store(1, std::memory_order_release);
  return fresh;
}

void set_share(Pool& pool, const std::string& tenant, uint64_t share_bytes, uint64_t limit_bytes,
               bool refused_at_limit) {
  const uint32_t table_lock = pool.geometry.shard_count;
  if (!lock_shard(pool, table_lock))
    throw Failure("PoolBusy",
                  "the table of tenants of " + pool.folder + " is locked by a stalled process; try again",
                  {{"path", pool.folder}});
  const uint32_t number = register_tenant(pool, tenant);
  uint64_t promised = 0;
  for (uint32_t other = 1; other < pool.geometry.tenant_limit; other++)
    if (other != number) promised += row_of(pool, other).share_bytes.load();
  const uint64_t there = bytes_there(pool), left = there - std::min(there, promised);
  const bool fits = share_bytes <= left && (limit_bytes == 0 || share_bytes <= limit_bytes);
  if (number != 0 && fits) {
    TenantRow& row = row_of(pool, number);
    // The sum first while it grows: who sees a share also sees that shares count.
    pool.super->promised_bytes.store(std::max(promised + share_bytes, pool.super->promised_bytes.load()));
    row.flags.store(refused_at_limit ? kTenantRefused : 0);
    row.limit_bytes.store(limit_bytes);
    row.share_bytes.store(share_bytes);
    MARU_POINT("tenant.share_set");
    pool.super->promised_bytes.store(promised + share_bytes);
  }
  unlock_shard(pool, table_lock);
  if (number == 0)
    throw Failure("NamespaceTableFull", "no more tenants fit the table of " + pool.folder,
                  {{"path", pool.folder}});
  if (!fits)
    throw Failure(
        "ShareTooLarge",
        share_bytes > left
            ? "a share of " + mebibytes(share_bytes) + " is more than the " + mebibytes(left) + " that " +
                  pool.folder + " has not promised to others; give somebody less first"
            : "a limit of " + mebibytes(limit_bytes) + " is below the share of " + mebibytes(share_bytes),
        {{"path", pool.folder}, {"wanted_bytes", static_cast<int64_t>(share_bytes)}});
}

bool charge(Pool& pool, uint32_t tenant, uint64_t bytes) {
  TenantRow& row = row_of(pool, tenant);
  const uint64_t limit = row.limit_bytes.load(std::memory_order_relaxed);
  if (limit == 0) {
    row.used_bytes.fetch_add(bytes, std::memory_order_relaxed);
    return true;
  }
  uint64_t used = row.used_bytes.load(std::memory_order_relaxed);
  do {
    if (used + bytes > limit && !MARU_MUTANT("limit_not_kept")) return false;
  } while (!row.used_bytes.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

void discharge(Pool& pool, uint32_t tenant, uint64_t bytes) {
  if (tenant == 0) return;
  Atomic<uint64_t>& account = row_of(pool, tenant).used_bytes;
  uint64_t used = account.load(std::memory_order_relaxed);
  while (!account.compare_exchange_weak(used, used > bytes ? used - bytes : 0, std::memory_order_relaxed)) {
  }
}

bool may_make_way(const Pool& pool, uint32_t from, uint32_t incoming, uint64_t bytes, bool own_too) {
  const int64_t incoming_above = above_share(row_of(pool, incoming));
  if (from == incoming) return incoming_above > 0 || own_too;
  const int64_t above = above_share(row_of(pool, from));
  if (MARU_MUTANT("share_not_kept")) return true;
  return above >= static_cast<int64_t>(bytes) && above >= incoming_above;
}

bool take_off(Pool& pool, uint32_t from, uint32_t incoming, uint64_t bytes) {
  TenantRow& row = row_of(pool, from);
  if (from == incoming || !shares_count(pool) || MARU_MUTANT("share_not_kept")) {
    discharge(pool, from, bytes);
    return true;
  }
  const uint64_t share = row.share_bytes.load(std::memory_order_relaxed);
  uint64_t used = row.used_bytes.load(std::memory_order_relaxed);
  do {
    if (used < share + bytes && !MARU_MUTANT("share_looked_at_once")) return false;
  } while (!row.used_bytes.compare_exchange_weak(used, used - bytes, std::memory_order_relaxed));
  return true;
}

bool recount_shares(Pool& pool) {
  const uint32_t limit = rows_in_use(pool);
  std::vector<int64_t> off_before;
  for (uint32_t look = 0; look < kLooks; look++) {
    if (look > 0) sleep_ns(kBetweenLooksNs);
    std::vector<uint64_t> account(limit, 0);
    std::vector<int64_t> off(limit, 0);
    for (uint32_t t = 1; t < limit; t++) account[t] = pool.tenants[t].used_bytes.load();
    std::vector<uint64_t> used = used_by_owners(pool);
    used.resize(limit);  // A tenant that has just come is looked at next time.
    bool is_right = true;
    for (uint32_t t = 1; t < limit; t++) {
      off[t] = static_cast<int64_t>(used[t] - account[t]);
      is_right &= off[t] == 0;
      // By swap against what was looked at: two who see the same do not both mend it.
      if (look > 0 && off[t] != 0 && off[t] == off_before[t] &&
          pool.tenants[t].used_bytes.compare_exchange_strong(account[t], used[t]))
        off[t] = 0;
    }
    if (is_right && look > 0) return true;
    off_before = off;
  }
  return false;
}

}  // namespace maru
