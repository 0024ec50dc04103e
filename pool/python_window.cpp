#include "chunk_index.h"
#include "copy.h"
#include "python_namespace.h"
#include "python_write.h"

namespace maru {

namespace {

// What a consumer of the buffer protocol holds instead of the buffer object.
struct TokenObject {
  PyObject_HEAD WindowRef window;
};

PyTypeObject* token_type = nullptr;

void token_dealloc(PyObject* self) {
  auto* token = reinterpret_cast<TokenObject*>(self);
  token->window->drop_export();
  std::destroy_at(&token->window);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot token_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(token_dealloc)}, {0, nullptr}};
PyType_Spec token_spec = {"maru._native.BufferExport", sizeof(TokenObject), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, token_slots};

struct WritableBuffer {
  WindowRef window;
};

int buffer_get(PyObject* self, Py_buffer* out, int flags) {
  const WindowRef& window = nb::inst_ptr<WritableBuffer>(self)->window;
  if (!window->is_open()) {
    PyErr_SetString(PyExc_BufferError, "this buffer was released: its reservation or draft has ended");
    return -1;
  }
  PyObject* object = token_type->tp_alloc(token_type, 0);
  if (!object) return -1;
  new (&reinterpret_cast<TokenObject*>(object)->window) WindowRef(window);
  window->add_export();
  const int result =
      PyBuffer_FillInfo(out, object, window->data(), static_cast<Py_ssize_t>(window->size()), 0, flags);
  Py_DECREF(object);
  return result;
}

// Does nothing, yet must be there: numpy ties an array to the export (and so to the token) only when the
// exporter has a release function; otherwise it keeps a bare reference to the buffer object, and we could not
// tell.
void buffer_release(PyObject*, Py_buffer*) {}

PyType_Slot buffer_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(buffer_get)},
                              {Py_bf_releasebuffer, reinterpret_cast<void*>(buffer_release)},
                              {0, nullptr}};

// buffer[a:b] = data, with streaming stores. Any contiguous data of the same number of bytes will do.
void buffer_assign(nb::handle self, nb::handle index, nb::handle value) {
  WritableBuffer& buffer = nb::cast<WritableBuffer&>(self);
  buffer.window->need_open();
  const auto size = static_cast<Py_ssize_t>(buffer.window->size());
  if (!PySlice_Check(index.ptr())) {
    const nb::object memory = nb::steal(PyMemoryView_FromObject(self.ptr()));
    if (!memory.is_valid() || PyObject_SetItem(memory.ptr(), index.ptr(), value.ptr()) != 0)
      throw nb::python_error();
    return;
  }
  Py_ssize_t start = 0, stop = 0, step = 0;
  if (PySlice_Unpack(index.ptr(), &start, &stop, &step) != 0) throw nb::python_error();
  const Py_ssize_t length = PySlice_AdjustIndices(size, &start, &stop, step);
  if (step != 1) throw nb::value_error("a buffer is written in contiguous slices");
  const Bytes data(value);
  if (data.size() != static_cast<uint64_t>(length))
    throw nb::value_error(
        ("cannot put " + std::to_string(data.size()) + " bytes into a slice of " + std::to_string(length))
            .c_str());
  const WindowRef keep = buffer.window;
  keep->add_export();  // Nobody ends the reservation while the copy runs without the GIL.
  {
    MaybeRelease no_gil(data.size() > kReleaseGilBytes);
    stream_copy(keep->data() + start, data.data(), data.size());
  }
  keep->drop_export();
}

}  // namespace

Window::Window(SessionRef session, const Reservation& r)
    : session_(std::move(session)),
      held_(r),
      data_(session_->pool().writable_at(r.extent) + r.part_offset),
      size_(r.part_bytes) {}

Window::Window(SessionRef session, const Draft& draft)
    : session_(std::move(session)),
      held_(draft),
      data_(session_->pool().writable_at(draft.extent)),
      size_(draft.size_bytes) {}

Window::~Window() {
  if (open_ || give_back_later_) give_back();
}

void Window::need_open() const {
  if (!is_open())
    throw Failure("NotReserved",
                  "this reservation or draft has ended (sealed, discarded, or made before fork)");
}

void Window::need_no_exports(bool allow_exports) const {
  if (exports_ == 0 || allow_exports) return;
  PyErr_Format(PyExc_BufferError,
               "%llu object(s) made from this buffer (an array, a tensor, a memoryview) could still write to "
               "it after it is "
               "published; drop them first (del), or pass allow_exports=True and answer for it",
               static_cast<unsigned long long>(exports_));
  throw nb::python_error();
}

