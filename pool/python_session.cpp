#include "python_session.h"

#include <cmath>

#include "allocator.h"
#include "lease.h"

namespace maru {

Session::Session(const AttachOptions& options, bool populate) : pool_(attach_pool(options)) {
  // Another host's row needs none: whoever serves it is attached by itself.
  if (options.lease_ns == 0) housekeeper_ = std::make_unique<Housekeeper>(*pool_, populate);
}

Session::~Session() {
  if (is_forked()) abandon_housekeeper();
}

bool Session::wait_ready(uint64_t deadline_ns) {
  return housekeeper_ && housekeeper_->wait_ready(deadline_ns);
}

ReadyState Session::ready_state() { return housekeeper_ ? housekeeper_->state() : ReadyState{}; }

Handle::Handle(AttachOptions options, bool populate) : options_(std::move(options)), populate_(populate) {
  MaybeRelease no_gil(true);
  session_ = std::make_shared<Session>(options_, populate_);
}

const SessionRef& Handle::session() {
  if (!session_)
    throw Failure("NotAttached", "this pool handle is closed; open the pool again",
                  {{"path", options_.folder}});
  if (session_->is_forked()) {
    session_->abandon_housekeeper();
    session_.reset();
    if (options_.lease_ns != 0)
      throw Failure("NotAttached", "another host's row does not go over to a forked child",
                    {{"path", options_.folder}});
    session_ = std::make_shared<Session>(options_, populate_);
    maru::prefer_numa_node(session_->pool(), numa_node_);
    if (is_tallied_) maru::start_tally(session_->pool());
  }
  return session_;
}

void Handle::prefer_numa_node(std::optional<int32_t> node) {
  if (node && *node < 0) throw nb::value_error("a NUMA node is 0 or more, or None");
  maru::prefer_numa_node(pool(), node.value_or(-1));
  numa_node_ = node.value_or(-1);
}

void Handle::start_tally() {
  maru::start_tally(pool());
  is_tallied_ = true;
}

std::vector<TallyTaken> Handle::take_tally() {
  const SessionRef session = session_;
  return !session || session->is_forked() ? std::vector<TallyTaken>{} : maru::take_tally(session->pool());
}

std::pair<uint32_t, uint64_t> Handle::row() {
  Pool& p = pool();
  return {p.me, p.my_epoch};
}

void Handle::renew(uint64_t lease_ns) {
  if (options_.lease_ns == 0) throw nb::value_error("this process lives by its byte lock, not by a lease");
  renew_lease(pool(), lease_ns);
  map_new_segments(pool());  // There is no housekeeper that would.
}

void Handle::leave_behind() {
  if (options_.lease_ns == 0) throw nb::value_error("this process lives by its byte lock, not by a lease");
  const SessionRef session = std::move(session_);
  if (!session || session->is_forked()) return;
  // What still names the session gives nothing back from here on: the row keeps it, as long as its lease
  // runs.
  session->pool().is_forked.store(true);
  LockFile::untie(session->pool().tied_page);
  session->pool().tied_page = nullptr;
}

void Handle::close() {
  SessionRef session = std::move(session_);
  if (!session) return;
  if (session->is_forked()) return session->abandon_housekeeper();
  MaybeRelease no_gil(PyGILState_Check() != 0);
  session->stop_housekeeper();
  session.reset();
}

PackedKeys::PackedKeys(nb::handle object) {
  uint64_t size = 0;
  if (PyBytes_CheckExact(object.ptr())) {
    keys_ = reinterpret_cast<const Key*>(PyBytes_AS_STRING(object.ptr()));
    size = static_cast<uint64_t>(PyBytes_GET_SIZE(object.ptr()));
  } else {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_C_CONTIGUOUS) != 0) {
      PyErr_Clear();
      throw Failure("BadKey", std::string("keys must be a contiguous buffer of n x 16 bytes, not ") +
                                  Py_TYPE(object.ptr())->tp_name);
    }
    held_ = true;
    keys_ = static_cast<const Key*>(buffer_.buf);
    size = static_cast<uint64_t>(buffer_.len);
  }
  if (size % sizeof(Key) != 0) {
    if (held_) PyBuffer_Release(&buffer_);
    throw Failure("BadKey", "packed keys are n x 16 bytes; got " + std::to_string(size) + " bytes",
                  {{"got_bytes", static_cast<int64_t>(size)}});
  }
  count_ = size / sizeof(Key);
}

PackedKeys::~PackedKeys() {
  if (held_) PyBuffer_Release(&buffer_);
}

Key one_key(nb::handle object) {
  Key key;
  if (PyBytes_CheckExact(object.ptr()) && PyBytes_GET_SIZE(object.ptr()) == sizeof(Key)) {
    std::memcpy(&key, PyBytes_AS_STRING(object.ptr()), sizeof key);
    return key;
  }
  const PackedKeys keys(object);
  if (keys.count() != 1)
    throw Failure("BadKey",
                  "one key is 16 bytes; got " + std::to_string(keys.count() * sizeof(Key)) + " bytes",
                  {{"got_bytes", static_cast<int64_t>(keys.count() * sizeof(Key))}});
  std::memcpy(&key, keys.data(), sizeof key);
  return key;
}

Bytes::Bytes(nb::handle object) {
  if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
}

WritableBytes::WritableBytes(nb::handle object) {
  if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) != 0)
    throw nb::python_error();
}

void refuse_readers(const Pool& pool, const char* what) {
  if (pool.reads_only)
    throw Failure("ReadsOnly", "this process attached to " + pool.folder + " with access=read, so it " + what,
                  {{"path", pool.folder}});
}

uint64_t seconds_to_ns(double seconds, const char* what) {
  if (!(seconds >= 0) || seconds > 1e9)
    throw nb::value_error((std::string(what) + " must be 0 or more seconds").c_str());
  return static_cast<uint64_t>(std::llround(seconds * 1e9));
}

}  // namespace maru
