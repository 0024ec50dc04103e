#include "python_view.h"

#include "pins.h"

namespace maru {

namespace {

// A raw CPython type: creating one is a malloc and a few stores, which is what keeps a `get` below a
// microsecond.
struct ViewObject {
  PyObject_HEAD SessionRef session;
  uint64_t slot;
  const uint8_t* data;
  Py_ssize_t size;
};

// Several chunks that lie side by side, each with a pin.
struct SpanObject {
  PyObject_HEAD SessionRef session;
  std::vector<uint64_t> slots;
  const uint8_t* data;
  Py_ssize_t size;
};

PyTypeObject* view_type = nullptr;
PyTypeObject* span_type = nullptr;

int view_get_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  auto* view = reinterpret_cast<ViewObject*>(self);
  return PyBuffer_FillInfo(buffer, self, const_cast<uint8_t*>(view->data), view->size, 1, flags);
}

void view_dealloc(PyObject* self) {
  auto* view = reinterpret_cast<ViewObject*>(self);
  if (!view->session->is_forked()) unpin(view->session->pool(), view->slot);
  std::destroy_at(&view->session);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot view_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(view_get_buffer)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(view_dealloc)},
                            {0, nullptr}};
PyType_Spec view_spec = {"maru._native.View", sizeof(ViewObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, view_slots};

int span_get_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  auto* span = reinterpret_cast<SpanObject*>(self);
  return PyBuffer_FillInfo(buffer, self, const_cast<uint8_t*>(span->data), span->size, 1, flags);
}

void span_dealloc(PyObject* self) {
  auto* span = reinterpret_cast<SpanObject*>(self);
  if (!span->session->is_forked())
    for (const uint64_t slot : span->slots) unpin(span->session->pool(), slot);
  std::destroy_at(&span->slots);
  std::destroy_at(&span->session);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot span_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(span_get_buffer)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(span_dealloc)},
                            {0, nullptr}};
PyType_Spec span_spec = {"maru._native.Span", sizeof(SpanObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, span_slots};

// `chunks` lie side by side and are pinned already; takes over the pins.
nb::object make_span(const SessionRef& session, const PinnedExtent* chunks, uint64_t count) {
  PyObject* object = span_type->tp_alloc(span_type, 0);
  if (!object) {
    for (uint64_t n = 0; n < count; n++) unpin(session->pool(), chunks[n].slot);
    throw nb::python_error();
  }
  auto* span = reinterpret_cast<SpanObject*>(object);
  new (&span->session) SessionRef(session);
  new (&span->slots) std::vector<uint64_t>();
  for (uint64_t n = 0; n < count; n++) {
    span->slots.push_back(chunks[n].slot);
    span->size += static_cast<Py_ssize_t>(chunks[n].size_bytes);
  }
  span->data = session->pool().readable_at(chunks[0].extent);
  PyObject* memory = PyMemoryView_FromObject(object);
  Py_DECREF(object);
  if (!memory) throw nb::python_error();
  return nb::steal(memory);
}

}  // namespace

nb::object make_view(const SessionRef& session, const PinnedExtent& chunk) {
  PyObject* object = view_type->tp_alloc(view_type, 0);
  if (!object) {
    unpin(session->pool(), chunk.slot);
    throw nb::python_error();
  }
  auto* view = reinterpret_cast<ViewObject*>(object);
  new (&view->session) SessionRef(session);
  view->slot = chunk.slot;
  view->data = session->pool().readable_at(chunk.extent);
  view->size = static_cast<Py_ssize_t>(chunk.size_bytes);
  PyObject* memory = PyMemoryView_FromObject(object);
  Py_DECREF(object);
  if (!memory) throw nb::python_error();
  return nb::steal(memory);
}

PinnedPrefix::PinnedPrefix(SessionRef session, const PackedKeys& keys, const NamespaceSet* mine)
    : session_(std::move(session)) {
  chunks_.resize(keys.count());
  Pool& pool = session_->pool();
  if (!pool.is_live()) {
    chunks_.clear();
    return;
  }
  MaybeRelease no_gil(pool.geometry.checksum == ChecksumPolicy::kAlways);
  chunks_.resize(mine ? pin_leading(pool, keys.data(), keys.count(), chunks_.data(), *mine)
                      : pin_leading(pool, keys.data(), keys.count(), chunks_.data()));
  count_ = chunks_.size();
}

void PinnedPrefix::need_open() const {
  if (!open_) throw nb::value_error("this pinned prefix was released; read it inside its with block");
}

uint64_t PinnedPrefix::byte_count() const {
  uint64_t sum = byte_count_;
  for (const PinnedExtent& chunk : chunks_) sum += chunk.size_bytes;
  return sum;
}

