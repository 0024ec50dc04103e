// Large copies by several threads.
//
// Threads are made for one call and joined before it returns: there is nothing that a fork, a crash or the
// interpreter's end could find in the middle, and 20 µs a thread are little beside the milliseconds that they
// are for. Without the memory or the right to make one the caller does the work alone. Leaves to others: what
// is copied where, and that nobody frees it meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace maru {

// Each helper should have so much to do that making it does not matter.
inline constexpr size_t kBytesPerHelper = 4 << 20;

// Call job(0) ... job(jobs - 1), each once, on this thread and up to `threads` - 1 others. Jobs must not
// throw. Everything that they wrote is visible to the caller afterwards.
void work_together(uint32_t threads, uint64_t jobs, const std::function<void(uint64_t)>& job);

// Of at most `limit` threads, how many are worth their while for so many bytes.
uint32_t team_for(uint64_t bytes, uint32_t limit);

// As stream_copy, by up to `threads` threads.
void stream_copy_together(uint32_t threads, void* dst, const void* src, size_t size);

}  // namespace maru
