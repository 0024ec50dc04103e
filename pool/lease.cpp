#include "lease.h"

#include <algorithm>

#include "process_table.h"

namespace maru {

namespace {

constexpr uint64_t kAdoptDeadlineNs = 100 * kMillisecond;

}  // namespace

bool lease_runs(const Pool& pool, uint32_t process) {
  if (process >= pool.geometry.process_limit) return false;  // From a slot's word, which may say anything.
  const uint64_t end = pool.processes[process].lease_ns.load();
  if (end == 0) return false;
  const uint64_t now = now_ns();
  return end > now && end - now <= kLeaseLimitNs;
}

void claim_lease(Pool& pool, const std::string& name, uint64_t lease_ns) {
  claim_process(pool, name);
  renew_lease(pool, lease_ns);
}

bool adopt_lease(Pool& pool, uint32_t process, uint64_t epoch) {
  if (process >= pool.geometry.process_limit) return false;
  // A cleaner that just looks may hold the byte for a moment.
  const uint64_t deadline = now_ns() + kAdoptDeadlineNs;
  void* page = pool.lock_file->try_tie(kLockByteProcess + process);
  while (!page && now_ns() < deadline && pool.lock_file->is_current()) {
    sleep_ns(kMillisecond);
    page = pool.lock_file->try_tie(kLockByteProcess + process);
  }
  if (!page) return false;
  const ProcessRow& row = pool.processes[process];
  if (row.attached.load() == 0 || row.epoch.load() != epoch || !lease_runs(pool, process)) {
    LockFile::untie(page);
    return false;
  }
  own_row(pool, process, page);
  pool.my_epoch = epoch;
  return true;
}

void renew_lease(Pool& pool, uint64_t lease_ns) {
  pool.processes[pool.me].lease_ns.store(now_ns() + std::min(lease_ns, kLeaseLimitNs));
}

}  // namespace maru
