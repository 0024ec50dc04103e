// A process meets a pool whose bytes somebody changed: it must refuse it, or use it without harm.
//
//   hostile FOLDER checksum-policy slot-count    then plans on standard input, an answer for each on standard
//   output
//
// The driver makes a sound pool with content, says where its chunks lie ("chunk NUMBER SLOT UNIT" lines, then
// "ready"), and runs one child for each plan line:
//
//   CASE STEP TRUSTED MUTATION...      MUTATION is FILE:OFFSET:WIDTH:OP:OPERAND, FILE i(ndex) or s(egment),
//                                      OP = store, + add, ^ flip, < copy from that offset of the same file
//
// The mutations are applied before step STEP of everything that a process may do; 0 is before attaching.
// TRUSTED says which wrong bytes would be the mutation's own doing: "all", or "s1,u7,b2" for chunks of a
// slot, a unit, a slab. Answers: "CASE MILLISECONDS ok|refused", or instead of these a failure: signal, exit
// (of a sanitizer), hang, wrong (bytes), never ready (its housekeeper was still busy after seconds).
// Afterwards the files are put back. Which bytes are worth changing is mutations.py's business.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iostream>
#include <set>
#include <sstream>
#include <vector>

#include "allocator.h"
#include "attach.h"
#include "changes.h"
#include "check.h"
#include "chunk_index.h"
#include "cleaner.h"
#include "copy.h"
#include "failure.h"
#include "ground.h"
#include "housekeeper.h"
#include "namespace_table.h"
#include "pins.h"
#include "reservation.h"
#include "statistics.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace maru {

namespace {

constexpr uint64_t kChunks = 48, kNewChunks = 40, kPrefix = 16;
constexpr uint64_t kDeadlineNs = 10 * kSecond, kReadyDeadlineNs = 3 * kSecond;
constexpr int kRefusedStatus = 10, kWrongStatus = 11, kNeverReadyStatus = 12;

uint64_t size_of(uint64_t number) {
  constexpr std::array<uint64_t, 4> kSizes = {700, 1024, 5'000, 20'000};
  return kSizes[number % 4] + number;
}
uint64_t new_size_of(uint64_t number) { return 1 + number * 1'600; }

struct Mutation {
  char file = 'i';
  uint64_t offset = 0, width = 0;
  char op = '=';
  uint64_t operand = 0;
};

struct Plan {
  uint64_t number = 0, step = 0;
  bool trusts_all = false;
  std::set<uint64_t> slots, units, slabs;
  std::vector<Mutation> mutations;
};

Plan read_plan(const std::string& line) {
  Plan plan;
  std::istringstream in(line);
  std::string trusted, word;
  if (!(in >> plan.number >> plan.step >> trusted)) fail("not a plan: " + line);
  plan.trusts_all = trusted == "all";
  std::istringstream items(plan.trusts_all ? "" : trusted);
  while (std::getline(items, word, ',')) {
    if (word == "none") continue;
    (word[0] == 's'   ? plan.slots
     : word[0] == 'u' ? plan.units
                      : plan.slabs)
        .insert(std::stoull(word.substr(1)));
  }
  while (in >> word) {
    Mutation m;
    char colon = ':';
    std::istringstream fields(word);
    if (!(fields >> m.file >> colon >> m.offset >> colon >> m.width >> colon >> m.op >> colon >> m.operand) ||
        m.width == 0 || m.width > 8)
      fail("not a mutation: " + word);
    plan.mutations.push_back(m);
  }
  return plan;
}

// The files of the pool, and what they held when it was sound.
class Files {
 public:
  explicit Files(const std::string& folder) {
    keep('i', folder + "/index");
    keep('s', folder + "/segment-0");
  }
  void put_back() {
    for (File& file : files_) {
      if (ftruncate(file.fd, static_cast<off_t>(file.sound.size())) != 0) fail("cannot put a file back");
      // Only what differs: the rest of a segment is holes, and writing them would make them real.
      for (size_t at = 0; at < file.sound.size(); at += kStep) {
        const size_t bytes = std::min(kStep, file.sound.size() - at);
        if (std::memcmp(file.map + at, file.sound.data() + at, bytes) != 0)
          std::memcpy(file.map + at, file.sound.data() + at, bytes);
      }
    }
  }
  void apply(const Mutation& m) {
    for (File& file : files_) {
      if (file.name != m.file) continue;
      if (m.offset + m.width > file.sound.size()) return;
      uint64_t value = 0;
      std::memcpy(&value, file.map + m.offset, m.width);
      if (m.op == '=') value = m.operand;
      if (m.op == '+') value += m.operand;
      if (m.op == '^') value ^= m.operand;
      if (m.op == '<' && m.operand + m.width <= file.sound.size())
        std::memcpy(&value, file.map + m.operand, m.width);
      std::memcpy(file.map + m.offset, &value, m.width);
    }
  }

 private:
  static constexpr size_t kStep = 4096;
  struct File {
    char name;
    int fd;
    uint8_t* map;
    std::vector<uint8_t> sound;
  };
  void keep(char name, const std::string& path) {
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    const off_t bytes = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (bytes < 0) fail("cannot open " + path);
    void* map = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) fail("cannot map " + path);
    auto* at = static_cast<uint8_t*>(map);
    files_.push_back({name, fd, at, {at, at + bytes}});
  }
  std::vector<File> files_;
};

// One process's life with the pool, step by step.
class Life {
 public:
  Life(const std::string& folder, const Plan& plan, Files& files)
      : folder_(folder), plan_(plan), files_(files) {}

