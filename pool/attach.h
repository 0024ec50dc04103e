// From a folder to an attached Pool: refuse strangers, map everything, take a process slot.
#pragma once

#include <memory>
#include <string>

#include "pool.h"

namespace maru {

struct AttachOptions {
  std::string folder;
  std::string process_name;
};

// Raises PoolNotFound, PoolMismatch (not ours, another format, torn, truncated, a segment of another pool,
// made before this boot), PoolBusy (the process table is full, or somebody holds the creation lock for 5 s).
std::unique_ptr<Pool> attach_pool(const AttachOptions& options);

// Point `pool` at the sections of the index that `pool.index` maps, by `pool.geometry`.
void bind_sections(Pool& pool);

}  // namespace maru
