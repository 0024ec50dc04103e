// XXH3, 64-bit variant with the default secret, written from the published specification.
//
// Promises: the specified value for every length and seed on every CPU, at the speed of memory for long
// inputs. It finds damage, not malice: never use it where somebody may choose the bytes to fit the sum.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maru {

uint64_t xxh3_64(const void* data, size_t size, uint64_t seed = 0);

// Copies `size` bytes between places that do not overlap, and returns XXH3-64 of what arrived, in one pass
// over the source. As after stream_copy, a following release store publishes the bytes.
uint64_t xxh3_64_copying(void* dst, const void* src, size_t size);

// For tests, which prove that all paths agree: "avx512", "avx2" or "portable" by name.
// False, and nothing written, if this CPU or build lacks the path.
bool xxh3_64_with(const char* path, const void* data, size_t size, uint64_t seed, uint64_t* hash_out);

// The same for copying, from 1024 bytes on; false also for fewer.
bool xxh3_64_copying_with(const char* path, void* dst, const void* src, size_t size, uint64_t* hash_out);

}  // namespace maru
