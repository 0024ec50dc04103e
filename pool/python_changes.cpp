#include "python_changes.h"

namespace maru {

namespace {

nb::bytes packed(const std::vector<Change>& changes) {
  return nb::bytes(reinterpret_cast<const char*>(changes.data()), changes.size() * sizeof(Change));
}

}  // namespace

PoolChanges::PoolChanges(nb::object owner)
    : owner_(std::move(owner)), scan_(nb::cast<Handle&>(owner_).pool()) {}

nb::tuple PoolChanges::look(uint64_t limit) {
  if (limit < kChangesMin) throw nb::value_error("a look has room for two changes or more");
  const SessionRef session = nb::cast<Handle&>(owner_).session();
  std::vector<Change> changes;
  bool is_whole;
  {
    MaybeRelease no_gil(true);
    const std::lock_guard guard(one_at_a_time_);
    is_whole = scan_.look(session->pool(), limit, &changes);
  }
  return nb::make_tuple(packed(changes), is_whole);
}

nb::bytes PoolChanges::told() {
  const SessionRef session = nb::cast<Handle&>(owner_).session();
  std::vector<Change> changes;
  {
    MaybeRelease no_gil(true);
    const std::lock_guard guard(one_at_a_time_);
    changes = scan_.told(session->pool());
  }
  return packed(changes);
}

uint64_t PoolChanges::told_count() {
  MaybeRelease no_gil(true);
  const std::lock_guard guard(one_at_a_time_);
  return scan_.told_count();
}

void bind_changes(nb::module_& m) {
  nb::class_<PoolChanges>(
      m, "ChangeScan",
      "What came and what left since the last look, by comparing all slots with a record of what was "
      "told.\n\n"
      "Whoever stores and evicts pays nothing for it; a look walks the whole index (milliseconds on a large "
      "pool). What came\n"
      "and went between two looks is not told. Thread-safe. Raises NotAttached after the pool is closed.")
      .def(nb::init<nb::object>(), nb::arg("pool"), nb::sig("def __init__(self, pool: PoolCore) -> None"))
      .def("look", &PoolChanges::look, nb::arg("limit"),
           nb::sig("def look(self, limit: int) -> tuple[bytes, bool]"),
           "Go on looking; returns at most `limit` changes, and whether all slots were looked at since it "
           "said so last.\n\n"
           "A change is 64 bytes: key 16, parent's key 16, namespace's digest 16, size u64, kind u8 (1 came, "
           "2 left), has parent\n"
           "u8, 6 unused; little-endian. A parent is told before its children, and only if it is there.")
      .def("told", &PoolChanges::told, nb::sig("def told(self) -> bytes"),
           "All that was told and has not left since, as changes of kind 1, each parent before its children.")
      .def_prop_ro("told_count", &PoolChanges::told_count, "How many slots count as told.");
}

}  // namespace maru