Outcome Window::seal() {
  open_ = false;
  Outcome outcome;
  {
    Pool& pool = session_->pool();
    MaybeRelease no_gil(pool.geometry.checksum == ChecksumPolicy::kAlways);
    outcome = seal_chunk(pool, std::get<Reservation>(held_));
  }
  let_go();
  return outcome;
}

Outcome Window::publish(const ReserveRequest& request, PinnedExtent* held) {
  open_ = false;  // Also against another thread, while the GIL is let go.
  Outcome outcome;
  {
    Pool& pool = session_->pool();
    MaybeRelease no_gil(pool.geometry.checksum == ChecksumPolicy::kAlways);
    outcome = publish_draft(pool, std::get<Draft>(held_), request, held);
  }
  open_ = outcome != Outcome::kStored && outcome != Outcome::kLost;
  if (!open_) let_go();
  return outcome;
}

bool Window::renew(uint64_t deadline_ns) {
  return renew_chunk(session_->pool(), std::get<Reservation>(held_), deadline_ns);
}

void Window::discard() {
  if (!open_) return;
  open_ = false;
  if (exports_ > 0)
    give_back_later_ = true;  // Whoever still holds the memory may still write to it.
  else
    give_back();
}

void Window::drop_export() {
  exports_--;
  if (give_back_later_ && exports_ == 0) give_back();
  if (!open_) let_go();
}

void Window::let_go() {
  if (exports_ == 0 && !give_back_later_) session_.reset();
}

void Window::give_back() {
  open_ = give_back_later_ = false;
  if (!session_->is_forked()) {
    Pool& pool = session_->pool();
    if (const auto* r = std::get_if<Reservation>(&held_))
      discard_chunk(pool, *r);
    else
      discard_draft(pool, std::get<Draft>(held_));
  }
  let_go();
}

nb::object make_buffer(const WindowRef& window) {
  window->need_open();
  return nb::cast(WritableBuffer{window});
}

ReserveRequest make_request(Pool& pool, Key key, nb::handle namespace_object, nb::handle parent,
                            nb::handle ttl) {
  ReserveRequest request;
  request.key = key;
  if (!namespace_object.is_none()) {
    if (!nb::isinstance<Namespace>(namespace_object))
      throw nb::type_error("namespace must be a maru.Namespace (Pool.namespace()) or None");
    const Namespace& ns = nb::cast<Namespace&>(namespace_object);
    if (!ns.belongs_to(pool))
      throw nb::value_error("this namespace belongs to another pool; register it in this one");
    request.namespace_id = ns.id();
  }
  if (!parent.is_none()) request.parent = find_parent(pool, one_key(parent));
  if (!ttl.is_none()) {
    request.ttl_ns = seconds_to_ns(nb::cast<double>(ttl), "ttl");
    if (request.ttl_ns == 0) throw nb::value_error("ttl must be above 0 seconds; leave it None for no limit");
  }
  return request;
}

void bind_windows(nb::module_& m) {
  token_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&token_spec));
  if (!token_type) throw nb::python_error();
  nb::class_<WritableBuffer>(
      m, "WritableBuffer", nb::type_slots(buffer_slots),
      "Memory of a reservation or draft. Supports the buffer protocol, so numpy, torch and memoryview can "
      "write into it in place; `buffer[:] = data` copies with streaming stores.")
      .def("__len__", [](const WritableBuffer& b) { return b.window->size(); })
      .def_prop_ro(
          "nbytes", [](const WritableBuffer& b) { return b.window->size(); }, "Size in bytes.")
      .def_prop_ro(
          "released", [](const WritableBuffer& b) { return !b.window->is_open(); },
          "True once the reservation has ended.")
      .def(
          "__getitem__",
          [](nb::handle self, nb::handle index) {
            const nb::object memory = nb::steal(PyMemoryView_FromObject(self.ptr()));
            if (!memory.is_valid()) throw nb::python_error();
            PyObject* item = PyObject_GetItem(memory.ptr(), index.ptr());
            if (!item) throw nb::python_error();
            return nb::steal(item);
          },
          nb::sig("def __getitem__(self, index: int | slice) -> typing.Any"),
          "An int, or a writable memoryview of a slice.")
      .def("__setitem__", &buffer_assign,
           nb::sig("def __setitem__(self, index: int | slice, value: typing.Any) -> None"),
           "Copy `value` (an int, or contiguous bytes of exactly the slice's length) into the buffer.");
}

}  // namespace maru
