// Making a pool out of nothing, and unmaking it.
#pragma once

#include <string>
#include <vector>

#include "geometry.h"

namespace maru {

// Files of a pool's folder.
inline constexpr const char* kIndexName = "index";
inline constexpr const char* kLockName = "lock";
inline constexpr uint64_t kAttachDeadlineNs = 5'000'000'000;

struct CreateResult {
  std::vector<std::string> notes;  // For people: what was found and replaced.
};

// Create the pool in `options.folder`, which exists. Raises PoolExists, PoolBusy (somebody is creating or
// attaching for longer than 5 s), PoolMismatch (a named segment belongs to another pool, or holds something
// that is not ours), NoSpace, BadSize.
CreateResult create_pool(const CreateOptions& options);

// Remove the pool's files. Without `force`, PoolBusy when a process is attached. With it, every attached
// process finds the pool gone at its next call: misses, no crash. Raises PoolNotFound.
void destroy_pool(const std::string& folder, bool force);

// This boot's id, 16 bytes: what lies in shared memory was written since.
void read_boot_id(uint8_t out[16]);

// Processes attached according to their byte locks: "pid (name)" each.
std::vector<std::string> attached_processes(const std::string& folder);

}  // namespace maru
