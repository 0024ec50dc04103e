#include "recut.h"

#include <algorithm>
#include <utility>

#include "allocator.h"
#include "departure.h"
#include "eviction.h"
#include "space.h"

namespace maru {

namespace {

// At an allocation that evicts one chunk for itself: enough for a slab of a thousand chunks to be ready
// within a hundred of them, few enough for nobody to feel it.
constexpr uint64_t kClaimsAtOnce = 8;

enum class Claim { kMore, kAll, kRefused };

uint64_t chunk_count(const Pool& pool, const Recut& recut) {
  return pool.geometry.units_per_slab / recut.old_units;
}

uint64_t first_unit(const Pool& pool, const Recut& recut) {
  return recut.slab * pool.geometry.units_per_slab;
}

// Mark the slab: from here on nobody takes a free chunk of it.
bool mark_draining(Pool& pool, uint64_t slab, uint64_t units, uint32_t tenant, Recut* out) {
  uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire);
  if (slab_state(word) != SlabState::kActive || slab_chunk_units(word) == units ||
      !pool.segment_is_there(pool.segment_of_slab(slab)))
    return false;
  const uint64_t old_units = slab_chunk_units(word), generation = slab_generation(word);
  if (old_units == 0 || old_units > pool.geometry.units_per_slab) return false;
  if (!pool.slabs[slab].word.compare_exchange_strong(
          word, slab_word(SlabState::kDraining, pool.me, old_units, generation)))
    return false;
  MARU_POINT("reclass.draining");
  *out = {slab, old_units, units, tenant, generation};
  return true;
}

// A chunk that is free or has cooled down. What a device may have written into it since is wiped.
bool claim_resting(Pool& pool, uint64_t unit, uint64_t word) {
  const uint64_t mine = owner_process_word(pool.me, false, 0), wiped = owner_wiped(word) ? kWipedBit : 0;
  if (!pool.owners[unit].compare_exchange_strong(word, mine | wiped)) return false;
  if (!wiped) return true;
  wipe_extent(pool, unit);
  pool.owners[unit].store(mine);
  return true;
}

// Own up to `limit` more chunks of a slab that is DRAINING|me: free ones by CAS, sealed ones by evicting
// them.
Claim claim_chunks(Pool& pool, Recut& recut, uint64_t limit) {
  const uint64_t count = chunk_count(pool, recut), base = first_unit(pool, recut);
  for (; recut.claimed < count && limit > 0; recut.claimed++, limit--) {
    const uint64_t unit = base + recut.claimed * recut.old_units;
    uint64_t word = pool.owners[unit].load(std::memory_order_acquire);
    bool ok = false;
    if (owner_kind(word) == OwnerKind::kFree ||
        (owner_kind(word) == OwnerKind::kCooling && has_cooled_down(word)))
      ok = claim_resting(pool, unit, word);
    else if (owner_kind(word) == OwnerKind::kSlot && owner_value(word) < pool.geometry.slot_count)
      recut.evicted += ok = push_out(pool, owner_value(word), unit, false, recut.tenant, 0);
    if (!ok) return Claim::kRefused;
    MARU_POINT("reclass.chunk_claimed");
  }
  return recut.claimed == count ? Claim::kAll : Claim::kMore;
}

// What was claimed is free again, and the slab what it was.
void set_back(Pool& pool, Recut& recut) {
  const uint64_t base = first_unit(pool, recut);
  for (uint64_t n = 0; n < recut.claimed; n++) pool.owners[base + n * recut.old_units].store(0);
  MARU_POINT("reclass.gave_up");
  pool.slabs[recut.slab].word.store(
      slab_word(SlabState::kActive, kNobody, recut.old_units, recut.generation + 1));
  pool.slabs[recut.slab].free_hint.fetch_add(static_cast<int32_t>(recut.evicted), std::memory_order_relaxed);
  class_row(pool, recut.old_units)
      .free_hint.fetch_add(static_cast<int64_t>(recut.evicted), std::memory_order_relaxed);
  recut = Recut{};
}

// Every chunk is ours: cut it anew, and keep the first chunk.
uint64_t switch_size(Pool& pool, Recut& recut, bool device, uint32_t tenant) {
  MARU_POINT("reclass.all_claimed");
  const uint64_t base = first_unit(pool, recut), slab = recut.slab, units = recut.units;
  const uint64_t old_count = chunk_count(pool, recut), old_units = recut.old_units;
  const uint64_t count = pool.geometry.units_per_slab / units;
  // The first unit heads a chunk in every class: keep it for ourselves before anybody can see the new size.
  pool.owners[base].store(owner_process_word(pool.me, device, tenant));
  pool.slabs[slab].word.store(slab_word(SlabState::kActive, kNobody, units, recut.generation + 1));
  MARU_POINT("reclass.switched");
  for (uint64_t n = 1; n < old_count; n++) pool.owners[base + n * old_units].store(0);
  class_row(pool, old_units)
      .free_hint.fetch_sub(pool.slabs[slab].free_hint.load(), std::memory_order_relaxed);
  pool.slabs[slab].cursor.store(count > 1 ? 1 : 0, std::memory_order_relaxed);
  pool.slabs[slab].free_hint.store(static_cast<int32_t>(count - 1), std::memory_order_relaxed);
  class_row(pool, units).free_hint.fetch_add(static_cast<int64_t>(count) - 1, std::memory_order_relaxed);
  pool.count(Counter::kReclassed);
  recut = Recut{};
  if (!make_real(pool, slab, units * pool.geometry.unit_bytes)) {
    pool.owners[base].store(0);
    return kNoUnit;
  }
  return base;
}

// What is claimed of a slab serves nobody until the rest is: a sixteenth of the pool may be so, and one more
// for a process that was stopped in the middle.
bool enough_are_draining(const Pool& pool) {
  uint64_t draining = 0;
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++)
    draining += slab_state(pool.slabs[slab].word.load(std::memory_order_relaxed)) == SlabState::kDraining;
  return draining > pool.geometry.slab_count / 16;
}

}  // namespace

