// Between Python objects and a Pool: who keeps the mapping alive, and what becomes of it in a forked child.
//
// A Session is one attachment with its housekeeper. The handle (maru.Pool) holds one reference, every view,
// pin batch and reservation another. close() ends the handle's: new calls raise NotAttached, and the mapping,
// the process slot and the pins stay until the last view dies. In a forked child the handle attaches anew at
// its next call, and what was inherited belongs to the dead session: it gives nothing back, because it holds
// nothing.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "attach.h"
#include "failure.h"
#include "housekeeper.h"
#include "pool.h"
#include "python_gil.h"
#include "tally.h"

namespace maru {

namespace nb = nanobind;

class Session {
 public:
  Session(const AttachOptions& options, bool populate);
  ~Session();

  Pool& pool() { return *pool_; }
  bool is_forked() const { return pool_->is_forked.load(std::memory_order_relaxed); }
  bool wait_ready(uint64_t deadline_ns);
  ReadyState ready_state();
  void stop_housekeeper() {
    if (housekeeper_) housekeeper_->stop();
  }
  bool is_stopped() { return !housekeeper_ || housekeeper_->is_stopped(); }
  // The housekeeper's thread was not inherited; its object is left as it is.
  void abandon_housekeeper() { (void)housekeeper_.release(); }

 private:
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Housekeeper> housekeeper_;
};

using SessionRef = std::shared_ptr<Session>;

// What maru.Pool derives from.
class Handle {
 public:
  Handle(AttachOptions options, bool populate);
  ~Handle() { close(); }

  // The attached pool; attaches again in a forked child. Raises NotAttached after close().
  const SessionRef& session();
  Pool& pool() { return session()->pool(); }
  // Kept when a forked child attaches anew. None: no node is preferred.
  void prefer_numa_node(std::optional<int32_t> node);
  void close();
  // Count for an audit log, in a forked child too; what was counted since the last time. Nobody is attached
  // by it.
  void start_tally();
  std::vector<TallyTaken> take_tally();
  // For another host's row: its number and epoch, its end moved, and letting go of it with all that it holds.
  std::pair<uint32_t, uint64_t> row();
  void renew(uint64_t lease_ns);
  void leave_behind();
  bool closed() const { return !session_; }
  const std::string& folder() const { return options_.folder; }

 private:
  AttachOptions options_;
  bool populate_;
  bool is_tallied_ = false;
  int32_t numa_node_ = -1;  // Preferred. -1: none is.
  SessionRef session_;
};

// Keys: any contiguous buffer of n x 16 bytes, held for the length of one call. Raises BadKey.
class PackedKeys {
 public:
  explicit PackedKeys(nb::handle object);
  ~PackedKeys();
  PackedKeys(const PackedKeys&) = delete;
  const Key* data() const { return keys_; }
  uint64_t count() const { return count_; }

 private:
  Py_buffer buffer_{};
  bool held_ = false;
  const Key* keys_ = nullptr;
  uint64_t count_ = 0;
};

// Exactly one key. Raises BadKey.
Key one_key(nb::handle object);

// Read-only bytes of any C-contiguous buffer, for the length of one call.
class Bytes {
 public:
  explicit Bytes(nb::handle object);
  ~Bytes() { PyBuffer_Release(&buffer_); }
  Bytes(const Bytes&) = delete;
  const void* data() const { return buffer_.buf; }
  uint64_t size() const { return static_cast<uint64_t>(buffer_.len); }

 private:
  Py_buffer buffer_{};
};

// The same to write into.
class WritableBytes {
 public:
  explicit WritableBytes(nb::handle object);
  ~WritableBytes() { PyBuffer_Release(&buffer_); }
  WritableBytes(const WritableBytes&) = delete;
  void* data() const { return buffer_.buf; }
  uint64_t size() const { return static_cast<uint64_t>(buffer_.len); }

 private:
  Py_buffer buffer_{};
};

// Raises ReadsOnly for an attachment that only reads; `what`: what it does not do.
void refuse_readers(const Pool& pool, const char* what);

// Seconds from Python as nanoseconds; a named error for what is negative or not a number.
uint64_t seconds_to_ns(double seconds, const char* what);

void bind_failures(nb::module_& m);
void bind_views(nb::module_& m);
void bind_writing(nb::module_& m);
void bind_pool(nb::module_& m);

}  // namespace maru
