// Many threads on one mapping: everything that a pool can do, at once, for ThreadSanitizer and its siblings.
//
//   threads FOLDER SEED OPERATIONS [MUTANT]
//
// One pool is attached once and used by four threads, OPERATIONS each, while its housekeeper runs and all
// crash points yield now and then. Readers read through the writable map: to the sanitizer the read-only map
// of the same bytes is other memory, and a store that a reader overtakes would go unseen. Exit status 0:
// every byte was right, nothing was left behind at the end, and each kind of event that this is about took
// place. What stays unseen: races between processes, and those through the second map.
#include <array>
#include <atomic>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "attach.h"
#include "changes.h"
#include "check.h"
#include "chunk_index.h"
#include "cleaner.h"
#include "copy.h"
#include "eviction.h"
#include "failure.h"
#include "ground.h"
#include "housekeeper.h"
#include "namespace_table.h"
#include "pins.h"
#include "reservation.h"
#include "statistics.h"

namespace maru {

namespace {

constexpr uint32_t kThreads = 4;
constexpr uint64_t kKeys = 160;    // More than fit: chunks are evicted all the time.
constexpr uint64_t kHotKeys = 24;  // Asked for half of the time, so that threads meet.
constexpr uint64_t kPending = 4;   // Reservations that a thread holds open while it does other things.
constexpr uint64_t kParts = 2;
constexpr uint64_t kPrefix = 6;  // Keys pinned in one call.
constexpr uint64_t kHalf = 2;    // A copy of half the size, an even number of bytes.

// Where a reader or an evictor is between a look and what follows from it: here others are always let in.
constexpr std::array<const char*, 3> kWindows = {"pin.before", "pin.taken", "evict.before_mark"};

// Three chunk sizes whose shares change with time, so that slabs are cut anew.
uint64_t size_of(uint64_t number) {
  constexpr std::array<uint64_t, 3> kSizes = {3'000, 9'000, 30'000};
  return kSizes[number % 3] + number * 16;
}

struct Tally {
  uint64_t outcomes[7] = {};
  uint64_t read = 0, joined = 0, renewed = 0, published = 0, removed = 0;
};

class Worker {
 public:
  Worker(Pool& pool, uint64_t seed) : pool_(pool), dice_(seed) {}

  void work(uint64_t operations) {
    for (uint64_t n = 0; n < operations; n++) step();
    for (uint64_t n = 0; n < kPending; n++) finish(n);
  }
  const Tally& tally() const { return tally_; }

 private:
  struct Open {
    Reservation reservation;
    Key key{};
    bool is_open = false;
  };

  uint64_t some_key() { return dice_.below(dice_.one_in(2) ? kHotKeys : kKeys); }

  void note(Outcome outcome) { tally_.outcomes[static_cast<int>(outcome)]++; }

  void step() {
    switch (dice_.below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return read_one(some_key());
      case 4:
      case 5:
        return read_prefix(some_key());
      case 6:
      case 7:
      case 8:
      case 9:
        return store(some_key());
      case 10:
        return open_reservation(some_key());
      case 11:
        return finish(dice_.below(kPending));
      case 12:
        return store_part(some_key());
      case 13:
        return draft(some_key());
      case 14:
        tally_.removed += remove_key(pool_, key_of(some_key()));
        return;
      default:
        return rare();
    }
  }

  void verify(const PinnedExtent& chunk, Key key) {
    const uint64_t wrong = first_wrong(pool_.writable_at(chunk.extent), chunk.size_bytes, key);
    if (wrong != chunk.size_bytes) fail("wrong byte " + std::to_string(wrong) + " in a pinned chunk");
    tally_.read++;
  }

  void read_one(uint64_t number) {
    PinnedExtent chunk;
    if (!pin_one(pool_, key_of(number), &chunk)) return;
    verify(chunk, key_of(number));
    unpin(pool_, chunk.slot);
  }

  void read_prefix(uint64_t number) {
    std::array<Key, kPrefix> keys;
    for (uint64_t n = 0; n < kPrefix; n++) keys[n] = key_of(number + n * 3);
    if (count_leading(pool_, keys.data(), keys.size()) == 0) return;
    std::array<PinnedExtent, kPrefix> chunks;
    const uint64_t pinned = pin_leading(pool_, keys.data(), keys.size(), chunks.data());
    for (uint64_t n = 0; n < pinned; n++) verify(chunks[n], keys[n]);
    for (uint64_t n = 0; n < pinned; n++) unpin(pool_, chunks[n].slot);
  }

  // Plain stores into what was reserved, or the copy that callers use.
  void fill(uint64_t extent, uint64_t from, uint64_t bytes, Key key) {
    uint8_t* at = pool_.writable_at(extent) + from;
    if (dice_.one_in(2)) return write_content(at, from, bytes, key);
    std::vector<uint8_t> source(bytes);
    write_content(source.data(), from, bytes, key);
    stream_copy(at, source.data(), bytes);
  }

  bool reserve(uint64_t number, uint64_t deadline_ns, Reservation* out) {
    ReserveRequest request;
    request.key = key_of(number);
    request.size_bytes = size_of(number);
    request.deadline_ns = deadline_ns;
    if (number >= 3) request.parent = find_parent(pool_, key_of(number - 3));
    if (dice_.one_in(8)) request.ttl_ns = 1 + dice_.below(kMillisecond);
    request.device = dice_.one_in(8);
    const Outcome outcome = reserve_chunk(pool_, request, out);
    note(outcome);
    return outcome == Outcome::kReserved;
  }

  void store(uint64_t number) {
    Reservation r;
    if (!reserve(number, kSecond, &r)) return;
    fill(r.extent, 0, r.size_bytes, key_of(number));
    if (dice_.one_in(10)) return discard_chunk(pool_, r);
    note(seal_chunk(pool_, r));
  }

  // Past its deadline at once: a rival may take the key while this thread does other things.
  void open_reservation(uint64_t number) {
    Open& place = pending_[dice_.below(kPending)];
    if (place.is_open || !reserve(number, 0, &place.reservation)) return;
    place.is_open = true;
    place.key = key_of(number);
  }

  void finish(uint64_t n) {
    Open& place = pending_[n];
    if (!place.is_open) return;
    place.is_open = false;
    if (dice_.one_in(4)) tally_.renewed += renew_chunk(pool_, place.reservation, kMillisecond);
    fill(place.reservation.extent, 0, place.reservation.size_bytes, place.key);
    if (dice_.one_in(3)) return discard_chunk(pool_, place.reservation);
    note(seal_chunk(pool_, place.reservation));
  }

  // Two threads write one chunk; whoever finds the other part free takes it.
  void store_part(uint64_t number) {
    number %= 16;  // Few keys, so that threads meet.
    ReserveRequest request;
    request.key = key_of(number, 1);
    request.size_bytes = size_of(number) / kHalf * kHalf;
    request.deadline_ns = dice_.one_in(4) ? 0 : kSecond;
    request.parts = kParts;
    request.part = static_cast<uint32_t>(dice_.below(kParts));
    Reservation r;
    const Outcome outcome = reserve_chunk(pool_, request, &r);
    note(outcome);
    if (outcome != Outcome::kReserved) return;
    tally_.joined += r.joined;
    fill(r.extent, r.part_offset, r.part_bytes, request.key);
    if (dice_.one_in(10)) return discard_chunk(pool_, r);
    note(seal_chunk(pool_, r));
    PinnedExtent chunk;
    if (!pin_one(pool_, request.key, &chunk)) return;
    verify(chunk, request.key);
    unpin(pool_, chunk.slot);
  }

  void draft(uint64_t number) {
    Draft d;
    if (allocate_draft(pool_, size_of(number), dice_.one_in(4), kDefaultTenant, dice_.one_in(4), &d) !=
        Outcome::kReserved)
      return;
    fill(d.extent, 0, d.size_bytes, key_of(number));
    ReserveRequest request;
    request.key = key_of(number);
    request.size_bytes = d.size_bytes;
    const Outcome outcome = dice_.one_in(4) ? Outcome::kBusy : publish_draft(pool_, d, request);
    tally_.published += outcome == Outcome::kStored;
    if (outcome != Outcome::kStored && outcome != Outcome::kLost) discard_draft(pool_, d);
  }

  void rare() {
    if (!dice_.one_in(16)) return;
    const uint8_t digest[16] = {static_cast<uint8_t>(dice_.below(3))};
    switch (dice_.below(4)) {
      case 0: {
        const Descriptor lock = pool_.lock_file->try_lock(kLockByteHousekeeper);
        if (lock) sweep(pool_, pool_.geometry.slot_count, &cursor_);
        return;
      }
      case 1:
        if (statistics_json(pool_, 0, true).empty()) fail("no statistics");
        return;
      case 2:
        register_namespace(pool_, digest, "tenant", dice_.below(2));
        return;
      default:
        bump_namespace(pool_, 0);  // Whatever is being written now is LOST.
    }
  }

  Pool& pool_;
  Dice dice_;
  Tally tally_;
  std::array<Open, kPending> pending_;
  uint64_t cursor_ = 0;
};

uint64_t counted(const Pool& pool, Counter counter) {
  return pool.my_counters->value[static_cast<uint32_t>(counter)].load();
}

void need(const char* what, uint64_t count) {
  std::printf("%s %llu\n", what, static_cast<unsigned long long>(count));
  if (count == 0) fail(std::string("never happened, so it was not tested: ") + what);
}

// Reads along as a router does, a few changes at a time.
class Watcher {
 public:
  explicit Watcher(const Pool& pool) : pool_(pool), scan_(pool) {}

  bool look(uint64_t limit) {
    std::vector<Change> changes;
    const bool is_whole = scan_.look(pool_, limit, &changes);
    for (const Change& change : changes) {
      const std::pair key(change.key.lo, change.key.hi);
      if (change.kind == ChangeKind::kRemoved) {
        removed_ += known_.erase(key);
      } else {
        known_.insert(key);
      }
    }
    return is_whole;
  }

  // With nothing going on: does it know what lookup finds? What runs out between the two is looked at again.
  void agree() {
    for (int n = 0; n < 100; n++) {
      look(1 << 20);  // Ends what was begun.
      look(1 << 20);
      uint64_t found = 0, known = 0;
      for (uint64_t number = 0; number < 2 * kKeys; number++) {
        const Key key = key_of(number / 2, number % 2);  // Chunks of one part, and of several.
        if (!is_sealed(pool_, key)) continue;
        found++;
        known += known_.contains({key.lo, key.hi});
      }
      if (known == found && found == known_.size() && found == scan_.told_count()) return;
    }
    fail("whoever read along knows other chunks than lookup finds");
  }

  uint64_t removed() const { return removed_; }

 private:
  const Pool& pool_;
  ChangeScan scan_;
  std::set<std::pair<uint64_t, uint64_t>> known_;
  uint64_t removed_ = 0;
};

void run(const std::string& folder, uint64_t seed, uint64_t operations) {
  CreateOptions options;
  options.folder = folder;
  options.segments = {{"segment-0", Medium::kShm}, {"segment-1", Medium::kShm}};
  options.size_bytes = 1 << 20;
  options.slab_bytes = 128 << 10;
  options.slot_count = 240;
  options.process_limit = 4;
  options.namespace_limit = 8;
  options.cooling_ns = kMillisecond;
  options.gate = false;  // What is stored must find room.
  create_pool(options);
  const std::unique_ptr<Pool> pool = attach_pool({folder, "threads"});
  Housekeeper housekeeper(*pool, true);

  Dice dice(seed);
  for (const PointInfo& point : crash_points())
    if (dice.one_in(6)) arm_crash_point(point.name, PointAction::kYield, 1, 0);
  for (const char* name : kWindows)
    if (!arm_crash_point(name, PointAction::kYield, 1, 0)) fail(std::string("no crash point ") + name);
  std::vector<Worker> workers;
  for (uint32_t n = 0; n < kThreads; n++) workers.emplace_back(*pool, dice.roll());
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker, operations] { worker.work(operations); });
  Watcher watcher(*pool);
  std::atomic<bool> is_over{false};
  std::thread watching([&] {
    while (!is_over.load()) watcher.look(7);
  });
  for (std::thread& thread : threads) thread.join();
  is_over.store(true);
  watching.join();
  disarm_crash_points();
  housekeeper.stop();

