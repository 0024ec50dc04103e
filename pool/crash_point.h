// Named places where a test may kill, stop or delay the process, and named mutations that tests must catch.
//
// In the product build all of this compiles to nothing. In the test build (MARU_TEST_POINTS) each point is a
// predictable branch on a table that a test arms at run time. Points register themselves when the library is
// loaded, so the list that tests walk is made from the code and cannot be forgotten.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace maru {

enum class PointAction : uint32_t { kNone = 0, kKill = 1, kStop = 2, kDelay = 3, kYield = 4 };

struct PointInfo {
  std::string name;
  uint64_t hits;
};

// All points of this build, by name; empty in the product build.
std::vector<PointInfo> crash_points();

// Arm `name`: on its `after`-th hit from now (1 = the next) kill, stop, or delay by `delay_ns` (from then
// on). False when this build has no such point.
bool arm_crash_point(const std::string& name, PointAction action, uint64_t after, uint64_t delay_ns);
void disarm_crash_points();

// Names of the mutants of this build, and switching one on. False when this build has no such mutant.
std::vector<std::string> mutants();
bool set_mutant(const std::string& name, bool on);

// A caller whose streaming stores are late, as the processor is allowed to make them: the bytes go to `to`
// when this thread next fences, or when it says so. Only the test build keeps them; the product build stores
// at once.
void store_late(uint8_t* to, const void* from, size_t size);
void land_late_stores();

#ifdef MARU_TEST_POINTS

class CrashPoint {
 public:
  explicit CrashPoint(const char* name);
  void reach() {
    hits_.fetch_add(1, std::memory_order_relaxed);
    if (__builtin_expect(action_.load(std::memory_order_relaxed) != 0, 0)) act();
  }

 private:
  friend std::vector<PointInfo> crash_points();
  friend bool arm_crash_point(const std::string&, PointAction, uint64_t, uint64_t);
  friend void disarm_crash_points();
  void act();

  const char* name_;
  std::atomic<uint64_t> hits_{0};
  std::atomic<uint32_t> action_{0};
  std::atomic<int64_t> countdown_{0};
  std::atomic<uint64_t> delay_ns_{0};
};

class Mutant {
 public:
  explicit Mutant(const char* name);
  bool on() const { return on_.load(std::memory_order_relaxed); }

 private:
  friend std::vector<std::string> mutants();
  friend bool set_mutant(const std::string&, bool);
  const char* name_;
  std::atomic<bool> on_{false};
};

// A point's name must be a literal: it is made a template argument so that the point exists from load time
// on.
template <size_t N>
struct PointName {
  char text[N];
  constexpr PointName(const char (&literal)[N]) {
    for (size_t i = 0; i < N; i++) text[i] = literal[i];
  }
};
template <PointName Name>
struct PointOf {
  static inline CrashPoint point{Name.text};
};
template <PointName Name>
struct MutantOf {
  static inline Mutant mutant{Name.text};
};

#define MARU_POINT(name) ::maru::PointOf<name>::point.reach()
#define MARU_MUTANT(name) ::maru::MutantOf<name>::mutant.on()

#else

#define MARU_POINT(name) ((void)0)
#define MARU_MUTANT(name) false

#endif

}  // namespace maru