nb::list PinnedPrefix::views() const {
  need_open();
  if (session_->is_forked())
    throw nb::value_error("this prefix was pinned before fork; pin it again in this process");
  nb::list out;
  for (const PinnedExtent& chunk : chunks_) {
    if (!pin_again(session_->pool(), chunk.slot))
      throw Failure("TooManyPins", "one chunk has 60,000 live views in this process; drop some");
    out.append(make_view(session_, chunk));
  }
  return out;
}

nb::list PinnedPrefix::spans(uint64_t first, uint64_t count) const {
  need_open();
  if (session_->is_forked())
    throw nb::value_error("this prefix was pinned before fork; pin it again in this process");
  if (first > chunks_.size() || count > chunks_.size() - first)
    throw nb::index_error("the prefix has fewer chunks");
  Pool& pool = session_->pool();
  nb::list out;
  for (uint64_t begin = first, end = first + count, next = first; next < end; begin = next) {
    uint64_t byte = pool.byte_of_extent(chunks_[begin].extent);
    do {
      if (!pin_again(pool, chunks_[next].slot)) {
        while (next-- > begin) unpin(pool, chunks_[next].slot);
        throw Failure("TooManyPins", "one chunk has 60,000 live views in this process; drop some");
      }
      byte += chunks_[next++].size_bytes;
    } while (next < end && pool.byte_of_extent(chunks_[next].extent) == byte);
    out.append(make_span(session_, &chunks_[begin], next - begin));
  }
  return out;
}

nb::bytes PinnedPrefix::extents() const {
  need_open();
  PyObject* out = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(chunks_.size() * 16));
  if (!out) throw nb::python_error();
  auto* words = reinterpret_cast<uint64_t*>(PyBytes_AS_STRING(out));
  for (const PinnedExtent& chunk : chunks_) {
    *words++ = session_->pool().byte_of_extent(chunk.extent);
    *words++ = chunk.size_bytes;
  }
  return nb::steal<nb::bytes>(out);
}

nb::bytes PinnedPrefix::stamps() const {
  need_open();
  PyObject* out = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(chunks_.size() * 16));
  if (!out) throw nb::python_error();
  auto* words = reinterpret_cast<uint64_t*>(PyBytes_AS_STRING(out));
  for (const PinnedExtent& chunk : chunks_) {
    *words++ = chunk.slot;
    *words++ = slot_generation(session_->pool().hot[chunk.slot].word.load());
  }
  return nb::steal<nb::bytes>(out);
}

void PinnedPrefix::release() {
  if (!open_) return;
  open_ = false;
  byte_count_ = byte_count();
  if (!session_->is_forked())
    for (const PinnedExtent& chunk : chunks_) unpin(session_->pool(), chunk.slot);
  chunks_.clear();
  chunks_.shrink_to_fit();
  session_.reset();  // A released prefix that somebody still names must not keep the pool attached.
}

void bind_views(nb::module_& m) {
  view_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&view_spec));
  span_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&span_spec));
  if (!view_type || !span_type) throw nb::python_error();
  nb::class_<PinnedPrefix>(
      m, "PinnedPrefix",
      "The leading chunks of a prefix, pinned: none of them moves, changes or goes away until the "
      "with block ends. Views made inside it each hold a pin of their own and may outlive it.")
      .def("__len__", &PinnedPrefix::count, "Number of leading chunks actually pinned.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> PinnedPrefix"))
      .def(
          "__exit__", [](PinnedPrefix& self, nb::args) { self.release(); },
          nb::sig("def __exit__(self, *args: object) -> None"))
      .def("release", &PinnedPrefix::release, "Drop this batch's hold. Views taken from it keep theirs.")
      .def_prop_ro("views", &PinnedPrefix::views, nb::sig("def views(self) -> list[memoryview]"),
                   "One read-only memoryview a chunk, in order. Built at each access; the prefix keeps none.")
      .def_prop_ro("nbytes", &PinnedPrefix::byte_count, "Bytes of all pinned chunks.")
      .def("extents", &PinnedPrefix::extents, nb::sig("def extents(self) -> bytes"),
           "n x 16 bytes: offset in the pool's data and size of each chunk, both little-endian u64.")
      .def("_spans", &PinnedPrefix::spans, nb::arg("first"), nb::arg("count"),
           nb::sig("def _spans(self, first: int, count: int) -> list[memoryview]"),
           "As `views` of `count` chunks from `first` on, but chunks that lie side by side in memory are one "
           "view.")
      .def("_stamps", &PinnedPrefix::stamps,
           "n x 16 bytes: slot and generation of each chunk, both little-endian u64. Equal stamps, equal "
           "bytes.");
}

}  // namespace maru
