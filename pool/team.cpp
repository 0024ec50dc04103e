#include "team.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "copy.h"
#include "words.h"

namespace maru {

namespace {

constexpr size_t kCutSize = 2 << 20;  // Pieces end where huge pages do, if the copy begins where one does.

}  // namespace

void work_together(uint32_t threads, uint64_t jobs, const std::function<void(uint64_t)>& job) {
  Atomic<uint64_t> next{0};
  const auto work = [&] {
    for (uint64_t n = next.fetch_add(1); n < jobs; n = next.fetch_add(1)) job(n);
  };
  std::vector<std::thread> helpers;
  if (threads > 1 && jobs > 1) {
    // Signals are the application's business: none of them is handled on our threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const uint64_t wanted = std::min<uint64_t>(threads, jobs) - 1;
    helpers.reserve(wanted);
    try {
      while (helpers.size() < wanted) helpers.emplace_back(work);
    } catch (const std::system_error&) {  // No more threads are to be had: those that there are do it.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

uint32_t team_for(uint64_t bytes, uint32_t limit) {
  return static_cast<uint32_t>(std::clamp<uint64_t>(bytes / kBytesPerHelper, 1, std::max(1u, limit)));
}

void stream_copy_together(uint32_t threads, void* dst, const void* src, size_t size) {
  const uint32_t team = team_for(size, threads);
  if (team == 1) return stream_copy(dst, src, size);
  const size_t share = ((size + team - 1) / team + kCutSize - 1) / kCutSize * kCutSize;
  work_together(team, (size + share - 1) / share, [&](uint64_t n) {
    const size_t from = n * share;
    stream_copy(static_cast<uint8_t*>(dst) + from, static_cast<const uint8_t*>(src) + from,
                std::min(share, size - from));
  });
}

}  // namespace maru
