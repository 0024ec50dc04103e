#include "housekeeper.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>

#include "attach.h"
#include "cleaner.h"
#include "recut.h"
#include "segments.h"
#include "space.h"

namespace maru {

namespace {

constexpr uint64_t kStepBytes = 16ull << 20;  // Made real or touched at a time: short enough to stop soon.
constexpr uint64_t kSlotsPerSweep = 65536;  // Looked at per tick, so that a large pool's sweep is spread out.
constexpr uint64_t kRefusedPauseNs = 2 * kSecond;

bool touch_pages(uint8_t* from, uint64_t bytes, bool writable) {
  return madvise(from, bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0;
}

}  // namespace

Housekeeper::Housekeeper(Pool& pool, bool populate)
    : pool_(pool), populate_(populate), populated_(pool.geometry.slab_count, 0) {
  // Signals are the application's business: none of them is handled on our thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Housekeeper::stop() {
  {
    std::lock_guard<std::mutex> guard(mutex_);
    if (stop_) return;
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool Housekeeper::is_stopped() {
  std::lock_guard<std::mutex> guard(mutex_);
  return stop_;
}

bool Housekeeper::should_stop() {
  std::lock_guard<std::mutex> guard(mutex_);
  return stop_ || pool_.is_forked.load();
}

bool Housekeeper::pause(uint64_t ns) {
  std::unique_lock<std::mutex> guard(mutex_);
  changed_.wait_for(guard, std::chrono::nanoseconds(ns), [this] { return stop_; });
  return !stop_;
}

bool Housekeeper::wait_ready(uint64_t deadline_ns) {
  std::unique_lock<std::mutex> guard(mutex_);
  while (!state_.ready && !stop_) {
    const uint64_t now = now_ns();
    if (now >= deadline_ns) return false;
    changed_.wait_for(guard, std::chrono::nanoseconds(std::min(deadline_ns - now, kTickNs)));
  }
  return state_.ready;
}

ReadyState Housekeeper::state() {
  std::lock_guard<std::mutex> guard(mutex_);
  return state_;
}

void Housekeeper::make_space() {
  space_done_ = true;
  for (uint64_t slab = 0; slab < pool_.geometry.slab_count; slab++) {
    if (!pool_.segment_is_there(pool_.segment_of_slab(slab))) continue;
    while (pool_.slabs[slab].real_bytes.load() < pool_.geometry.slab_bytes) {
      // One process at a time; the others look again at the next tick.
      const Descriptor lock = pool_.lock_file->try_lock(kLockByteSpace);
      if (!lock) {
        space_done_ = !pool_.lock_file->is_current();
        return;
      }
      const uint64_t now = pool_.slabs[slab].real_bytes.load();
      MARU_POINT("space.elected");
      if (!make_real(pool_, slab, std::min(now + kStepBytes, pool_.geometry.slab_bytes)))
        return;  // The medium is full.
      if (should_stop()) return;
      populate_data();
    }
  }
}

void Housekeeper::populate_data() {
  uint64_t real = 0, done = 0;
  for (uint64_t slab = 0; slab < pool_.geometry.slab_count; slab++) {
    if (!pool_.segment_is_there(pool_.segment_of_slab(slab))) continue;
    const uint64_t mark =
        std::min(pool_.slabs[slab].real_bytes.load(), pool_.geometry.slab_bytes) / 4096 * 4096;
    real += mark;
    while (populate_ && populated_[slab] < mark) {
      const uint64_t from = populated_[slab], bytes = std::min(mark - from, kStepBytes);
      const uint64_t at = slab * pool_.geometry.slab_bytes + from;
      if (!pool_.reads_only) touch_pages(pool_.writable + at, bytes, true);
      touch_pages(pool_.readable + at, bytes, false);
      populated_[slab] += bytes;
      MARU_POINT("populate.step");
      if (should_stop()) return;
    }
    done += populated_[slab];
  }
  std::lock_guard<std::mutex> guard(mutex_);
  state_.real_bytes = real;
  state_.populated_bytes = done;
}

void Housekeeper::run() {
  pthread_setname_np(pthread_self(), "maru-keeper");
  uint64_t last_space = 0;
  do {
    if (pool_.is_live()) {
      if (!pool_.reads_only) give_up_recut(pool_, true);
      if (map_new_segments(pool_) > 0) space_done_ = false;
      lose_cut_off_segments(pool_);  // Before anything of ours touches them.
      populate_data();
      if (pool_.reads_only) {
        space_done_ = true;  // What is real by now is all that a reader can wait for.
      } else if (!space_done_ || now_ns() > last_space + kRefusedPauseNs) {
        make_space();
        last_space = now_ns();
        populate_data();
      }
    }
    {
      std::lock_guard<std::mutex> guard(mutex_);
      state_.ready = space_done_ && (!populate_ || state_.populated_bytes >= state_.real_bytes);
    }
    changed_.notify_all();
    if (should_stop()) return;
    // Whoever takes the byte sweeps, if nobody has within this tick.
    if (pool_.is_live() && !pool_.reads_only && now_ns() >= pool_.super->sweep_ns.load() + kTickNs) {
      const Descriptor lock = pool_.lock_file->try_lock(kLockByteHousekeeper);
      MARU_POINT("sweep.elected");
      if (lock) sweep(pool_, kSlotsPerSweep, &cursor_);
    }
  } while (pause(kTickNs));
}

}  // namespace maru
