// The pool's figures as one JSON text: what `maru stat` shows and scripts read.
#pragma once

#include <string>

#include "pool.h"

namespace maru {

// Walks all slots and slabs: milliseconds on a large pool, no lock. Figures of a living pool are of slightly
// different moments.
std::string statistics_json(const Pool& pool, uint64_t populated_bytes, bool ready);

}  // namespace maru
