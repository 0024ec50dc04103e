// The thread that does what callers should not wait for: touching memory before it is needed, making space
// real, cleaning up after the dead. One a process; two byte locks elect who among all processes makes space
// and who sweeps.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "pool.h"

namespace maru {

inline constexpr uint64_t kTickNs = 250 * kMillisecond;

struct ReadyState {
  bool ready = false;            // Everything real is mapped in this process, and nothing more is coming.
  uint64_t real_bytes = 0;       // Of the pool's slabs, given by the medium.
  uint64_t populated_bytes = 0;  // Of these, touched in this process (both mappings).
};

class Housekeeper {
 public:
  // `populate`: touch the data in the background too; otherwise first use pays for it.
  Housekeeper(Pool& pool, bool populate);
  ~Housekeeper() { stop(); }
  Housekeeper(const Housekeeper&) = delete;

  // Wait until ready, at most until `deadline_ns`. In a forked child, whose thread does not exist: false.
  bool wait_ready(uint64_t deadline_ns);
  ReadyState state();

  // End the thread and everybody's wait. The object stays, for those who are in the middle of asking it.
  void stop();
  bool is_stopped();

  // In a forked child: the thread is gone, so there is nothing to stop.
  void abandon() { thread_.detach(); }

 private:
  void run();
  bool pause(uint64_t ns);  // False: stop.
  bool should_stop();
  void make_space();
  void populate_data();

  Pool& pool_;
  bool populate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  ReadyState state_;
  bool space_done_ = false;
  std::vector<uint64_t> populated_;  // Per slab.
  uint64_t cursor_ = 0;
  std::thread thread_;
};

}  // namespace maru
