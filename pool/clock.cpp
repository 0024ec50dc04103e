#include "clock.h"

#include <fstream>
#include <string>

namespace maru {

void learn_time_namespace(const std::string& root) {
  // A line a clock: its name, seconds and nanoseconds that this namespace's clock is ahead of the host's.
  std::ifstream offsets(root + "/proc/self/timens_offsets");
  std::string clock;
  int64_t seconds = 0, nanoseconds = 0, found = 0;
  while (offsets >> clock >> seconds >> nanoseconds)
    if (clock == "boottime") found = seconds * static_cast<int64_t>(kSecond) + nanoseconds;
  time_namespace_ahead_ns.store(found, std::memory_order_relaxed);
}

}  // namespace maru
