#include "python_write.h"

#include "chunk_index.h"
#include "copy.h"
#include "eviction.h"
#include "python_view.h"
#include "shares.h"
#include "team.h"
#include "xxh3.h"

namespace maru {

namespace {

// One reserved chunk, or the reason why there is none.
struct PyReservation {
  Outcome outcome;
  WindowRef window;  // Null unless reserved.

  Window& open() const {
    if (!window) throw Failure("NotReserved", "nothing was reserved: look at .outcome before writing");
    window->need_open();
    return *window;
  }
};

// A whole prefix reserved in one call.
struct PyBatch {
  std::vector<Outcome> outcomes;
  std::vector<WindowRef> windows;  // Null where nothing was reserved.
  uint64_t part_bytes = 0;
};

struct PyDraft {
  WindowRef window;
};

void fill_part(ReserveRequest& request, uint64_t size, double deadline, bool device, uint32_t part,
               uint32_t parts) {
  request.size_bytes = size;
  request.deadline_ns = seconds_to_ns(deadline, "deadline");
  request.device = device;
  request.part = part;
  request.parts = parts;
}

uint64_t checked_size(nb::handle object) {
  int overflow = 0;
  const long long size = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  if (size == -1 && overflow == 0 && PyErr_Occurred()) throw nb::python_error();
  if (overflow > 0)
    throw Failure("BadSize", "no chunk has 2**63 bytes or more", {{"wanted_bytes", INT64_MAX}});
  if (overflow < 0 || size <= 0)
    throw Failure("BadSize", "a chunk has at least one byte; got " + std::to_string(size),
                  {{"wanted_bytes", size}});
  return static_cast<uint64_t>(size);
}

PyReservation reserve_as(const SessionRef& session, const ReserveRequest& request) {
  Reservation reservation;
  Outcome outcome;
  {
    MaybeRelease no_gil(true);
    outcome = reserve_chunk(session->pool(), request, &reservation);
  }
  if (outcome != Outcome::kReserved) return {outcome, nullptr};
  return {outcome, std::make_shared<Window>(session, reservation)};
}

PyReservation reserve(Handle& handle, nb::handle key, nb::handle size, nb::handle namespace_object,
                      nb::handle parent, nb::handle ttl, double deadline, bool device, uint32_t part,
                      uint32_t parts) {
  const SessionRef session = handle.session();
  ReserveRequest request = make_request(session->pool(), one_key(key), namespace_object, parent, ttl);
  fill_part(request, checked_size(size), deadline, device, part, parts);
  return reserve_as(session, request);
}

PyReservation reserve_brought(Handle& handle, nb::handle key, nb::handle size, nb::handle namespace_object,
                              nb::handle parent) {
  const SessionRef session = handle.session();
  ReserveRequest request = make_request(session->pool(), one_key(key), namespace_object, parent, nb::none());
  request.size_bytes = checked_size(size);
  request.brought = true;
  return reserve_as(session, request);
}

// Store a prefix chunk by chunk, each the next one's parent. After a chunk that found no room nothing of the
// prefix could be reached, so the rest is not tried: it would only push out what can be.
template <class StoreOne>
std::vector<Outcome> store_chain(Pool& pool, const PackedKeys& keys, ReserveRequest& request,
                                 StoreOne store_one) {
  std::vector<Outcome> outcomes;
  outcomes.reserve(keys.count());
  while (outcomes.size() < keys.count()) {
    request.key = keys.data()[outcomes.size()];
    outcomes.push_back(store_one(outcomes.size()));
    if (outcomes.back() == Outcome::kFull) {
      for (uint64_t i = outcomes.size(); i < keys.count(); i++) count_incoming(pool, keys.data()[i]);
      outcomes.resize(keys.count(), Outcome::kFull);
    } else {
      request.parent = find_parent(pool, request.key);
    }
  }
  return outcomes;
}

std::unique_ptr<PyBatch> reserve_many(Handle& handle, nb::handle keys_object, nb::handle size,
                                      nb::handle namespace_object, nb::handle parent, nb::handle ttl,
                                      double deadline, bool device, uint32_t part, uint32_t parts) {
  const SessionRef session = handle.session();
  const PackedKeys keys(keys_object);
  auto batch = std::make_unique<PyBatch>();
  ReserveRequest request = make_request(session->pool(), Key{}, namespace_object, parent, ttl);
  fill_part(request, checked_size(size), deadline, device, part, parts);
  std::vector<Reservation> reservations(keys.count());
  {
    MaybeRelease no_gil(true);
    batch->outcomes = store_chain(session->pool(), keys, request, [&](uint64_t i) {
      return reserve_chunk(session->pool(), request, &reservations[i]);
    });
  }
  for (uint64_t i = 0; i < keys.count(); i++)
    batch->windows.push_back(batch->outcomes[i] == Outcome::kReserved
                                 ? std::make_shared<Window>(session, reservations[i])
                                 : nullptr);
  return batch;
}

// Reserve, copy and seal, without the GIL.
Outcome put_bytes(Pool& pool, ReserveRequest& request, const void* data, uint64_t size) {
  request.size_bytes = size;
  Reservation r;
  const Outcome outcome = reserve_chunk(pool, request, &r);
  if (outcome != Outcome::kReserved) return outcome;
  MARU_POINT("put.before_copy");
  if (pool.geometry.checksum == ChecksumPolicy::kAlways) {
    r.hash = xxh3_64_copying(pool.writable_at(r.extent), data, size);
    r.is_hashed = true;
  } else {
    stream_copy_together(pool.copy_threads, pool.writable_at(r.extent), data, size);
  }
  MARU_POINT("put.after_copy");
  return seal_chunk(pool, r);
}

Outcome put(Handle& handle, nb::handle key, nb::handle data, nb::handle namespace_object, nb::handle parent,
            nb::handle ttl) {
  const SessionRef session = handle.session();
  const Bytes bytes(data);
  ReserveRequest request = make_request(session->pool(), one_key(key), namespace_object, parent, ttl);
  MaybeRelease no_gil(bytes.size() > kReleaseGilBytes);
  return put_bytes(session->pool(), request, bytes.data(), bytes.size());
}

nb::list put_many(Handle& handle, nb::handle keys_object, nb::sequence buffers, nb::handle namespace_object,
                  nb::handle parent, nb::handle ttl) {
  const SessionRef session = handle.session();
  const PackedKeys keys(keys_object);
  std::vector<std::unique_ptr<Bytes>> data;
  for (nb::handle item : buffers) data.push_back(std::make_unique<Bytes>(item));
  if (data.size() != keys.count())
    throw nb::value_error(("put_many got " + std::to_string(keys.count()) + " keys and " +
                           std::to_string(data.size()) + " buffers")
                              .c_str());
  ReserveRequest request = make_request(session->pool(), Key{}, namespace_object, parent, ttl);
  std::vector<Outcome> outcomes;
  {
    MaybeRelease no_gil(true);
    outcomes = store_chain(session->pool(), keys, request, [&](uint64_t i) {
      return put_bytes(session->pool(), request, data[i]->data(), data[i]->size());
    });
  }
  nb::list out;
  for (const Outcome outcome : outcomes) out.append(outcome);
  return out;
}

nb::object allocate(Handle& handle, nb::handle size, bool device, nb::handle namespace_object) {
  const SessionRef session = handle.session();
  const uint64_t bytes = checked_size(size);
  const ReserveRequest request =
      make_request(session->pool(), Key{}, namespace_object, nb::none(), nb::none());
  const uint32_t tenant = tenant_of(session->pool(), request.namespace_id);
  const bool wiped = session->pool().namespaces[request.namespace_id].flags.load() & kNamespaceWiped;
  Draft draft;
  Outcome outcome;
  {
    MaybeRelease no_gil(true);
    outcome = allocate_draft(session->pool(), bytes, device, tenant, wiped, &draft);
  }
  if (outcome != Outcome::kReserved) return nb::none();
  return nb::cast(PyDraft{std::make_shared<Window>(session, draft)});
}

Outcome publish(PyDraft& self, nb::handle key, nb::handle namespace_object, nb::handle parent, nb::handle ttl,
                bool allow_exports) {
  self.window->need_open();
  ReserveRequest request =
      make_request(self.window->session()->pool(), one_key(key), namespace_object, parent, ttl);
  request.size_bytes = self.window->size();
  self.window->need_no_exports(allow_exports);
  return self.window->publish(request);
}

// The pin is taken before the chunk can be evicted, so the view is the chunk that was just published.
nb::tuple publish_held(PyDraft& self, nb::handle key, nb::handle namespace_object, nb::handle parent,
                       nb::handle ttl, bool allow_exports) {
  self.window->need_open();
  const SessionRef session = self.window->session();
  ReserveRequest request = make_request(session->pool(), one_key(key), namespace_object, parent, ttl);
  request.size_bytes = self.window->size();
  self.window->need_no_exports(allow_exports);
  PinnedExtent held{};
  const Outcome outcome = self.window->publish(request, &held);
  const bool is_held = outcome == Outcome::kStored && held.size_bytes > 0;
  return nb::make_tuple(outcome, is_held ? make_view(session, held) : nb::none());
}

nb::list seal_batch(PyBatch& self, bool allow_exports) {
  for (const WindowRef& window : self.windows)
    if (window) {
      window->need_open();
      window->need_no_exports(allow_exports);
    }
  nb::list out;
  for (size_t i = 0; i < self.windows.size(); i++) {
    if (self.windows[i]) self.outcomes[i] = self.windows[i]->seal();
    out.append(self.outcomes[i]);
  }
  return out;
}

}  // namespace

void bind_windows(nb::module_& m);

void bind_writing(nb::module_& m) {
  bind_windows(m);
  const auto enter = [](nb::handle self) { return nb::borrow(self); };
  nb::class_<PyReservation>(
      m, "Reservation",
      "A chunk being written, from Pool.reserve(). Leaving its with block without seal() discards it.")
      .def_prop_ro(
          "outcome", [](const PyReservation& r) { return r.outcome; },
          "RESERVED, or why not: EXISTS, IN_FLIGHT, FULL, BUSY.")
      .def_prop_ro(
          "buffer",
          [](const PyReservation& r) {
            r.open();
            return make_buffer(r.window);
          },
          nb::sig("def buffer(self) -> WritableBuffer"),
          "The chunk's memory, or this part's slice of it. Raises NotReserved.")
      .def_prop_ro(
          "offset", [](const PyReservation& r) { return r.open().offset(); },
          "Where `buffer` begins in the pool's data, in bytes, as PinnedPrefix.extents() counts. Raises "
          "NotReserved.")
      .def(
          "seal",
          [](const PyReservation& r, bool allow_exports) {
            r.open().need_no_exports(allow_exports);
            return r.window->seal();
          },
          nb::arg("allow_exports") = false,
          "Publish: STORED (of several parts: this part is in), or LOST when the deadline passed and "
          "somebody took the key\n"
          "over, or the namespace was bumped. Ends the reservation. Raises BufferError while an array or "
          "tensor made from\n"
          "`buffer` lives, unless `allow_exports`; NotReserved.")
      .def(
          "discard",
          [](const PyReservation& r) {
            if (r.window) r.window->discard();
          },
          "Give it up; nobody sees it.")
      .def(
          "renew",
          [](const PyReservation& r, double deadline) {
            return r.open().renew(seconds_to_ns(deadline, "deadline"));
          },
          nb::arg("deadline") = 30.0,
          "Move the deadline to `deadline` seconds from now. False: it was taken over already.")
      .def("__enter__", enter, nb::sig("def __enter__(self) -> Reservation"))
      .def(
          "__exit__",
          [](PyReservation& r, nb::args) {
            if (r.window) r.window->discard();
          },
          nb::sig("def __exit__(self, *args: object) -> None"));

  nb::class_<PyBatch>(m, "ReservationBatch", "A whole prefix being written, from Pool.reserve_many().")
      .def("__len__", [](const PyBatch& b) { return b.outcomes.size(); })
      .def_prop_ro(
          "outcomes",
          [](const PyBatch& b) {
            nb::list l;
            for (Outcome o : b.outcomes) l.append(o);
            return l;
          },
          nb::sig("def outcomes(self) -> list[Outcome]"), "One outcome a key, in order.")
      .def_prop_ro(
          "buffers",
          [](const PyBatch& b) {
            nb::list l;
            for (const WindowRef& w : b.windows) l.append(w ? make_buffer(w) : nb::none());
            return l;
          },
          nb::sig("def buffers(self) -> list[WritableBuffer | None]"),
          "Memory of each reserved chunk; None for the others.")
      .def_prop_ro(
          "offsets",
          [](const PyBatch& b) {
            nb::list l;
            for (const WindowRef& w : b.windows) {
              if (w) w->need_open();
              l.append(w ? nb::cast(w->offset()) : nb::none());
            }
            return l;
          },
          nb::sig("def offsets(self) -> list[int | None]"),
          "Where each of `buffers` begins in the pool's data, in bytes. Raises NotReserved when it ended.")
      .def("seal", &seal_batch, nb::arg("allow_exports") = false,
           nb::sig("def seal(self, allow_exports: bool = False) -> list[Outcome]"),
           "Publish all that was reserved; returns one outcome a key. Raises BufferError, before sealing "
           "any, while an export lives.")
      .def(
          "discard",
          [](PyBatch& b) {
            for (const WindowRef& w : b.windows)
              if (w) w->discard();
          },
          "Give all of it up.")
      .def("__enter__", enter, nb::sig("def __enter__(self) -> ReservationBatch"))
      .def(
          "__exit__",
          [](PyBatch& b, nb::args) {
            for (const WindowRef& w : b.windows)
              if (w) w->discard();
          },
          nb::sig("def __exit__(self, *args: object) -> None"));

  nb::class_<PyDraft>(m, "Draft",
                      "Memory allocated before it has a name, from Pool.allocate(). Goes back when dropped, "
                      "or when its process dies.")
      .def_prop_ro(
          "buffer", [](const PyDraft& d) { return make_buffer(d.window); },
          nb::sig("def buffer(self) -> WritableBuffer"),
          "The draft's memory. Raises NotReserved after publish or discard.")
      .def_prop_ro(
          "size", [](const PyDraft& d) { return d.window->size(); }, "Size in bytes.")
      .def_prop_ro(
          "offset",
          [](const PyDraft& d) {
            d.window->need_open();
            return d.window->offset();
          },
          "Where it begins in the pool's data, in bytes, as PinnedPrefix.extents() counts. Raises "
          "NotReserved.")
      .def("publish", &publish, nb::arg("key"), nb::arg("namespace").none() = nb::none(),
           nb::arg("parent").none() = nb::none(), nb::arg("ttl").none() = nb::none(),
           nb::arg("allow_exports") = false,
           nb::sig(
               "def publish(self, key: typing_extensions.Buffer, namespace: Namespace | None = None, parent: "
               "typing_extensions.Buffer | None = None, ttl: float | None = None, allow_exports: bool = "
               "False) -> Outcome"),
           "Name and seal it: STORED or LOST end the draft; after EXISTS, IN_FLIGHT, FULL or BUSY it is "
           "still yours.\n"
           "Raises BufferError while an array or tensor made from `buffer` lives, unless `allow_exports`.")
      .def("publish_held", &publish_held, nb::arg("key"), nb::arg("namespace").none() = nb::none(),
           nb::arg("parent").none() = nb::none(), nb::arg("ttl").none() = nb::none(),
           nb::arg("allow_exports") = false,
           nb::sig("def publish_held(self, key: typing_extensions.Buffer, namespace: Namespace | None = "
                   "None, parent: "
                   "typing_extensions.Buffer | None = None, ttl: float | None = None, allow_exports: bool = "
                   "False) -> tuple[Outcome, memoryview | None]"),
           "As publish, and what was STORED comes back as a view: pinned from before anybody could evict it.")
      .def(
          "discard", [](const PyDraft& d) { d.window->discard(); }, "Give the memory back.")
      .def("__enter__", enter, nb::sig("def __enter__(self) -> Draft"))
      .def(
          "__exit__", [](PyDraft& d, nb::args) { d.window->discard(); },
          nb::sig("def __exit__(self, *args: object) -> None"));
}

#define MARU_WRITE_SIG                                                                                       \
  "namespace: Namespace | None = None, parent: typing_extensions.Buffer | None = None, ttl: float | None = " \
  "None"
#define MARU_RESERVE_SIG \
  MARU_WRITE_SIG ", deadline: float = 30.0, device: bool = False, part: int = 0, parts: int = 1"

void bind_write_methods(nb::class_<Handle>& pool) {
  pool.def("reserve", &reserve, nb::arg("key"), nb::arg("size"), nb::arg("namespace").none() = nb::none(),
           nb::arg("parent").none() = nb::none(), nb::arg("ttl").none() = nb::none(),
           nb::arg("deadline") = 30.0, nb::arg("device") = false, nb::arg("part") = 0, nb::arg("parts") = 1,
           nb::sig("def reserve(self, key: typing_extensions.Buffer, size: int, " MARU_RESERVE_SIG
                   ") -> Reservation"),
           "Reserve memory for one chunk of `size` bytes under `key`. Look at .outcome: RESERVED, EXISTS, "
           "IN_FLIGHT, FULL, BUSY.\n\n"
           "Past `deadline` seconds a rival may take the key over (never the memory). `part` of `parts`: "
           "several processes\n"
           "write one chunk; the same key, size and parts joins, and .buffer is that slice (size must "
           "divide). `device`: a\n"
           "device may write the memory, so it rests 30 s after this process's death. Raises BadKey, "
           "BadSize, ChunkTooLarge,\n"
           "NotAttached.")
      .def("_reserve_brought", &reserve_brought, nb::arg("key"), nb::arg("size"), nb::arg("namespace").none(),
           nb::arg("parent").none(),
           nb::sig("def _reserve_brought(self, key: typing_extensions.Buffer, size: int, "
                   "namespace: Namespace | None, parent: typing_extensions.Buffer | None) -> Reservation"),
           "As reserve, for a chunk that comes from the pool that this one is in front of: a ChangeScan says "
           "so.")
      .def("reserve_many", &reserve_many, nb::arg("keys"), nb::arg("size"),
           nb::arg("namespace").none() = nb::none(), nb::arg("parent").none() = nb::none(),
           nb::arg("ttl").none() = nb::none(), nb::arg("deadline") = 30.0, nb::arg("device") = false,
           nb::arg("part") = 0, nb::arg("parts") = 1,
           nb::sig("def reserve_many(self, keys: typing_extensions.Buffer, size: int, " MARU_RESERVE_SIG
                   ") -> ReservationBatch"),
           "Reserve a whole prefix in one call: packed keys in chain order, `size` bytes each; every key is "
           "the next one's parent.")
      .def("put", &put, nb::arg("key"), nb::arg("data"), nb::arg("namespace").none() = nb::none(),
           nb::arg("parent").none() = nb::none(), nb::arg("ttl").none() = nb::none(),
           nb::sig(
               "def put(self, key: typing_extensions.Buffer, data: typing_extensions.Buffer, " MARU_WRITE_SIG
               ") -> Outcome"),
           "Store one chunk: reserve, copy with streaming stores, seal. STORED, EXISTS, IN_FLIGHT, FULL, "
           "BUSY or LOST; never\n"
           "raises for these. `data` is any contiguous buffer. Raises BadKey, BadSize, ChunkTooLarge, "
           "NotAttached.")
      .def(
          "put_many", &put_many, nb::arg("keys"), nb::arg("buffers"),
          nb::arg("namespace").none() = nb::none(), nb::arg("parent").none() = nb::none(),
          nb::arg("ttl").none() = nb::none(),
          nb::sig("def put_many(self, keys: typing_extensions.Buffer, buffers: "
                  "collections.abc.Sequence[typing_extensions.Buffer], " MARU_WRITE_SIG ") -> list[Outcome]"),
          "Store a whole prefix in one call: packed keys in chain order, one buffer each; every key is the "
          "next one's parent.")
      .def("allocate", &allocate, nb::arg("size"), nb::arg("device") = false,
           nb::arg("namespace") = nb::none(),
           nb::sig(
               "def allocate(self, size: int, device: bool = False, namespace: Namespace | None = None) -> "
               "Draft | None"),
           "Memory now, a name later (Draft.publish). `namespace`: on whose tenant's account it is until "
           "then. "
           "None when\n"
           "nothing can be evicted for it. Raises BadSize, ChunkTooLarge.");
}

}  // namespace maru
