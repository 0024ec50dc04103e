// What leaves a pool next, as Python asks for it.
#pragma once

#include <mutex>
#include <utility>

#include "leaving.h"
#include "python_session.h"

namespace maru {

class PoolLeaving {
 public:
  explicit PoolLeaving(nb::object owner);
  nb::bytes look(uint64_t ahead_bytes, uint64_t limit);
  nb::object hold(uint64_t slot, uint64_t generation);
  void keep(uint64_t slot, uint64_t generation);
  nb::tuple residents();

 private:
  nb::object owner_;          // The pool handle.
  std::mutex one_at_a_time_;  // Looks run without the GIL.
  LeavingScan scan_;
};

void bind_leaving(nb::module_& m);

}  // namespace maru
