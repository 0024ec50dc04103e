// Counting a process's instructions by letting it take one step at a time between two marks
// (PTRACE_SINGLESTEP). That is exact, needs no rights, no kernel counters and no tool, and does not depend on
// what else the machine does. It does not see the kernel's instructions, nor how fast any are.
#pragma once

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "failure.h"
#include "ground.h"

#if defined(__x86_64__)
extern "C" {
// What __builtin_cpu_supports reads (libgcc and compiler-rt agree on it).
struct CpuModel {
  unsigned vendor, type, subtype, features[1];
};
extern CpuModel __cpu_model;
}
#endif

namespace maru {

constexpr int kDeniedStatus = 2;  // Of a driver, when the kernel or a container's filter refuses ptrace.

// From the core's dispatch, so that every x86-64 with AVX2 takes the same path.
inline void hide_avx512() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  constexpr unsigned kAvx512f = 15, kFirst = 20,
                     kLast = 27;  // F, then VL to IFMA in the order of GCC and LLVM.
  __cpu_model.features[0] &= ~(1u << kAvx512f);
  for (unsigned bit = kFirst; bit <= kLast; bit++) __cpu_model.features[0] &= ~(1u << bit);
#endif
}

// In the process that is counted: a counted stretch lies between two of them.
inline void mark() { raise(SIGSTOP); }

[[noreturn]] inline void denied() {
  std::fprintf(stderr, "no process may be stepped through here: %s\n", std::strerror(errno));
  std::_Exit(kDeniedStatus);
}

// In the process that counts.
inline int waited(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) fail("the counted process is gone");
  if (WIFEXITED(status) && WEXITSTATUS(status) == kDeniedStatus) std::_Exit(kDeniedStatus);
  if (!WIFSTOPPED(status)) fail("the counted process ended early");
  return WSTOPSIG(status);
}

// To the next mark; returns how many instructions that took.
inline uint64_t step_to_mark(pid_t child) {
  for (uint64_t count = 0;; count++) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) denied();
    if (waited(child) == SIGSTOP) return count;
  }
}

inline void run_to_mark(pid_t child) {
  if (ptrace(PTRACE_CONT, child, nullptr, nullptr) != 0) denied();
  while (waited(child) != SIGSTOP) ptrace(PTRACE_CONT, child, nullptr, nullptr);
}

struct Stretch {
  std::string name;
  uint64_t repeats;  // Of what is counted: the count is told for one.
};

// The main function of a driver: DRIVER FOLDER prints "COUNT NAME" for each stretch, in their order.
// `be_counted` runs in a child: it asks to be traced, marks once and again for the cost of a mark, then each
// stretch.
inline int count_stretches(int argc, char** argv, void (*be_counted)(const std::string& folder),
                           const std::vector<Stretch>& stretches) {
  if (argc != 2) fail(std::string("usage: ") + argv[0] + " FOLDER");
  const pid_t child = fork();
  if (child < 0) fail("cannot fork");
  if (child == 0) {
    try {
      be_counted(argv[1]);
    } catch (const Failure& failure) {
      fail(failure.kind() + ": " + failure.what());
    }
  }
  waited(child);
  const uint64_t of_marks = step_to_mark(child);
  for (const Stretch& stretch : stretches) {
    run_to_mark(child);
    const uint64_t steps = step_to_mark(child) - of_marks;
    std::printf("%llu %s\n", static_cast<unsigned long long>(steps / stretch.repeats), stretch.name.c_str());
    std::fflush(stdout);
  }
  kill(child, SIGKILL);
  return 0;
}

}  // namespace maru
