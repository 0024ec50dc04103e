// A record of what was told about a pool, as Python holds it.
#pragma once

#include <mutex>
#include <utility>

#include "changes.h"
#include "python_session.h"

namespace maru {

class PoolChanges {
 public:
  explicit PoolChanges(nb::object owner);
  nb::tuple look(uint64_t limit);
  nb::bytes told();
  uint64_t told_count();

 private:
  nb::object owner_;          // The pool handle.
  std::mutex one_at_a_time_;  // Looks run without the GIL.
  ChangeScan scan_;
};

void bind_changes(nb::module_& m);

}  // namespace maru
