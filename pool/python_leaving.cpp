#include "python_leaving.h"

#include "pins.h"
#include "python_view.h"

namespace maru {

PoolLeaving::PoolLeaving(nb::object owner)
    : owner_(std::move(owner)), scan_(nb::cast<Handle&>(owner_).pool()) {}

nb::bytes PoolLeaving::look(uint64_t ahead_bytes, uint64_t limit) {
  const SessionRef session = nb::cast<Handle&>(owner_).session();
  std::vector<Leaving> leaving;
  {
    MaybeRelease no_gil(true);
    const std::lock_guard guard(one_at_a_time_);
    leaving = scan_.look(session->pool(), ahead_bytes, limit);
  }
  return nb::bytes(reinterpret_cast<const char*>(leaving.data()), leaving.size() * sizeof(Leaving));
}

nb::object PoolLeaving::hold(uint64_t slot, uint64_t generation) {
  const SessionRef session = nb::cast<Handle&>(owner_).session();
  PinnedExtent chunk;
  bool found;
  {
    Pool& pool = session->pool();
    MaybeRelease no_gil(pool.geometry.checksum == ChecksumPolicy::kAlways);
    found = pin_in_passing(pool, slot, generation, &chunk);
  }
  return found ? make_view(session, chunk) : nb::none();
}

void PoolLeaving::keep(uint64_t slot, uint64_t generation) {
  MaybeRelease no_gil(true);
  const std::lock_guard guard(one_at_a_time_);
  scan_.keep(slot, generation);
}

nb::tuple PoolLeaving::residents() {
  Residents seen;
  {
    MaybeRelease no_gil(true);
    const std::lock_guard guard(one_at_a_time_);
    seen = scan_.residents();
  }
  return nb::make_tuple(seen.bytes, seen.bytes_kept, seen.chunks_lost);
}

void bind_leaving(nb::module_& m) {
  nb::class_<PoolLeaving>(
      m, "LeavingScan",
      "What leaves the pool next and has no copy below it, and a record of what has one.\n\n"
      "Whoever stores and evicts pays nothing for it; a look walks the whole index. Thread-safe. Raises "
      "NotAttached after the\npool is closed.")
      .def(nb::init<nb::object>(), nb::arg("pool"), nb::sig("def __init__(self, pool: PoolCore) -> None"))
      .def("look", &PoolLeaving::look, nb::arg("ahead_bytes"), nb::arg("limit"),
           nb::sig("def look(self, ahead_bytes: int, limit: int) -> bytes"),
           "Of the coldest chunks, together `ahead_bytes`, those that were not kept: the coldest first, at "
           "most `limit`.\n\n"
           "A chunk is 96 bytes: key 16, parent's key 16, namespace's digest 16, size u64, slot u64, "
           "generation u64, nanoseconds\n"
           "until it expires u64 (0: never), namespace u32, its epoch u32, has parent u8, 7 unused; "
           "little-endian.")
      .def(
          "hold", &PoolLeaving::hold, nb::arg("slot"), nb::arg("generation"),
          nb::sig("def hold(self, slot: int, generation: int) -> memoryview | None"),
          "A read-only view of this chunk, pinned as long as it lives, without making the chunk wanted; None "
          "when it left.")
      .def("keep", &PoolLeaving::keep, nb::arg("slot"), nb::arg("generation"),
           nb::sig("def keep(self, slot: int, generation: int) -> None"),
           "This chunk has a copy below the pool, or needs none.")
      .def("residents", &PoolLeaving::residents, nb::sig("def residents(self) -> tuple[int, int, int]"),
           "At the last look: bytes of all chunks, bytes of those that were kept; and how many were seen "
           "once and left\n"
           "without having been kept, since the beginning.");
}

}  // namespace maru
