#include "reuse.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace maru {

namespace {

constexpr uint64_t kScale = 1024;            // One reference, in what the histogram counts.
constexpr uint64_t kReferencesKept = 32;     // The sample remembers a key for so many pools of references.
constexpr uint32_t kWays = 8;                // Entries in one cache line; the oldest of them gives way.
constexpr double kEvidence = 20.0 * kScale;  // Fewer references that came back are an accident.
constexpr double kMarginToProtect = 1.5;     // A protecting distance must hit this much more than recency.
constexpr uint64_t kSlotsSampled = 256;      // To see which chunk size prevails.
constexpr uint64_t kClockMask = (1ull << 44) - 1;

Atomic<uint64_t>* entries_of(Pool& pool) { return reinterpret_cast<Atomic<uint64_t>*>(pool.reuse + 1); }

uint64_t bin_references(const Pool& pool) {
  const uint64_t resident =
      std::min(pool.super->resident.load(std::memory_order_relaxed), pool.geometry.slot_count);
  return std::max<uint64_t>(1, resident / 2);
}

// Counted keys differ little in their mixtures: two names in one line that look the same would count as a
// chunk that came back. The finalizer of MurmurHash3 (Appleby, public domain) spreads every bit over all.
uint64_t scatter(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
  return x ^ x >> 33;
}

// The chunk size of nearly everything in the pool, in units; 0 when sizes are mixed. Distances are counted in
// chunks, and tell nothing about how long one of another size could stay.
uint64_t prevailing_units(const Pool& pool) {
  const uint64_t step = std::max<uint64_t>(1, pool.geometry.slot_count / kSlotsSampled);
  std::vector<uint64_t> units;
  for (uint64_t i = 0; i < pool.geometry.slot_count && units.size() < kSlotsSampled; i += step)
    if (slot_state(pool.hot[i].word.load(std::memory_order_relaxed)) == SlotState::kSealed)
      units.push_back(pool.units_for(pool.hot[i].size_bytes.load(std::memory_order_relaxed)));
  if (units.empty()) return 0;
  const uint64_t candidate = units[units.size() / 2];
  const auto same = static_cast<uint64_t>(std::count(units.begin(), units.end(), candidate));
  return same * 10 >= units.size() * 9 && candidate < 1ull << 32 ? candidate : 0;
}

}  // namespace

ReuseSampler::ReuseSampler(Pool& pool, uint64_t clock)
    : pool_(pool), clock_(clock), bin_references_(bin_references(pool)) {
  const uint64_t wanted = 2 * bin_references_ * kReferencesKept / pool.geometry.reuse_entries;
  mask_ = std::bit_ceil(std::max<uint64_t>(1, wanted)) - 1;
}

ReuseSampler::~ReuseSampler() {
  if (sampled_ > 0) pool_.reuse->sampled.fetch_add(sampled_ * kScale, std::memory_order_relaxed);
}

void ReuseSampler::record(uint64_t mixed, uint64_t clock) {
  const uint64_t name = scatter(mixed), tag = name >> 44;
  const uint64_t line = name & (pool_.geometry.reuse_entries / kWays - 1);
  Atomic<uint64_t>* ways = entries_of(pool_) + line * kWays;
  uint32_t chosen = 0;
  uint64_t chosen_distance = 0;
  sampled_++;
  for (uint32_t n = 0; n < kWays; n++) {
    const uint64_t entry = ways[n].load(std::memory_order_relaxed);
    const uint64_t distance = (clock - entry) & kClockMask;
    if (entry != 0 && entry >> 44 == tag) {
      const uint64_t bin = distance / bin_references_;
      // Two at once may lose one of two counts: cheaper than a locked instruction for each.
      if (bin < kReuseBinCount) {
        Atomic<uint64_t>& count = pool_.reuse->distance[bin];
        count.store(count.load(std::memory_order_relaxed) + kScale, std::memory_order_relaxed);
      }
      chosen = n;
      break;
    }
    if (entry == 0 || distance >= chosen_distance) {
      chosen = n;
      chosen_distance = entry == 0 ? kClockMask : distance;
    }
  }
  ways[chosen].store(tag << 44 | (clock & kClockMask), std::memory_order_relaxed);
}

void choose_protection(Pool& pool) {
  ReuseTable& table = *pool.reuse;
  const auto all = static_cast<double>(table.sampled.load(std::memory_order_relaxed));
  double hits = 0, held = 0, best = 0, as_it_is = 0;
  uint64_t best_bins = 0;
  for (uint32_t bin = 0; bin < kReuseBinCount; bin++) {
    const auto here = static_cast<double>(table.distance[bin].load(std::memory_order_relaxed));
    hits += here;
    held += here * (bin + 0.5);
    // Chunks held, in pools: each reference holds its chunk until it comes again, or for bin + 1 epochs in
    // vain.
    const double pools = (held + std::max(0.0, all - hits) * (bin + 1)) / std::max(all, 1.0) / 2;
    const double value = pools > 1 ? hits / pools : hits;
    if (pools <= 1) as_it_is = std::max(as_it_is, value);
    if (value > best * 1.0001) {
      best = value;
      best_bins = bin + 2;
    }
    table.distance[bin].store(static_cast<uint64_t>(here * 0.9), std::memory_order_relaxed);
  }
  table.sampled.fetch_sub(static_cast<uint64_t>(all / 10), std::memory_order_relaxed);
  const bool closes = hits >= kEvidence && best > kMarginToProtect * as_it_is;
  const uint64_t units = closes ? prevailing_units(pool) : 0;
  pool.super->gate.store(units ? units << 32 | best_bins * kEpochsPerBin : 0, std::memory_order_relaxed);
}

}  // namespace maru