uint64_t recut_at_once(Pool& pool, uint64_t slab, uint64_t units, bool device, uint32_t tenant) {
  Recut recut;
  if (!mark_draining(pool, slab, units, tenant, &recut)) return kNoUnit;
  if (claim_chunks(pool, recut, UINT64_MAX) == Claim::kAll) return switch_size(pool, recut, device, tenant);
  set_back(pool, recut);
  return kNoUnit;
}

void begin_recut(Pool& pool, uint64_t slab, uint64_t units, uint32_t tenant) {
  SlowRecut& slow = *pool.slow_recut;
  std::lock_guard<std::mutex> guard(slow.mutex);
  if (slow.recut.is_under_way() || enough_are_draining(pool)) return;
  mark_draining(pool, slab, units, tenant, &slow.recut);
  slow.went_on = true;
}

uint64_t go_on_recutting(Pool& pool, uint64_t units, bool device, uint32_t tenant) {
  SlowRecut& slow = *pool.slow_recut;
  const std::unique_lock<std::mutex> guard(slow.mutex, std::try_to_lock);
  if (!guard || !slow.recut.is_under_way()) return kNoUnit;
  // Everybody helps, but the end is left to whoever wants the size: a slab that stood empty for a moment
  // would be taken by another size at once.
  const uint64_t left = chunk_count(pool, slow.recut) - slow.recut.claimed;
  const uint64_t limit = slow.recut.units == units ? kClaimsAtOnce : std::min(kClaimsAtOnce, left - 1);
  const Claim claim = claim_chunks(pool, slow.recut, limit);
  slow.went_on |= limit > 0;
  if (claim == Claim::kAll) return switch_size(pool, slow.recut, device, tenant);
  if (claim == Claim::kRefused) set_back(pool, slow.recut);
  return kNoUnit;
}

uint64_t end_recut(Pool& pool, uint64_t units, bool device, uint32_t tenant) {
  SlowRecut& slow = *pool.slow_recut;
  std::lock_guard<std::mutex> guard(slow.mutex);
  if (!slow.recut.is_under_way()) return kNoUnit;
  if (slow.recut.units == units && claim_chunks(pool, slow.recut, UINT64_MAX) == Claim::kAll)
    return switch_size(pool, slow.recut, device, tenant);
  set_back(pool, slow.recut);
  return kNoUnit;
}

void give_up_recut(Pool& pool, bool only_idle) {
  SlowRecut& slow = *pool.slow_recut;
  std::lock_guard<std::mutex> guard(slow.mutex);
  const bool is_idle = !std::exchange(slow.went_on, false);
  if (slow.recut.is_under_way() && (is_idle || !only_idle)) set_back(pool, slow.recut);
}

}  // namespace maru