  void live() {
    using Step = void (Life::*)();
    const std::array<Step, 13> steps = {
        &Life::attach,     &Life::look,      &Life::read_all, &Life::pin_prefix, &Life::open_much,
        &Life::store_many, &Life::close_all, &Life::read_all, &Life::remove,     &Life::tend,
        &Life::inspect,    &Life::rename,    &Life::leave};
    for (uint64_t n = 0; n < steps.size(); n++) {
      if (n == plan_.step)
        for (const Mutation& mutation : plan_.mutations) files_.apply(mutation);
      try {
        (this->*steps[n])();
      } catch (const Failure& failure) {
        if (n == 0) _exit(kRefusedStatus);  // Later a named failure ends the call, not the process.
      }
    }
  }

 private:
  void attach() {
    attached_processes(folder_);
    pool_ = attach_pool({folder_, "hostile"});
    fence_gaps();
    housekeeper_ = std::make_unique<Housekeeper>(*pool_, true);
  }

  // What lies between two sections belongs to nobody; a sanitizer that knows so sees an index run over an
  // end.
  void fence_gaps() {
#if defined(__SANITIZE_ADDRESS__)
    const Geometry& g = pool_->geometry;
    const auto fence = [](uint8_t* base, uint64_t from, uint64_t to) {
      __asan_poison_memory_region(base + from, to - from);
    };
    const auto after = [&](uint64_t offset, uint64_t bytes) {
      fence(pool_->index, offset + bytes, round_up(offset + bytes, 4096));
    };
    after(0, sizeof(Superblock));
    after(g.offset_processes, sizeof(ProcessRow) * g.process_limit);
    after(g.offset_counters, sizeof(CounterRow) * g.process_limit);
    after(g.offset_namespaces, sizeof(NamespaceRow) * g.namespace_limit);
    after(g.offset_shards, sizeof(ShardRow) * (g.shard_count + 1));
    after(g.offset_buckets, sizeof(Bucket) * g.buckets_per_shard * g.shard_count);
    after(g.offset_slots_hot, sizeof(SlotHot) * g.slot_count);
    after(g.offset_slots_cold, sizeof(SlotCold) * g.slot_count);
    after(g.offset_slabs, sizeof(SlabRow) * g.slab_count);
    after(g.offset_owners, sizeof(uint64_t) * g.unit_count);
    after(g.offset_pins, sizeof(uint16_t) * g.slot_count * g.process_limit);
    after(g.offset_reuse, sizeof(ReuseTable) + sizeof(uint64_t) * g.reuse_entries);
    const SegmentGeometry& place = g.segments[0];
    fence(pool_->maps[0].headers,
          place.header_offset + place.slab_count * g.units_per_slab * sizeof(ExtentHeader),
          place.data_offset);
#endif
  }

  bool is_trusted(const PinnedExtent& chunk) const {
    const uint64_t unit = pool_->unit_of_extent(chunk.extent);
    return plan_.trusts_all || plan_.slots.count(chunk.slot) || plan_.units.count(unit) ||
           plan_.slabs.count(pool_->slab_of_unit(unit));
  }

  void verify(const PinnedExtent& chunk, Key key) {
    if (pool_->byte_of_extent(chunk.extent) + chunk.size_bytes > pool_->data_span)
      wrong("outside the pool", chunk);
    if (first_wrong(pool_->readable_at(chunk.extent), chunk.size_bytes, key) == chunk.size_bytes) return;
    if (!is_trusted(chunk)) wrong("wrong bytes", chunk);
  }

  [[noreturn]] void wrong(const char* what, const PinnedExtent& chunk) {
    std::fprintf(stderr, "%s in slot %llu at unit %llu\n", what, static_cast<unsigned long long>(chunk.slot),
                 static_cast<unsigned long long>(pool_->unit_of_extent(chunk.extent)));
    _exit(kWrongStatus);
  }

  void look() {
    std::array<Key, kChunks> keys;
    for (uint64_t n = 0; n < kChunks; n++) keys[n] = key_of(n);
    count_leading(*pool_, keys.data(), keys.size());
    for (const Key& key : keys) is_sealed(*pool_, key);
  }

