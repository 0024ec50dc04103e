#include "check.h"

#include <algorithm>
#include <map>
#include <set>

#include "allocator.h"
#include "chunk_index.h"
#include "pins.h"
#include "process_table.h"
#include "shares.h"
#include "xxh3.h"

namespace maru {

namespace {

constexpr size_t kFindingLimit = 100;
constexpr int kLooks = 3;
constexpr uint64_t kPauseNs = 3 * kMillisecond;

using Findings = std::set<std::string>;

class Inspector {
 public:
  Inspector(Pool& pool, bool verify_bytes) : pool_(pool), verify_bytes_(verify_bytes) {
    for (uint32_t p = 0; p < pool.geometry.process_limit; p++) alive_.push_back(process_is_alive(pool, p));
  }

  Findings look() {
    found_.clear();
    keys_.clear();
    check_slots();
    check_owners();
    check_slabs();
    check_pins();
    check_locks();
    check_accounts();
    return found_;
  }

 private:
  void find(const std::string& what, uint64_t number) {
    if (found_.size() < kFindingLimit) found_.insert(what + " " + std::to_string(number));
  }
  bool is_alive(uint32_t process) const { return process < alive_.size() && alive_[process]; }

  void check_slots() {
    const Geometry& g = pool_.geometry;
    for (uint64_t i = 0; i < g.slot_count; i++) {
      const SlotHot& slot = pool_.hot[i];
      const uint64_t word = slot.word.load(std::memory_order_acquire);
      const SlotState state = slot_state(word);
      const uint32_t tag = pool_.buckets[i / kBucketSlots].tag[i % kBucketSlots].load();
      if (static_cast<uint64_t>(state) > 6) {
        find("unknown slot state in slot", i);
        continue;
      }
      if (state == SlotState::kFree) {
        if (tag != 0) find("tag on free slot", i);
        continue;
      }
      if (state == SlotState::kRevoked && slot_process(word) == kNobody) {
        if (!is_pinned(pool_, i)) find("revoked slot that nobody holds: slot", i);
        continue;
      }
      if (state != SlotState::kSealed && state != SlotState::kQuarantined) {
        if (!is_alive(slot_process(word))) find("word of a dead process left in slot", i);
        continue;
      }
      check_extent(i, slot, word);
      if (state != SlotState::kSealed) continue;
      const Key key{slot.key_lo.load(), slot.key_hi.load()};
      if (!keys_.insert({key.lo, key.hi}).second) find("key bound twice, second in slot", i);
      bool found_here = false;
      probe(pool_, key, [&](uint64_t j) {
        found_here = found_here || j == i;
        return j == i;
      });
      if (!found_here) find("sealed chunk that a lookup does not find: slot", i);
    }
  }

  void check_extent(uint64_t i, const SlotHot& slot, uint64_t word) {
    const Geometry& g = pool_.geometry;
    const uint64_t extent = slot.extent.load(), size = slot.size_bytes.load();
    if (slot.namespace_id.load() >= g.namespace_limit) find("namespace out of range in slot", i);
    if (!pool_.extent_is_sane(extent, size)) return find("extent out of range in slot", i);
    const uint64_t unit = pool_.unit_of_extent(extent), slab = pool_.slab_of_unit(unit);
    if (!owned_by_slot(pool_.owners[unit].load(), i)) find("extent without back-reference to slot", i);
    const uint64_t slab_now = pool_.slabs[slab].word.load(), units = slab_chunk_units(slab_now);
    if (slab_state(slab_now) == SlabState::kFree || units != pool_.units_for(size) ||
        unit % g.units_per_slab % units != 0)
      return find("chunk size and slab disagree for slot", i);
    if (unit % g.units_per_slab * g.unit_bytes + size > pool_.slabs[slab].real_bytes.load())
      find("chunk in space that is not real: slot", i);
    if (slot_state(word) != SlotState::kSealed || !pool_.segment_is_there(extent_segment(extent))) return;
    const ExtentHeader* header = pool_.header_of(unit, units);
    if (header->sealed.load() == 0 || header->key_lo != slot.key_lo.load() ||
        header->key_hi != slot.key_hi.load() || header->size_bytes != size)
      find("extent header does not describe slot", i);
    if (verify_bytes_ && (slot.flags.load() & kSlotChecksummed) &&
        xxh3_64(pool_.readable_at(extent), size) != pool_.cold[i].checksum.load() && slot.word.load() == word)
      find("bytes do not match the checksum of slot", i);
  }

