// Copying chunk bytes into the pool past the caches.
//
// Promises: when stream_copy returns, a following release store (the seal) publishes the bytes: readers that
// see the store see all of them. Leaves to others: the seal, cache maintenance, splitting work over threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maru {

// Smaller copies are plain. From 128 KiB on streaming was never slower than memcpy when memory was not in the
// caches; below 64 KiB it was, and by half if source and destination were.
inline constexpr size_t kStreamSizeMin = 128 * 1024;

// Copies `size` bytes between places that do not overlap, at any alignment.
void stream_copy(void* dst, const void* src, size_t size);

// Copies `count` pieces of `size` bytes each, by their addresses; the i-th target gets the i-th source.
// Pieces that follow each other in both lists' memory go as one. No target may overlap any source.
void copy_pieces(const uint64_t* targets, const uint64_t* sources, size_t count, size_t size);

// What stream_copy uses for large copies here: "avx512-nt", "avx2-nt", "sse2-nt" or "memcpy".
const char* stream_copy_path();

// Follows a chain through `lines` lines of 64 bytes, each of which begins with the number of the next (u32):
// every load waits for the one before, so the time is the memory's latency. Returns where it ends.
uint64_t follow_chain(const void* memory, uint64_t lines, uint64_t hops);

// For tests: copies by the path of that name, whatever the size. False, and nothing copied, if this CPU or
// build lacks it.
bool stream_copy_with(const char* path, void* dst, const void* src, size_t size);

}  // namespace maru
