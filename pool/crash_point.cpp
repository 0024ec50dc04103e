#include "crash_point.h"

#include <signal.h>

#include <algorithm>
#include <cstring>

#include "clock.h"

namespace maru {

#ifdef MARU_TEST_POINTS

namespace {
// Heap-allocated and never freed: threads may still reach points while static objects are being destroyed.
std::vector<CrashPoint*>& all_points() {
  static auto* points = new std::vector<CrashPoint*>;
  return *points;
}
std::vector<Mutant*>& all_mutants() {
  static auto* list = new std::vector<Mutant*>;
  return *list;
}
}  // namespace

CrashPoint::CrashPoint(const char* name) : name_(name) { all_points().push_back(this); }
Mutant::Mutant(const char* name) : name_(name) { all_mutants().push_back(this); }

void CrashPoint::act() {
  const auto action = static_cast<PointAction>(action_.load());
  if (action == PointAction::kDelay) return sleep_ns(delay_ns_.load());
  if (action == PointAction::kYield) return sleep_ns(0);
  if (countdown_.fetch_sub(1) != 1) return;
  action_.store(0);
  raise(action == PointAction::kKill ? SIGKILL : SIGSTOP);
}

std::vector<PointInfo> crash_points() {
  std::vector<PointInfo> out;
  for (const CrashPoint* p : all_points()) out.push_back({p->name_, p->hits_.load()});
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

bool arm_crash_point(const std::string& name, PointAction action, uint64_t after, uint64_t delay_ns) {
  for (CrashPoint* p : all_points()) {
    if (name != p->name_) continue;
    p->countdown_.store(static_cast<int64_t>(after));
    p->delay_ns_.store(delay_ns);
    p->action_.store(static_cast<uint32_t>(action));
    return true;
  }
  return false;
}

void disarm_crash_points() {
  for (CrashPoint* p : all_points()) p->action_.store(0);
}

namespace {
thread_local std::vector<std::pair<uint8_t*, std::vector<uint8_t>>> late_stores;
}

void store_late(uint8_t* to, const void* from, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  late_stores.emplace_back(to, std::vector<uint8_t>(bytes, bytes + size));
}

void land_late_stores() {
  for (const auto& [to, bytes] : late_stores) std::memcpy(to, bytes.data(), bytes.size());
  late_stores.clear();
}

std::vector<std::string> mutants() {
  std::vector<std::string> out;
  for (const Mutant* m : all_mutants()) out.emplace_back(m->name_);
  std::sort(out.begin(), out.end());
  return out;
}

bool set_mutant(const std::string& name, bool on) {
  for (Mutant* m : all_mutants()) {
    if (name != m->name_) continue;
    m->on_.store(on);
    return true;
  }
  return false;
}

#else

std::vector<PointInfo> crash_points() { return {}; }
bool arm_crash_point(const std::string&, PointAction, uint64_t, uint64_t) { return false; }
void disarm_crash_points() {}
void store_late(uint8_t* to, const void* from, size_t size) { std::memcpy(to, from, size); }
void land_late_stores() {}
std::vector<std::string> mutants() { return {}; }
bool set_mutant(const std::string&, bool) { return false; }

#endif

}  // namespace maru
