#include "fork_guard.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "crash_point.h"

namespace maru {

namespace {

// Never destroyed: threads and the interpreter may fork while static objects are going away.
struct Registry {
  std::mutex mutex;  // Not a recursive one: that remembers a thread id, which is another in the child.
  std::vector<ForkWitness*> witnesses;
};

Registry& registry() {
  static auto* r = [] {
    auto* fresh = new Registry;
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] {
                     for (ForkWitness* witness : registry().witnesses) witness->forked();
                     registry().mutex.unlock();
                     MARU_POINT("fork.child");
                   });
    return fresh;
  }();
  return *r;
}

}  // namespace

ForkGuard::ForkGuard() { registry().mutex.lock(); }
ForkGuard::~ForkGuard() { registry().mutex.unlock(); }

ForkWitness::ForkWitness() {
  ForkGuard guard;
  registry().witnesses.push_back(this);
}

ForkWitness::~ForkWitness() {
  ForkGuard guard;
  auto& list = registry().witnesses;
  list.erase(std::remove(list.begin(), list.end(), this), list.end());
}

void fence_addresses(void* address, size_t size) noexcept {
  mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}

}  // namespace maru
