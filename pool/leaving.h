// What leaves the pool next, and has no copy anywhere else: whoever keeps chunks below the pool asks here.
//
// It goes ahead of eviction, as a cleaner of dirty pages does: the coldest chunks are copied down while they
// still lie here, so an evictor finds them copied and waits for nobody, and a writer never knows. What is
// evicted before its turn came is lost to the place below, and counted; nobody is held up for it.
//
// The argument. (slot, generation) names one chunk for ever, so a private record of generations says what was
// copied (kept), and what was seen here and is gone without having been.
//   Who writes: nobody writes the pool here, but for the pin of whoever copies.
//   The worst that a race can do: a chunk is told of that has just left (its pin fails), or told later.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "pool.h"

namespace maru {

// One chunk, as Python unpacks it.
struct Leaving {
  Key key;
  Key parent;  // Zero unless has_parent.
  uint8_t namespace_digest[16];
  uint64_t size_bytes;
  uint64_t slot;
  uint64_t generation;
  uint64_t expires_in_ns;  // 0: never.
  uint32_t namespace_id;
  uint32_t namespace_epoch;
  uint8_t has_parent;
  uint8_t spare[7];
};
static_assert(sizeof(Leaving) == 96);

// What a look saw besides.
struct Residents {
  uint64_t bytes = 0;        // Of chunks that count.
  uint64_t bytes_kept = 0;   // Of those that have a copy below.
  uint64_t chunks_lost = 0;  // Since the beginning: seen here once, and gone without a copy.
};

class LeavingScan {
 public:
  explicit LeavingScan(const Pool& pool);

  // Of the coldest chunks, together `ahead_bytes`, those that have no copy below: the coldest first, at most
  // `limit`. Raises PoolMismatch when the pool is not the one that this record is of.
  std::vector<Leaving> look(Pool& pool, uint64_t ahead_bytes, uint64_t limit);

  // This chunk has a copy below, or needs none.
  void keep(uint64_t slot, uint64_t generation);

  const Residents& residents() const { return residents_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  template <class T>
  using Column = std::unique_ptr<T[], Free>;  // Zero, and no memory until it is written.
  struct Place {
    uint64_t slot;
    uint64_t generation;
    uint64_t size_bytes;
    uint32_t rank;
  };

  void see(Pool& pool, uint64_t now, std::vector<Place>* places);
  bool describe(const Pool& pool, const Place& place, uint64_t now, Leaving* out) const;

  uint8_t pool_uuid_[16];
  uint64_t slot_count_;
  Residents residents_;
  Column<uint64_t> kept_;  // + 1 of what has a copy below; 0: nothing.
  Column<uint64_t> seen_;  // + 1 of what was seen here.
};

}  // namespace maru