  void check_owners() {
    const Geometry& g = pool_.geometry;
    for (uint64_t unit = 0; unit < g.unit_count; unit++) {
      const uint64_t word = pool_.owners[unit].load(std::memory_order_relaxed);
      if (owner_kind(word) == OwnerKind::kProcess && !is_alive(static_cast<uint32_t>(owner_value(word))))
        find("extent of a dead process: unit", unit);
      if (owner_kind(word) != OwnerKind::kSlot) continue;
      const uint64_t i = owner_value(word);
      if (i >= g.slot_count) {
        find("owner out of range at unit", unit);
        continue;
      }
      const SlotHot& slot = pool_.hot[i];
      const uint64_t extent = slot.extent.load();
      if (slot_state(slot.word.load()) == SlotState::kFree || !pool_.extent_is_sane(extent, 1) ||
          pool_.unit_of_extent(extent) != unit)
        find("extent whose slot does not own it (leaked): unit", unit);
    }
  }

  void check_slabs() {
    for (uint64_t slab = 0; slab < pool_.geometry.slab_count; slab++) {
      const uint64_t word = pool_.slabs[slab].word.load(), units = slab_chunk_units(word);
      if (slab_state(word) == SlabState::kDraining && !is_alive(slab_process(word)))
        find("slab left draining by a dead process: slab", slab);
      if (static_cast<uint64_t>(slab_state(word)) > 2) find("unknown slab state in slab", slab);
      if (slab_state(word) == SlabState::kActive && (units == 0 || units > pool_.geometry.units_per_slab))
        find("impossible chunk size in slab", slab);
      if (pool_.slabs[slab].real_bytes.load() > pool_.geometry.slab_bytes)
        find("more real bytes than a slab has: slab", slab);
    }
  }

  void check_pins() {
    for (uint32_t p = 0; p < pool_.geometry.process_limit; p++) {
      if (is_alive(p)) continue;
      for (uint64_t i = 0; i < pool_.geometry.slot_count; i++)
        if (pin_counter(pool_, p, i).load(std::memory_order_relaxed) != 0)
          find("pin of dead process " + std::to_string(p) + " on slot", i);
      if (pool_.processes[p].attached.load() != 0) find("dead process still in the table:", p);
      if (pool_.super->live[p / 64].load() >> (p % 64) & 1) find("live bit of dead process", p);
    }
  }

  void check_locks() {
    for (uint32_t shard = 0; shard <= pool_.geometry.shard_count; shard++) {
      const uint64_t owner = pool_.shards[shard].owner.load();
      if (owner != 0 && !is_alive(static_cast<uint32_t>(owner & 255) - 1))
        find("lock held by a dead process: shard", shard);
    }
  }

  // In a pool in use they differ for a moment: what lasts is the same difference at every look.
  void check_accounts() {
    const std::vector<uint64_t> used = used_by_owners(pool_);
    for (uint32_t tenant = 1; tenant < used.size(); tenant++) {
      const uint64_t account = pool_.tenants[tenant].used_bytes.load();
      if (account != used[tenant])
        find("account of tenant " + std::to_string(tenant) + " says " + std::to_string(account) +
                 " bytes, its extents are",
             used[tenant]);
    }
  }

  Pool& pool_;
  bool verify_bytes_;
  std::vector<bool> alive_;
  Findings found_;
  std::set<std::pair<uint64_t, uint64_t>> keys_;
};

}  // namespace

std::vector<std::string> check_pool(Pool& pool, bool verify_bytes) {
  if (!pool.is_live()) return {"the pool was destroyed"};
  Findings lasting;
  for (int n = 0; n < kLooks; n++) {
    Findings now = Inspector(pool, verify_bytes).look();
    if (n == 0) {
      lasting = std::move(now);
    } else {
      Findings both;
      std::set_intersection(lasting.begin(), lasting.end(), now.begin(), now.end(),
                            std::inserter(both, both.begin()));
      lasting = std::move(both);
    }
    if (lasting.empty()) return {};
    sleep_ns(kPauseNs);
  }
  return {lasting.begin(), lasting.end()};
}

}  // namespace maru
