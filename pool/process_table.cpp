#include "process_table.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "cleaner.h"
#include "failure.h"
#include "lease.h"

namespace maru {

namespace {

void set_live(Pool& pool, uint32_t process) {
  // Before the first pin: an evictor that does not see the bit would not read our column.
  pool.super->live[process / 64].fetch_or(1ull << (process % 64));
}

void fill_row(Pool& pool, const std::string& name) {
  ProcessRow& row = pool.processes[pool.me];
  struct stat st{};
  row.pid.store(static_cast<uint32_t>(getpid()));
  row.pid_namespace.store(stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0);
  row.attached_ns.store(now_ns());
  row.key_pins.store(0);
  row.key_pin_ns.store(0);
  std::memset(row.name, 0, sizeof row.name);
  // Cut between characters, so that what people read stays valid UTF-8.
  size_t length = std::min(name.size(), sizeof row.name - 1);
  while (length > 0 && length < name.size() && (static_cast<uint8_t>(name[length]) & 0xc0) == 0x80) length--;
  std::memcpy(row.name, name.data(), length);
}

}  // namespace

void own_row(Pool& pool, uint32_t process, void* tied_page) {
  pool.tied_page = tied_page;
  pool.me = process;
  pool.my_counters = &pool.counters[process];
  pool.my_pins = pool.pins + process * pool.geometry.slot_count;
}

void claim_process(Pool& pool, const std::string& name) {
  for (uint32_t p = 0; p < pool.geometry.process_limit; p++) {
    if (lease_runs(pool, p))
      continue;  // Another host's. Its byte is left alone, in case a daemon comes for it.
    void* page = pool.lock_file->try_tie(kLockByteProcess + p);
    if (!page) continue;
    MARU_POINT("claim.byte_locked");
    ProcessRow& row = pool.processes[p];
    if (row.attached.load() != 0 && lease_runs(pool, p)) {
      LockFile::untie(page);  // It was claimed between our two looks, and its daemon died since.
      continue;
    }
    if (pool.reads_only && row.attached.load() != 0 && !(row.flags.load() & kProcessReads)) {
      LockFile::untie(page);  // What a dead writer left is not a reader's to end.
      continue;
    }
    own_row(pool, p, page);
    if (row.attached.load() != 0) {
      // The last owner died: holding its byte lock gives the right, and being about to use its number the
      // reason.
      ask_for_recount(pool);
      clean_process(pool, p);
      pool.count(Counter::kReaped);
    }
    // Before anybody can take the row for a dead one's: a reader may only clean up after readers.
    row.flags.store(pool.reads_only ? kProcessReads : 0);
    row.attached.store(1);  // From here on a death leaves work for a cleaner, and says so.
    MARU_POINT("claim.attached");
    pool.my_epoch = row.epoch.fetch_add(1) + 1;
    fill_row(pool, name);
    set_live(pool, p);
    MARU_POINT("claim.live");
    return;
  }
  if (!pool.lock_file->is_current())
    throw Failure("PoolNotFound", pool.folder + " was destroyed while this process was attaching to it",
                  {{"path", pool.folder}});
  throw Failure(
      "PoolBusy",
      "all " + std::to_string(pool.geometry.process_limit) + " process slots of " + pool.folder +
          " are in use" +
          (pool.reads_only ? ", or held by dead writers until a process comes that may write" : "") +
          "; create the pool with a larger process_limit",
      {{"path", pool.folder}, {"process_limit", static_cast<int64_t>(pool.geometry.process_limit)}});
}

void leave_process(Pool& pool) {
  // We hold our own byte lock, which is what gives the right to clean.
  clean_process(pool, pool.me);
  pool.me = kNobody;
}

bool process_is_alive(const Pool& pool, uint32_t process) {
  if (process == pool.me) return true;
  if (process >= pool.geometry.process_limit) return false;
  return pool.lock_file->is_held(kLockByteProcess + process) || lease_runs(pool, process);
}

}  // namespace maru