  void read_all() {
    for (uint64_t n = 0; n < kChunks + kNewChunks; n++) {
      const Key key = n < kChunks ? key_of(n) : key_of(n - kChunks, 1);
      PinnedExtent chunk;
      if (!pin_one(*pool_, key, &chunk)) continue;
      verify(chunk, key);
      unpin(*pool_, chunk.slot);
    }
    for (uint64_t n = 0; n < pinned_; n++) verify(prefix_[n], key_of(n));
  }

  void pin_prefix() {
    std::array<Key, kPrefix> keys;
    for (uint64_t n = 0; n < kPrefix; n++) keys[n] = key_of(n);
    pinned_ = pin_leading(*pool_, keys.data(), keys.size(), prefix_.data());
    for (uint64_t n = 0; n < pinned_; n++) verify(prefix_[n], keys[n]);
  }

  Outcome reserve(Key key, uint64_t bytes, uint32_t part, uint32_t parts, Reservation* out) {
    ReserveRequest request;
    request.key = key;
    request.size_bytes = bytes;
    request.part = part;
    request.parts = parts;
    request.deadline_ns = parts == 1 ? 0 : kSecond;  // Whoever asks for the key again may take it over.
    request.parent = find_parent(*pool_, key_of(key.lo % kChunks));
    return reserve_chunk(*pool_, request, out);
  }

