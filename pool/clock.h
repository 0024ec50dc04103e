// Time as the pool knows it: nanoseconds of CLOCK_BOOTTIME, which goes on during suspend, never jumps with
// the wall clock and is the same in every process and container of one host: what a time namespace adds to it
// is taken off again.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "crash_point.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace maru {

inline constexpr uint64_t kMillisecond = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;

// How much further this process's CLOCK_BOOTTIME is than the host's.
inline std::atomic<int64_t> time_namespace_ahead_ns{0};

// Read it from /proc; whoever attaches does, since a forked child may be in another namespace. Kernels
// without time namespaces say nothing: 0. `root` stands before /proc, for tests.
void learn_time_namespace(const std::string& root = "");

inline uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return static_cast<uint64_t>(t.tv_sec) * kSecond + static_cast<uint64_t>(t.tv_nsec) -
         static_cast<uint64_t>(time_namespace_ahead_ns.load(std::memory_order_relaxed));
}

inline void sleep_ns(uint64_t ns) {
  timespec t{static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
  nanosleep(&t, nullptr);
}

inline void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Non-temporal stores are not ordered by an ordinary release store; this is what makes them so.
inline void store_fence() {
#ifdef MARU_TEST_POINTS
  land_late_stores();
#endif
#if defined(__x86_64__)
  _mm_sfence();
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }

}  // namespace maru
