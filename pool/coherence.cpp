#include "coherence.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace maru {

namespace {

#if defined(__x86_64__)

constexpr uintptr_t kLineBytes = 64;

bool has_clflushopt() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 23 & 1) != 0;
}

// The optimised form is ordered only by fences, so that many lines are on their way at once.
__attribute__((target("clflushopt"))) void flush_fast(uintptr_t line, uintptr_t end) {
  for (; line < end; line += kLineBytes) _mm_clflushopt(reinterpret_cast<void*>(line));
}

void flush_slowly(uintptr_t line, uintptr_t end) {
  for (; line < end; line += kLineBytes) _mm_clflush(reinterpret_cast<const void*>(line));
}

#endif

}  // namespace

void flush_lines(const void* from, size_t size) {
  if (size == 0) return;
  const auto first = reinterpret_cast<uintptr_t>(from);
#if defined(__x86_64__)
  static const bool fast = has_clflushopt();
  // Stores of ours that are still on their way must be in the lines before these are taken; and nothing may
  // be read from them again before they are gone.
  _mm_mfence();
  (fast ? flush_fast : flush_slowly)(first / kLineBytes * kLineBytes, first + size);
  _mm_mfence();
#elif defined(__aarch64__)
  uint64_t type = 0;
  __asm__ volatile("mrs %0, ctr_el0" : "=r"(type));
  const uintptr_t line_bytes = uintptr_t{4} << (type >> 16 & 15);
  __asm__ volatile("dsb sy" ::: "memory");
  for (uintptr_t line = first / line_bytes * line_bytes; line < first + size; line += line_bytes)
    __asm__ volatile("dc civac, %0" ::"r"(line) : "memory");
  __asm__ volatile("dsb sy" ::: "memory");
#else
  (void)first;
#endif
}

const char* flush_path() {
#if defined(__x86_64__)
  static const bool fast = has_clflushopt();
  return fast ? "clflushopt" : "clflush";
#elif defined(__aarch64__)
  return "dc civac";
#else
  return "none";
#endif
}

}  // namespace maru
