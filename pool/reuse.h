// How far apart the same chunk is asked for, and what follows from it: the gate.
//
// Recency is the best guide to agentic traffic, and the worst there is to a loop larger than the pool: each
// chunk goes just before it is wanted again. So a sample of the keys is watched. For each of them its last
// reference is kept, in chunks asked for since creation, and a reference that comes again is counted by its
// distance, in bins of half a pool of references. At every new bin one process chooses: were each chunk kept
// for d bins and no longer, H(d) references would hit and, by Little's law, occupied(d) chunks would be held,
// so that a pool of `resident` chunks would answer H(d) * min(1, resident / occupied(d)) of them. If the best
// d hits half as much again as what fits as it is, then chunks younger than d are protected: whoever would
// have to evict one stores nothing instead.
//
//   Only where one chunk size prevails, as it does when one model is served, and only for chunks of that
//   size: a distance is counted in chunks. Who writes: everybody, racily. The worst a lost or torn update can
//   do is a gate that opens or closes a bin late; it decides who is stored, never who reads what. Source of
//   the method: protecting distance, Duong et al., "Improving Cache Management Policies Using Dynamic Reuse
//   Distances", MICRO 2012.
#pragma once

#include "chunk_index.h"
#include "pool.h"

namespace maru {

// Watches the keys of one call: which of them are sampled is fixed for as long as the pool holds about as
// much.
class ReuseSampler {
 public:
  // `clock`: references so far, as count_references counted them.
  ReuseSampler(Pool& pool, uint64_t clock);
  ~ReuseSampler();
  ReuseSampler(const ReuseSampler&) = delete;
  ReuseSampler& operator=(const ReuseSampler&) = delete;

  // `later`: how many references after `clock`.
  void see(Key key, uint64_t later) {
    const uint64_t mixed = mix_key(key);
    if ((mixed >> 24 & mask_) == 0) record(mixed, clock_ + later);
  }

 private:
  void record(uint64_t mixed, uint64_t clock);

  Pool& pool_;
  uint64_t clock_;
  uint64_t bin_references_;
  uint64_t mask_;
  uint64_t sampled_ = 0;
};

inline constexpr uint32_t kEpochsPerBin = 8;

// Choose how many epochs a chunk is protected for, and let old experience fade. Once for every bin's worth of
// references.
void choose_protection(Pool& pool);

}  // namespace maru
