// Letting go of the GIL and getting it back, also when the interpreter is going away meanwhile.
//
// A daemon thread that asks for the GIL while Python finalizes is ended by pthread_exit: a forced unwind
// through C++ frames, which the first noexcept one turns into std::terminate, killing a process that was
// about to end quietly. So the unwind is caught right where it begins, and the thread waits for the process
// to end, as Python 3.14 does.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <cstdint>

namespace maru {

// Shorter work is over sooner than another thread would wake up.
inline constexpr uint64_t kReleaseGilBytes = 64 * 1024;

// Releases the GIL for its scope when `when` says so: short operations keep it, long copies do not.
class MaybeRelease {
 public:
  explicit MaybeRelease(bool when) : state_(when ? PyEval_SaveThread() : nullptr) {}
  ~MaybeRelease() {
    if (!state_) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) pause();
    }
  }
  MaybeRelease(const MaybeRelease&) = delete;
  MaybeRelease& operator=(const MaybeRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace maru
