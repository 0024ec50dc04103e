// Writing from Python: windows into reserved memory that know whether anybody still holds them.
//
// A writable buffer cannot be taken back: a numpy array or a tensor made from it can write long after the
// chunk is sealed and read by others. So every export of a window gives its consumer a token instead of the
// buffer object itself; the token lives exactly as long as the consumer keeps the memory, whatever library
// that is. Sealing while a token lives is a BufferError; giving the memory back waits until the last token is
// gone.
#pragma once

#include <variant>

#include "python_session.h"
#include "reservation.h"

namespace maru {

// The memory of one reservation part or one draft, and the duty to end it.
class Window : public std::enable_shared_from_this<Window> {
 public:
  Window(SessionRef session, const Reservation& reservation);
  Window(SessionRef session, const Draft& draft);
  ~Window();
  Window(const Window&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  uint64_t offset() const { return static_cast<uint64_t>(data_ - session_->pool().writable); }
  bool is_open() const { return open_ && !session_->is_forked(); }
  void need_open() const;
  // Raises BufferError while somebody holds the memory, unless that is allowed.
  void need_no_exports(bool allow_exports) const;

  Outcome seal();
  Outcome publish(const ReserveRequest& request, PinnedExtent* held = nullptr);
  bool renew(uint64_t deadline_ns);
  void discard();  // At once, or when the last export dies.

  void add_export() { exports_++; }
  void drop_export();
  const SessionRef& session() const { return session_; }  // Null once ended.

 private:
  void give_back();
  void let_go();  // An ended window must not keep the pool attached.

  SessionRef session_;
  std::variant<Reservation, Draft> held_;
  uint8_t* data_;
  uint64_t size_;
  uint64_t exports_ = 0;
  bool open_ = true;
  bool give_back_later_ = false;
};

using WindowRef = std::shared_ptr<Window>;

// The public buffer object over a window.
nb::object make_buffer(const WindowRef& window);

// Build a request from Python arguments; `namespace_object` is None or a Namespace.
ReserveRequest make_request(Pool& pool, Key key, nb::handle namespace_object, nb::handle parent,
                            nb::handle ttl);

// put, put_many, reserve, reserve_many, allocate: methods of maru.Pool, defined beside the objects they
// return.
void bind_write_methods(nb::class_<Handle>& pool);

}  // namespace maru