  void open_much() {
    is_single_open_ = reserve(key_of(0, 2), 3'000, 0, 1, &single_) == Outcome::kReserved;
    is_part_open_ = reserve(key_of(1, 2), 8'000, 0, 2, &part_) == Outcome::kReserved;
    is_draft_open_ = allocate_draft(*pool_, 6'000, true, kDefaultTenant, true, &draft_) == Outcome::kReserved;
  }

  void put(uint64_t number) {
    const Key key = key_of(number, 1);
    std::vector<uint8_t> bytes(new_size_of(number));
    write_content(bytes.data(), 0, bytes.size(), key);
    Reservation r;
    ReserveRequest request;
    request.key = key;
    request.size_bytes = bytes.size();
    request.parent = find_parent(*pool_, key_of(number - 1, 1));
    request.ttl_ns = number % 5 == 0 ? 1 : 0;
    if (reserve_chunk(*pool_, request, &r) != Outcome::kReserved) return;
    if (pool_->byte_of_extent(r.extent) + r.size_bytes > pool_->data_span)
      wrong("a reservation outside the pool", {r.slot, r.extent, r.size_bytes});
    stream_copy(pool_->writable_at(r.extent), bytes.data(), bytes.size());
    seal_chunk(*pool_, r);
  }

  void store_many() {
    for (uint64_t n = 0; n < kNewChunks; n++) put(n);
  }

  void close_all() {
    if (is_single_open_) {
      Reservation rival;
      if (reserve(key_of(0, 2), 3'000, 0, 1, &rival) == Outcome::kReserved) discard_chunk(*pool_, rival);
      write_content(pool_->writable_at(single_.extent), 0, single_.size_bytes, key_of(0, 2));
      renew_chunk(*pool_, single_, kSecond);
      seal_chunk(*pool_, single_);
    }
    if (is_part_open_) {
      Reservation other;
      if (reserve(key_of(1, 2), 8'000, 1, 2, &other) == Outcome::kReserved) {
        write_content(pool_->writable_at(other.extent), 0, other.size_bytes, key_of(1, 2));
        seal_chunk(*pool_, other);
      }
      seal_chunk(*pool_, part_);
    }
    if (is_draft_open_) {
      ReserveRequest request;
      request.key = key_of(2, 2);
      request.size_bytes = draft_.size_bytes;
      const Outcome outcome = publish_draft(*pool_, draft_, request);
      if (outcome != Outcome::kStored && outcome != Outcome::kLost) discard_draft(*pool_, draft_);
    }
  }

  void remove() {
    for (uint64_t n = 0; n < kChunks; n += 3) remove_key(*pool_, key_of(n));
    for (uint64_t n = 0; n < kNewChunks; n += 5) put(n);
  }

  void tend() {
    if (pool_->is_live() && !housekeeper_->wait_ready(now_ns() + kReadyDeadlineNs)) _exit(kNeverReadyStatus);
    uint64_t cursor = 0;
    sweep(*pool_, pool_->geometry.slot_count, &cursor);
    recount_free_hints(*pool_);
    for (uint64_t n = 1; n < kNewChunks; n += 7) put(n);
  }

  // As a router does, a few changes at a time, and once more after something changed.
  void read_along() {
    ChangeScan scan(*pool_);
    std::vector<Change> changes;
    for (int n = 0; n < 3; n++, changes.clear()) scan.look(*pool_, kChunks / 2, &changes);
    put(1);
    while (!scan.look(*pool_, kChunks, &changes)) changes.clear();
    scan.told(*pool_);
  }

  void inspect() {
    statistics_json(*pool_, 0, true);
    read_along();
    check_pool(*pool_, true);
  }

  void rename() {
    const uint8_t digest[16] = {1};
    bump_namespace(*pool_, register_namespace(*pool_, digest, "tenant", 0));
    look();
  }

  void leave() {
    for (uint64_t n = 0; n < pinned_; n++) unpin(*pool_, prefix_[n].slot);
    pinned_ = 0;
    housekeeper_.reset();
    pool_.reset();
  }

  std::string folder_;
  const Plan& plan_;
  Files& files_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Housekeeper> housekeeper_;
  std::array<PinnedExtent, kPrefix> prefix_;
  uint64_t pinned_ = 0;
  Reservation single_, part_;
  Draft draft_;
  bool is_single_open_ = false, is_part_open_ = false, is_draft_open_ = false;
};

// How a child ended, in words.
std::string ending(pid_t child) {
  sigset_t ended;
  sigemptyset(&ended);
  sigaddset(&ended, SIGCHLD);
  const timespec limit{static_cast<time_t>(kDeadlineNs / kSecond), 0};
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (sigtimedwait(&ended, nullptr, &limit) >= 0 || errno != EAGAIN) continue;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return "hang";
  }
  if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
  switch (WEXITSTATUS(status)) {
    case 0:
      return "ok";
    case kRefusedStatus:
      return "refused";
    case kWrongStatus:
      return "wrong";
    case kNeverReadyStatus:
      return "never ready";
    default:
      return "exit " + std::to_string(WEXITSTATUS(status));
  }
}

// A pool with chunks of four sizes, some of them continuing others, some of them holes already.
void fill_pool(const std::string& folder, ChecksumPolicy checksum, uint64_t slot_count) {
  CreateOptions options;
  options.folder = folder;
  options.segments = {{"segment-0", Medium::kShm}};
  options.size_bytes = 1 << 20;
  options.unit_bytes = 1024;
  options.slab_bytes = 64 << 10;
  options.slot_count = slot_count;
  options.process_limit = 4;
  options.namespace_limit = 4;
  options.checksum = checksum;
  options.cooling_ns = kSecond;
  create_pool(options);
  const std::unique_ptr<Pool> pool = attach_pool({folder, "maker"});
  for (uint64_t n = 0; n < kChunks + 4; n++) {
    ReserveRequest request;
    request.key = key_of(n);
    request.size_bytes = size_of(n);
    if (n % 8 != 0) request.parent = find_parent(*pool, key_of(n - 1));
    Reservation r;
    if (reserve_chunk(*pool, request, &r) != Outcome::kReserved) fail("the sound pool is too small");
    write_content(pool->writable_at(r.extent), 0, r.size_bytes, request.key);
    if (seal_chunk(*pool, r) != Outcome::kStored) fail("the sound pool could not be filled");
    if (n >= kChunks)
      remove_key(*pool, request.key);
    else
      std::printf("chunk %llu %llu %llu\n", static_cast<unsigned long long>(n),
                  static_cast<unsigned long long>(r.slot),
                  static_cast<unsigned long long>(pool->unit_of_extent(r.extent)));
  }
}

void run(const std::string& folder, const std::string& checksum, uint64_t slot_count) {
  sigset_t ended;
  sigemptyset(&ended);
  sigaddset(&ended, SIGCHLD);
  sigprocmask(SIG_BLOCK, &ended, nullptr);
  fill_pool(folder, checksum == "always" ? ChecksumPolicy::kAlways : ChecksumPolicy::kBoundary, slot_count);
  Files files(folder);
  std::printf("ready\n");
  std::fflush(stdout);
  std::string line;
  while (std::getline(std::cin, line)) {
    const Plan plan = read_plan(line);
    const uint64_t begin = now_ns();
    const pid_t child = fork();
    if (child < 0) fail("cannot fork");
    if (child == 0) {
      Life(folder, plan, files).live();
      _exit(0);
    }
    const std::string end = ending(child);
    const uint64_t took_ms = (now_ns() - begin) / kMillisecond;
    files.put_back();
    std::printf("%llu %llu %s\n", static_cast<unsigned long long>(plan.number),
                static_cast<unsigned long long>(took_ms), end.c_str());
    std::fflush(stdout);
  }
}

}  // namespace

}  // namespace maru

int main(int argc, char** argv) {
  if (argc != 4) maru::fail("usage: hostile FOLDER boundary|always SLOT-COUNT < plans");
  try {
    maru::run(argv[1], argv[2], std::strtoull(argv[3], nullptr, 10));
  } catch (const maru::Failure& failure) {
    maru::fail(failure.kind() + ": " + failure.what());
  }
  return 0;
}
