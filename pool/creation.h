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

// Empty segment `number` from now on (kDraining), take it back (kOnline, from kDraining only), or give it up
// (kLost, for ever: everything in it is a miss from that moment, in every process, and nobody touches its
// memory again). Works whether or not anybody is attached. Raises PoolNotFound, PoolMismatch (also: no such
// segment, or lost already).
void set_segment_state(const std::string& folder, uint32_t number, SegmentState state);

// This boot's id, 16 bytes: what lies in shared memory was written since.
void read_boot_id(uint8_t out[16]);

// Processes attached according to their byte locks: "pid (name)" each.
std::vector<std::string> attached_processes(const std::string& folder);

}  // namespace maru
