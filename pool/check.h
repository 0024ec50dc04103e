// Every invariant of a pool, spelled out. On a pool at rest each finding is a fault. On a living pool words
// are on their way, so a finding counts only when it is still there, with the same words, after a pause.
#pragma once

#include <string>
#include <vector>

#include "pool.h"

namespace maru {

// What is wrong, in words; empty when nothing is. `verify_bytes` also compares every stored checksum. At most
// 100.
std::vector<std::string> check_pool(Pool& pool, bool verify_bytes);

}  // namespace maru
