// Fork and us: what must not happen while another thread forks, and what becomes of a pool in the child.
//
// A child of fork starts without the pool: the mappings are MADV_DONTFORK, the parent's pins protect nothing
// there. The child's handles attach again, lazily, with a process slot of their own. Views that it inherited
// must never lie: their addresses are fenced with PROT_NONE at once, so touching one faults.
#pragma once

#include <cstddef>

namespace maru {

// While one lives in this process, fork() in another thread waits.
class ForkGuard {
 public:
  ForkGuard();
  ~ForkGuard();
  ForkGuard(const ForkGuard&) = delete;
};

// Something that must hear in the child that it was forked away. `forked()` runs between fork and everything
// else in the child: no locks, no allocation.
class ForkWitness {
 public:
  ForkWitness();
  virtual ~ForkWitness();
  ForkWitness(const ForkWitness&) = delete;
  virtual void forked() noexcept = 0;
};

// Fence `size` bytes at `address`, which a fork left unmapped, so that no later mapping takes their place.
void fence_addresses(void* address, size_t size) noexcept;

}  // namespace maru
