// From a folder to an attached Pool: refuse strangers, map everything, take a process slot.
#pragma once

#include <memory>
#include <string>

#include "pool.h"

namespace maru {

struct AttachOptions {
  std::string folder;
  std::string process_name;
  uint64_t lease_ns = 0;         // Not 0: for another host, alive so long without us.
  uint32_t adopt_row = kNobody;  // Its row, when a daemon before us had one for it,
  uint64_t adopt_epoch = 0;      // ... of this epoch.
  uint32_t copy_threads = 1;     // Of one large copy, at most.
  bool reads_only = false;       // Segments are opened and mapped without write permission.
};

// Raises PoolNotFound, PoolMismatch (not ours, another format, torn, truncated, a segment of another pool,
// made before this boot), PoolBusy (the process table is full, or somebody holds the creation lock for 5 s),
// LeaseEnded (the row to adopt is not there any more).
std::unique_ptr<Pool> attach_pool(const AttachOptions& options);

// Map segments that were added since; the housekeeper does it by itself. Returns how many. One that is not
// visible here is tried again at the next call.
uint32_t map_new_segments(Pool& pool);

// Point `pool` at the sections of the index that `pool.index` maps, by `pool.geometry`.
void bind_sections(Pool& pool);

}  // namespace maru
