// Memory that two hosts map and no hardware keeps coherent: taking lines out of this host's caches.
//
// The one who wrote bytes flushes them before anybody on another host is told of them; the one who reads
// flushes them after it was told, since its caches may have fetched them earlier. Flushing works on lines
// that any core of this host holds.
#pragma once

#include <cstddef>

namespace maru {

// Write back and drop every cache line of these bytes, and wait until that is done. The memory stays as it
// is; costs about as much as reading it.
void flush_lines(const void* from, size_t size);

// How: "clflushopt", "clflush", "dc civac", or "none" where this CPU has no way that is known here.
const char* flush_path();

}  // namespace maru
