#include <tuple>

#include "check.h"
#include "chunk_index.h"
#include "cleaner.h"
#include "creation.h"
#include "eviction.h"
#include "pins.h"
#include "process_table.h"
#include "python_namespace.h"
#include "python_view.h"
#include "python_write.h"
#include "reading.h"
#include "recut.h"
#include "segments.h"
#include "space.h"
#include "statistics.h"

namespace maru {

namespace {

constexpr uint64_t kWaitPauseMinNs = 20'000, kWaitPauseMaxNs = 2 * kMillisecond;

// A caller's bitmap of namespaces; the whole of them when there is none. Holds the bytes while it lives.
class Mine {
 public:
  explicit Mine(std::optional<nb::bytes> bits) : bits_(std::move(bits)) {
    if (bits_ && bits_->size() > 0) set_ = {static_cast<const uint8_t*>(bits_->data()), bits_->size()};
  }
  Mine(const Mine&) = delete;
  const NamespaceSet* set() const { return bits_ ? &set_ : nullptr; }

 private:
  std::optional<nb::bytes> bits_;
  static constexpr uint8_t kNone = 0;
  NamespaceSet set_{&kNone, 1};
};

uint64_t lookup(Handle& handle, nb::handle keys_object, std::optional<nb::bytes> namespaces) {
  Pool& pool = handle.pool();
  const PackedKeys keys(keys_object);
  if (!pool.is_live()) return 0;
  const Mine mine(std::move(namespaces));
  const uint64_t found = mine.set() ? count_leading(pool, keys.data(), keys.count(), *mine.set())
                                    : count_leading(pool, keys.data(), keys.count());
  pool.count(Counter::kLookupKeys, keys.count());
  pool.count(Counter::kHitKeys, found);
  return found;
}

bool exists(Handle& handle, nb::handle key, std::optional<nb::bytes> namespaces) {
  Pool& pool = handle.pool();
  const Mine mine(std::move(namespaces));
  if (!pool.is_live()) return false;
  return mine.set() ? is_sealed(pool, one_key(key), *mine.set()) : is_sealed(pool, one_key(key));
}

bool being_written(Handle& handle, nb::handle key, std::optional<nb::bytes> namespaces) {
  Pool& pool = handle.pool();
  const Mine mine(std::move(namespaces));
  return mine.set() ? is_reserved(pool, one_key(key), *mine.set()) : is_reserved(pool, one_key(key));
}

nb::object get(Handle& handle, nb::handle key_object) {
  const SessionRef& session = handle.session();
  Pool& pool = session->pool();
  const Key key = one_key(key_object);
  PinnedExtent chunk;
  if (!pool.is_live()) return nb::none();
  bool found;
  if (pool.geometry.checksum == ChecksumPolicy::kAlways) {
    const SessionRef keep = session;
    MaybeRelease no_gil(true);
    found = pin_one(pool, key, &chunk);
  } else {
    found = pin_one(pool, key, &chunk);
  }
  return found ? make_view(session, chunk) : nb::none();
}

uint64_t read_into(Handle& handle, nb::handle keys_object, nb::sequence buffers) {
  const SessionRef session = handle.session();
  const PackedKeys keys(keys_object);
  std::vector<std::unique_ptr<WritableBytes>> held;
  std::vector<ReadTarget> targets;
  for (nb::handle item : buffers) {
    held.push_back(std::make_unique<WritableBytes>(item));
    targets.push_back({held.back()->data(), held.back()->size()});
  }
  if (targets.size() != keys.count())
    throw nb::value_error(("read_into got " + std::to_string(keys.count()) + " keys and " +
                           std::to_string(targets.size()) + " buffers")
                              .c_str());
  MaybeRelease no_gil(true);
  return read_leading(session->pool(), keys.data(), keys.count(), targets.data());
}

// True once the key is sealed; false when nobody is writing it (any more), or the time is over.
bool wait_for(Pool& pool, Key key, uint64_t deadline_ns) {
  for (uint64_t pause = kWaitPauseMinNs; pool.is_live(); pause = std::min(pause * 2, kWaitPauseMaxNs)) {
    if (is_sealed(pool, key)) return true;
    if (!is_reserved(pool, key)) return is_sealed(pool, key);
    const uint64_t now = now_ns();
    if (now >= deadline_ns) return false;
    sleep_ns(std::min(pause, deadline_ns - now));
  }
  return false;
}

bool wait(Handle& handle, nb::handle key_object, double timeout) {
  const SessionRef session = handle.session();
  const Key key = one_key(key_object);
  const uint64_t deadline = now_ns() + seconds_to_ns(timeout, "timeout");
  while (true) {
    // In short turns, so that Ctrl-C is heard.
    const uint64_t now = now_ns();
    const uint64_t turn = std::min(deadline, now + 100 * kMillisecond);
    bool sealed, over;
    {
      MaybeRelease no_gil(true);
      sealed = wait_for(session->pool(), key, turn);
      over =
          sealed || now_ns() >= deadline || !session->pool().is_live() || !is_reserved(session->pool(), key);
    }
    if (over) return sealed || is_sealed(session->pool(), key);
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

bool wait_ready(Handle& handle, double timeout) {
  const SessionRef session = handle.session();
  const uint64_t deadline = now_ns() + seconds_to_ns(timeout, "timeout");
  while (true) {
    bool ready;
    {
      MaybeRelease no_gil(true);
      ready = session->wait_ready(std::min(deadline, now_ns() + 100 * kMillisecond));
    }
    if (ready || now_ns() >= deadline || session->is_stopped()) return ready;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

std::vector<std::string> check(Handle& handle, bool verify_bytes) {
  const SessionRef session = handle.session();
  MaybeRelease no_gil(true);
  return check_pool(session->pool(), verify_bytes);
}

uint32_t reap(Handle& handle) {
  const SessionRef session = handle.session();
  MaybeRelease no_gil(true);
  if (!session->pool().is_live()) return 0;
  map_new_segments(session->pool());
  lose_cut_off_segments(session->pool());
  if (session->pool().reads_only) return 0;  // Whoever may write cleans up.
  give_up_recut(session->pool(), false);
  const uint32_t cleaned = clean_dead_processes(session->pool());
  uint64_t cursor = 0;
  sweep(session->pool(), session->pool().geometry.slot_count, &cursor);
  return cleaned;
}

bool remove(Handle& handle, nb::handle key, std::optional<nb::bytes> namespaces) {
  Pool& pool = handle.pool();
  refuse_readers(pool, "removes nothing");
  const Mine mine(std::move(namespaces));
  return pool.is_live() && remove_key(pool, one_key(key), mine.set());
}

// The namespaces in use: (number, digest, tenant, ns that a chunk lives, flags). One with a torn registration
// is not.
nb::list namespace_rows(Handle& handle) {
  Pool& pool = handle.pool();
  nb::list out;
  for (uint32_t id = 0; id < pool.geometry.namespace_limit; id++) {
    const NamespaceRow& row = pool.namespaces[id];
    if (row.word.load(std::memory_order_acquire) == 0) continue;
    const std::string tenant(row.tenant, strnlen(row.tenant, sizeof row.tenant));
    out.append(nb::make_tuple(id, nb::bytes(row.digest, sizeof row.digest),
                              nb::bytes(tenant.data(), tenant.size()), row.ttl_ns.load(), row.flags.load()));
  }
  return out;
}

}  // namespace

void bind_pool(nb::module_& m) {
  nb::class_<Handle> pool(m, "PoolCore", "The native half of maru.Pool.");
  pool.def(
          "__init__",
          [](Handle* self, std::string folder, std::string process_name, bool populate, double lease,
             std::optional<std::pair<uint32_t, uint64_t>> adopt, uint32_t copy_threads, bool reads_only) {
            AttachOptions options{std::move(folder), std::move(process_name)};
            options.copy_threads = copy_threads;
            options.reads_only = reads_only;
            options.lease_ns = seconds_to_ns(lease, "lease");
            if (adopt) std::tie(options.adopt_row, options.adopt_epoch) = *adopt;
            if (adopt && options.lease_ns == 0) throw nb::value_error("adopt needs a lease");
            new (self) Handle(std::move(options), populate);
          },
          nb::arg("folder"), nb::arg("process_name"), nb::arg("populate"), nb::kw_only(),
          nb::arg("lease") = 0.0, nb::arg("adopt") = nb::none(), nb::arg("copy_threads") = 1,
          nb::arg("reads_only") = false,
          "Attach to the pool in `folder`. Raises PoolNotFound, PoolMismatch, PoolBusy.\n\n"
          "`lease`: seconds that this row lives on without its process, for another host. `adopt`: the "
          "(number, "
          "epoch) of such a\n"
          "row that a process before us left. Raises LeaseEnded when it is not there any more. "
          "`copy_threads`: of one large copy, at most. `reads_only`: the segments are opened and mapped "
          "without "
          "write permission;\n"
          "what would be stored is answered FULL, what would be removed or changed raises ReadsOnly.")
      .def("_row", &Handle::row, "Number of our row in the process table, and its epoch.")
      .def(
          "_renew_lease",
          [](Handle& handle, double seconds) { handle.renew(seconds_to_ns(seconds, "lease")); },
          nb::arg("seconds"), "The row lives so many seconds from now, 600 at most. Raises NotAttached.")
      .def("_leave_behind", &Handle::leave_behind,
           "Let go of the row with everything it holds, for the next process to adopt within its lease.")
      .def("lookup", &lookup, nb::arg("keys"), nb::kw_only(), nb::arg("namespaces").none() = nb::none(),
           nb::sig("def lookup(self, keys: typing_extensions.Buffer, *, namespaces: bytes | None = None) -> "
                   "int"),
           "Count the leading chunks of `keys` (n x 16 bytes) that are sealed and readable now.\n\n"
           "Only a hint: another process may evict before you return. Pin, then read. `namespaces`: a bitmap "
           "of their numbers,\n"
           "bit n % 8 of byte n // 8; chunks of all others count as absent. Raises BadKey, NotAttached.")
      .def("exists", &exists, nb::arg("key"), nb::kw_only(), nb::arg("namespaces").none() = nb::none(),
           nb::sig("def exists(self, key: typing_extensions.Buffer, *, namespaces: bytes | None = None) -> "
                   "bool"),
           "Is this one chunk sealed and readable now? A hint; `namespaces` as of lookup.")
      .def("being_written", &being_written, nb::arg("key"), nb::kw_only(),
           nb::arg("namespaces").none() = nb::none(),
           nb::sig("def being_written(self, key: typing_extensions.Buffer, *, namespaces: bytes | None = "
                   "None) -> bool"),
           "Is somebody writing this one chunk now? A hint: whoever writes may die, or be too late. "
           "`namespaces` as of lookup.\n"
           "Raises BadKey, NotAttached.")
      .def(
          "pin",
          [](Handle& handle, nb::handle keys, std::optional<nb::bytes> namespaces) {
            const Mine mine(std::move(namespaces));
            return std::make_unique<PinnedPrefix>(handle.session(), PackedKeys(keys), mine.set());
          },
          nb::arg("keys"), nb::kw_only(), nb::arg("namespaces").none() = nb::none(),
          nb::sig("def pin(self, keys: typing_extensions.Buffer, *, namespaces: bytes | None = None) -> "
                  "PinnedPrefix"),
          "Pin the leading run of `keys` that is there; use as a context manager. `namespaces` as of lookup. "
          "Raises BadKey,\n"
          "NotAttached.")
      .def("get", &get, nb::arg("key"),
           nb::sig("def get(self, key: typing_extensions.Buffer) -> memoryview | None"),
           "A read-only view of one chunk in place, or None. The chunk stays pinned as long as the view or "
           "anything made from\n"
           "it lives. Raises BadKey, NotAttached.")
      .def("read_into", &read_into, nb::arg("keys"), nb::arg("buffers"),
           nb::sig("def read_into(self, keys: typing_extensions.Buffer, buffers: "
                   "collections.abc.Sequence[typing_extensions.Buffer]) -> int"),
           "Copy the leading run of `keys` that is there into `buffers`, a writable one of its chunk's size "
           "for "
           "each key;\n"
           "returns how many chunks arrived whole. Buffers after those may hold anything.\n\n"
           "With `checksum=always` the bytes are compared on the way: faster than pinning, which looks at "
           "all of "
           "them first.\n"
           "Large reads are shared by the `copy_threads` of the pool's URL. Raises BadKey, BadSize for a "
           "buffer of "
           "another size\n"
           "(nothing was copied), BufferError for one that is read-only, NotAttached.")
      .def("wait", &wait, nb::arg("key"), nb::arg("timeout"),
           nb::sig("def wait(self, key: typing_extensions.Buffer, timeout: float) -> bool"),
           "Wait until somebody seals `key` (True) or gives it up (False), at most `timeout` seconds.")
      .def("remove", &remove, nb::arg("key"), nb::kw_only(), nb::arg("namespaces").none() = nb::none(),
           nb::sig("def remove(self, key: typing_extensions.Buffer, *, namespaces: bytes | None = None) -> "
                   "bool"),
           "Remove one chunk. False when it is absent, or pinned by somebody: then nothing changed. "
           "`namespaces` as of lookup. Raises BadKey, ReadsOnly, NotAttached.")
      .def("_namespace_rows", &namespace_rows,
           nb::sig("def _namespace_rows(self) -> list[tuple[int, bytes, bytes, int, int]]"),
           "The namespaces in use: number, digest (16 bytes), tenant (UTF-8), time to live in ns (0: none), "
           "flags.")
      .def("reap", &reap,
           "Clean up now after processes that died, and give up segments whose file was cut off; returns how "
           "many "
           "processes. The housekeeper does it by itself.")
      .def("check", &check, nb::arg("verify_bytes") = true,
           nb::sig("def check(self, verify_bytes: bool = True) -> list[str]"),
           "Look at every invariant of the pool; returns what is wrong, in words. Empty is good.")
      .def("wait_ready", &wait_ready, nb::arg("timeout"),
           nb::sig("def wait_ready(self, timeout: float) -> bool"),
           "Wait until all memory that the medium gives is real and touched in this process, so that the "
           "first use of a chunk is\n"
           "as fast as the next. False when `timeout` seconds did not suffice.")
      .def(
          "prefer_numa_node", &Handle::prefer_numa_node, nb::arg("node").none(),
          nb::sig("def prefer_numa_node(self, node: int | None) -> None"),
          "Take memory for new chunks from this NUMA node's segments first, as long as they have room; None: "
          "from all in turn.\n"
          "Holds for this handle, in a forked child too. What is evicted does not depend on it. Raises "
          "ValueError, NotAttached.")
      .def("close", &Handle::close,
           "Let go of the pool. Views that live keep their chunks; everything else raises NotAttached.")
      .def_prop_ro("closed", &Handle::closed, "True after close().")
      .def_prop_ro(
          "destroyed", [](Handle& handle) { return !handle.closed() && !handle.session()->pool().is_live(); },
          "True once somebody destroyed the pool under its users: everything is a miss from then on.")
      .def_prop_ro("folder", &Handle::folder, "Where the pool's index lies.")
      .def(
          "_statistics",
          [](Handle& handle) {
            const SessionRef session = handle.session();
            std::string text;
            {
              MaybeRelease no_gil(true);
              text = statistics_json(session->pool(), session->ready_state().populated_bytes,
                                     session->ready_state().ready);
            }
            return nb::bytes(text.data(), text.size());
          },
          nb::sig("def _statistics(self) -> bytes"), "The pool's figures as JSON text in UTF-8.")
      .def(
          "_count",
          [](Handle& handle, const std::string& name, uint64_t by) {
            for (uint32_t c = 0; c < static_cast<uint32_t>(Counter::kCount); c++)
              if (name == kCounterNames[c])
                return handle.session()->pool().count(static_cast<Counter>(c), by);
            throw nb::value_error(("there is no counter named " + name).c_str());
          },
          nb::arg("name"), nb::arg("by") = 1, nb::sig("def _count(self, name: str, by: int = 1) -> None"),
          "Add to one of the pool's counters what only a door can know.")
      .def("_start_tally", &Handle::start_tally,
           "Count by namespace what this process stores, hits and removes. Before anybody else uses the "
           "handle.")
      .def(
          "_tally",
          [](Handle& handle) {
            nb::list out;
            for (const TallyTaken& one : handle.take_tally())
              out.append(nb::make_tuple(
                  nb::bytes(one.digest.data(), one.digest.size()),
                  nb::steal(PyUnicode_DecodeUTF8(one.tenant.data(),
                                                 static_cast<Py_ssize_t>(one.tenant.size()), "replace")),
                  static_cast<uint32_t>(one.kind), one.calls, one.chunks, one.bytes));
            return out;
          },
          nb::sig("def _tally(self) -> list[tuple[bytes, str, int, int, int, int]]"),
          "What was counted since the last time: namespace's digest, tenant, kind (0 stored, 1 hit, 2 "
          "removed), "
          "calls, chunks, bytes.")
      .def(
          "_tell_key_pins",
          [](Handle& handle, uint32_t count, uint64_t oldest_age_ns) {
            Pool& p = handle.session()->pool();
            ProcessRow& row = p.processes[p.me];
            row.key_pins.store(count);
            row.key_pin_ns.store(count ? now_ns() - oldest_age_ns : 0);
          },
          nb::sig("def _tell_key_pins(self, count: int, oldest_age_ns: int) -> None"),
          "Show people how many of this process's pins nobody has an address of.")
      .def(
          "_data_range",
          [](Handle& handle) {
            Pool& p = handle.pool();
            return nb::make_tuple(reinterpret_cast<uintptr_t>(p.writable),
                                  reinterpret_cast<uintptr_t>(p.readable), p.data_span);
          },
          nb::sig("def _data_range(self) -> tuple[int, int, int]"),
          "Addresses of the read-write and read-only maps, and their size in bytes.");
  bind_write_methods(pool);
  bind_namespace_methods(pool);
}

}  // namespace maru