  uint64_t cursor = 0;
  sweep(*pool, pool->geometry.slot_count, &cursor);
  watcher.agree();
  for (const std::string& finding : check_pool(*pool, true)) fail(finding);
  for (uint64_t i = 0; i < pool->geometry.slot_count; i++)
    if (pool->my_pins[i].load() != 0) fail("a pin was left on slot " + std::to_string(i));

  Tally all;
  for (const Worker& worker : workers) {
    const Tally& one = worker.tally();
    for (int n = 0; n < 7; n++) all.outcomes[n] += one.outcomes[n];
    all.read += one.read;
    all.joined += one.joined;
    all.renewed += one.renewed;
    all.published += one.published;
    all.removed += one.removed;
  }
  const auto outcomes = [&all](Outcome outcome) { return all.outcomes[static_cast<int>(outcome)]; };
  need("read", all.read);
  need("stored", outcomes(Outcome::kStored));
  need("exists", outcomes(Outcome::kExists));
  need("in flight", outcomes(Outcome::kInFlight));
  need("lost", outcomes(Outcome::kLost));
  need("part joined", all.joined);
  need("renewed", all.renewed);
  need("draft published", all.published);
  need("removed", all.removed);
  need("told as gone", watcher.removed());
  need("evicted", counted(*pool, Counter::kEvicted));
  need("reclassed", counted(*pool, Counter::kReclassed));
  need("revoked", counted(*pool, Counter::kRevoked));
  need("expired", counted(*pool, Counter::kExpired));
  need("cooled", counted(*pool, Counter::kCooled));
}

}  // namespace

}  // namespace maru

int main(int argc, char** argv) {
  if (argc < 4) maru::fail("usage: threads FOLDER SEED OPERATIONS [MUTANT]");
  if (argc > 4 && !maru::set_mutant(argv[4], true)) maru::fail("no such mutant");
  try {
    maru::run(argv[1], std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10));
  } catch (const maru::Failure& failure) {
    maru::fail(failure.kind() + ": " + failure.what());
  }
  return 0;
}
