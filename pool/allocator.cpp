#include "allocator.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "cleaner.h"
#include "eviction.h"
#include "recut.h"
#include "shares.h"
#include "space.h"

namespace maru {

namespace {

constexpr uint64_t kEvictionsPerComparison = 4;
// Chunks of its own that a tenant at its limit gives up for one that comes in; rivals may take the room.
constexpr uint32_t kOwnEvictionsMax = 4096;

// What is looked for: for whom, and what must not be evicted for it.
struct Wanted {
  uint64_t units;
  bool device;
  uint64_t parent;
  uint32_t tenant;
};

// Chunks looked at to judge a slab: one where there is time, and each of them while somebody waits.
constexpr uint64_t kSlabSample = 64, kQuickSample = 8;

// Claim one chunk: free, or cooled down. The slab word is looked at again afterwards, since the slab may have
// been re-classed between choosing the unit and claiming it.
bool claim_unit(Pool& pool, uint64_t unit, uint64_t slab, uint64_t slab_word_seen, const Wanted& wanted) {
  uint64_t word = pool.owners[unit].load(std::memory_order_acquire);
  const OwnerKind kind = owner_kind(word);
  if (kind != OwnerKind::kFree && !(kind == OwnerKind::kCooling && has_cooled_down(word))) return false;
  // A device may have written on after it was wiped: then once more, and until that is done the word says so.
  const uint64_t before = owner_wiped(word) ? word : 0, wiped = before & kWipedBit,
                 mine = owner_process_word(pool.me, wanted.device, wanted.tenant);
  MARU_POINT("alloc.before_claim");
  if (!pool.owners[unit].compare_exchange_strong(word, mine | wiped)) return false;
  MARU_POINT("alloc.claimed");
  if (pool.slabs[slab].word.load() != slab_word_seen && !MARU_MUTANT("slab_word_not_rechecked")) {
    pool.owners[unit].store(before);
    return false;
  }
  if (wiped && !MARU_MUTANT("cooled_extent_not_wiped")) {
    wipe_extent(pool, unit);
    pool.owners[unit].store(mine);
  }
  return true;
}

// Look through one slab for a free chunk.
uint64_t take_from_slab(Pool& pool, uint64_t slab, const Wanted& wanted) {
  const uint64_t units = wanted.units;
  const uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire);
  if (slab_state(word) != SlabState::kActive || slab_chunk_units(word) != units) return kNoUnit;
  SlabRow& row = pool.slabs[slab];
  const uint64_t count = pool.geometry.units_per_slab / units;
  const uint64_t start = row.cursor.load(std::memory_order_relaxed) % count;
  bool refused = false;  // The medium gave no more: only what is real already can still be had.
  for (uint64_t n = 0; n < count; n++) {
    const uint64_t chunk = start + n < count ? start + n : start + n - count;
    const uint64_t unit = slab * pool.geometry.units_per_slab + chunk * units;
    const uint64_t end_bytes = (chunk + 1) * units * pool.geometry.unit_bytes;
    if (refused && end_bytes > row.real_bytes.load(std::memory_order_relaxed)) continue;
    if (!claim_unit(pool, unit, slab, word, wanted)) continue;
    if (!make_real(pool, slab, end_bytes)) {
      pool.owners[unit].store(0);
      refused = true;
      continue;
    }
    row.cursor.store(static_cast<uint32_t>(chunk + 1 < count ? chunk + 1 : 0), std::memory_order_relaxed);
    row.free_hint.fetch_sub(1, std::memory_order_relaxed);
    class_row(pool, units).free_hint.fetch_sub(1, std::memory_order_relaxed);
    return unit;
  }
  row.free_hint.store(0, std::memory_order_relaxed);
  return kNoUnit;
}

// Cut a free slab into chunks of this size.
bool activate_slab(Pool& pool, uint64_t slab, uint64_t units) {
  uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire);
  if (slab_state(word) != SlabState::kFree) return false;
  const uint64_t active = slab_word(SlabState::kActive, kNobody, units, slab_generation(word) + 1);
  if (!pool.slabs[slab].word.compare_exchange_strong(word, active)) return false;
  MARU_POINT("slab.activated");
  const auto count = static_cast<int32_t>(pool.geometry.units_per_slab / units);
  pool.slabs[slab].cursor.store(0, std::memory_order_relaxed);
  pool.slabs[slab].free_hint.store(count, std::memory_order_relaxed);
  class_row(pool, units).free_hint.fetch_add(count, std::memory_order_relaxed);
  return true;
}

// A free chunk, or a chunk of a fresh slab, in one segment.
uint64_t take_from_segment(Pool& pool, uint32_t segment, const Wanted& wanted, bool trust_hints,
                           bool* saw_fresh) {
  const uint64_t units = wanted.units;
  const SegmentGeometry& place = pool.geometry.segments[segment];
  if (segment_state(pool.segments[segment].word.load(std::memory_order_relaxed)) != SegmentState::kOnline ||
      !pool.is_mapped(segment))
    return kNoUnit;
  ClassRow& row = class_row(pool, units);
  uint64_t fresh = kNoUnit;
  const uint64_t start = row.cursor[segment].load(std::memory_order_relaxed) % place.slab_count;
  for (uint64_t n = 0; n < place.slab_count; n++) {
    const uint64_t local = start + n < place.slab_count ? start + n : start + n - place.slab_count;
    const uint64_t slab = place.first_slab + local;
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_relaxed);
    if (slab_state(word) == SlabState::kFree) {
      if (fresh == kNoUnit || slab < fresh) fresh = slab;  // Lowest first: space is made real in that order.
      continue;
    }
    if (slab_state(word) != SlabState::kActive || slab_chunk_units(word) != units) continue;
    if (trust_hints && pool.slabs[slab].free_hint.load(std::memory_order_relaxed) <= 0) continue;
    const uint64_t unit = take_from_slab(pool, slab, wanted);
    if (unit == kNoUnit) continue;
    row.cursor[segment].store(static_cast<uint32_t>(local), std::memory_order_relaxed);
    return unit;
  }
  if (fresh == kNoUnit) return kNoUnit;
  *saw_fresh = true;
  if (!activate_slab(pool, fresh, units)) return kNoUnit;
  row.cursor[segment].store(static_cast<uint32_t>(fresh - place.first_slab), std::memory_order_relaxed);
  return take_from_slab(pool, fresh, wanted);
}

// The n-th segment to look into where some are near (bit s: segment s): these first, then the others. Either
// kind takes turns among itself: counted over all, a far segment's turn would always fall to the same near
// one.
[[gnu::noinline]] uint32_t near_first(uint32_t near, uint32_t segments, uint32_t turn, uint32_t n) {
  const auto near_count = static_cast<uint32_t>(std::popcount(near));
  const bool is_near = n < near_count;
  uint32_t mask = is_near ? near : (UINT32_MAX >> (kSegmentLimit - segments)) & ~near;
  const uint32_t count = is_near ? near_count : segments - near_count;
  for (uint32_t skipped = (turn % count + (is_near ? n : n - near_count)) % count; skipped > 0; skipped--)
    mask &= mask - 1;
  return static_cast<uint32_t>(std::countr_zero(mask));
}

uint64_t take_free(Pool& pool, const Wanted& wanted, bool trust_hints) {
  // A full pool in its steady state: nothing is free, so do not look for it slab by slab.
  if (trust_hints && pool.fresh_slabs_gone.load(std::memory_order_relaxed) &&
      class_row(pool, wanted.units).free_hint.load(std::memory_order_relaxed) <= 0)
    return kNoUnit;
  bool saw_fresh = false;
  const auto segments = static_cast<uint32_t>(pool.maps.size());
  const uint32_t near = pool.near_segments.load(std::memory_order_relaxed);
  const uint32_t turn = segments == 1 ? 0 : pool.stripe.fetch_add(1, std::memory_order_relaxed);
  for (uint32_t n = 0; n < segments; n++) {
    const uint32_t segment =
        near == 0 ? (turn % segments + n) % segments : near_first(near, segments, turn, n);
    const uint64_t unit = take_from_segment(pool, segment, wanted, trust_hints, &saw_fresh);
    if (unit != kNoUnit) return unit;
  }
  if (!saw_fresh) pool.fresh_slabs_gone.store(true, std::memory_order_relaxed);
  return kNoUnit;
}

// A slab of another size in which nothing lives is taken before anything is evicted.
uint64_t take_empty_slab(Pool& pool, const Wanted& wanted) {
  if (pool.super->empty_slab.load(std::memory_order_relaxed) == 0) return kNoUnit;
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_relaxed),
                   held = slab_chunk_units(word);
    if (slab_state(word) != SlabState::kActive || held == wanted.units || held == 0) continue;
    if (pool.slabs[slab].free_hint.load(std::memory_order_relaxed) <
        static_cast<int32_t>(pool.geometry.units_per_slab / held))
      continue;
    const uint64_t unit = recut_at_once(pool, slab, wanted.units, wanted.device, wanted.tenant);
    if (unit != kNoUnit) return unit;
  }
  pool.super->empty_slab.store(0, std::memory_order_relaxed);
  return kNoUnit;
}

// The mix of sizes changes: now and then compare our coldest chunk with a slab of another size, and begin to
// recut that slab when what it holds is colder by more than half a pool of references. Without this a size
// that came late would live in one slab for ever while yesterday's chunks fill the rest.
void look_for_colder_slab(Pool& pool, uint64_t units, uint32_t tenant) {
  Evictor& evictor = *pool.evictor;
  if (evictor.comparisons++ % kEvictionsPerComparison != 0) return;
  const uint64_t slab = evictor.slab_hand++ % pool.geometry.slab_count;
  const uint64_t word = pool.slabs[slab].word.load(std::memory_order_relaxed), held = slab_chunk_units(word);
  if (slab_state(word) != SlabState::kActive || held == units || held == 0) return;
  if (look_at_slab(pool, slab, held, kSlabSample, tenant, true).age >
      coldest_age(pool, units, tenant) + kEpochsPerPool / 2)
    begin_recut(pool, slab, units, tenant);
}

// Try slabs of other sizes, the coldest first: by what it holds on the average, for two sizes that both are
// new would take each other's only slab in turn if the one that holds least went first. What nobody asked for
// in a whole pool's worth of references is equally cold; of these the one with the fewest chunks goes, since
// all of them have to be evicted while somebody waits. Without `own_too` slabs with anything of the tenant's
// own are left alone.
uint64_t take_by_recutting(Pool& pool, const Wanted& wanted, bool own_too) {
  std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> order;  // (warmth, chunks in it, slab)
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_relaxed);
    if (slab_state(word) != SlabState::kActive || slab_chunk_units(word) == wanted.units) continue;
    const SlabContent content =
        look_at_slab(pool, slab, slab_chunk_units(word), kQuickSample, wanted.tenant, own_too);
    if (content.may_go)
      order.emplace_back(kEpochsPerPool - std::min(content.age, kEpochsPerPool), content.load, slab);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [warmth, load, slab] : order) {
    // A closer look at this one: a pinned chunk that shows only in the middle costs all that went before it.
    const uint64_t held = slab_chunk_units(pool.slabs[slab].word.load(std::memory_order_relaxed));
    if (!look_at_slab(pool, slab, held, kSlabSample, wanted.tenant, own_too).may_go) continue;
    const uint64_t unit = recut_at_once(pool, slab, wanted.units, wanted.device, wanted.tenant);
    if (unit != kNoUnit) return unit;
  }
  return kNoUnit;
}

// A tenant at its limit gives up its own coldest until what comes in is within it, if it may.
bool make_own_room(Pool& pool, uint32_t tenant, uint64_t bytes, uint64_t parent) {
  const TenantRow& row = pool.tenants[tenant];
  if (row.flags.load(std::memory_order_relaxed) & kTenantRefused) return false;
  if (bytes > row.limit_bytes.load(std::memory_order_relaxed)) return false;
  for (uint32_t n = 0; n < kOwnEvictionsMax; n++) {
    if (!evict_own(pool, tenant, parent)) return false;
    if (charge(pool, tenant, bytes)) return true;
  }
  return false;
}

uint64_t find_extent(Pool& pool, const Wanted& wanted) {
  const auto [units, device, parent, tenant] = wanted;
  uint64_t unit = take_free(pool, wanted, true);
  if (unit == kNoUnit) unit = take_empty_slab(pool, wanted);
  if (unit == kNoUnit) {
    unit = go_on_recutting(pool, units, device, tenant);
    look_for_colder_slab(pool, units, tenant);
  }
  // Whoever is within its share takes what others have borrowed, in slabs of whatever size, before it gives
  // anything of its own.
  const bool others_first = is_within_share(pool, tenant);
  if (unit == kNoUnit) unit = evict_for(pool, units, device, parent, tenant, others_first);
  if (unit == kGateClosed) {
    pool.count(Counter::kGateRefused);
    return kNoUnit;
  }
  if (unit == kNoUnit) {
    unit = end_recut(pool, units, device, tenant);
    if (unit == kNoUnit) unit = take_free(pool, wanted, false);
  }
  if (unit == kNoUnit) unit = take_by_recutting(pool, wanted, !others_first);
  if (unit == kNoUnit && others_first) {
    unit = evict_for(pool, units, device, parent, tenant, false);
    if (unit == kNoUnit) unit = take_by_recutting(pool, wanted, true);
  }
  if (unit == kNoUnit && clean_dead_processes(pool) > 0) {
    unit = take_free(pool, wanted, false);
    if (unit == kNoUnit) unit = evict_for(pool, units, device, parent, tenant, false);
  }
  return unit == kGateClosed ? kNoUnit : unit;
}

}  // namespace

ClassRow& class_row(Pool& pool, uint64_t chunk_units) {
  const uint64_t home = (chunk_units * 0x9e3779b97f4a7c15ull) >> 58;
  for (uint32_t n = 0; n < kClassLimit; n++) {
    ClassRow& row = pool.classes[(home + n) % kClassLimit];
    uint64_t seen = row.chunk_units.load(std::memory_order_relaxed);
    if (seen == chunk_units) return row;
    if (seen == 0 && row.chunk_units.compare_exchange_strong(seen, chunk_units)) return row;
    if (seen == chunk_units) return row;
  }
  return pool.classes[home];  // More sizes than rows: they share one row's hints.
}

void prefer_numa_node(Pool& pool, int32_t node) {
  uint32_t near = 0;
  pool.near_node.store(node, std::memory_order_relaxed);
  for (uint32_t s = 0; s < pool.maps.size(); s++)
    if (node >= 0 && pool.segments[s].numa_node == node) near |= 1u << s;
  pool.near_segments.store(near, std::memory_order_relaxed);
}

uint64_t allocate_extent(Pool& pool, uint64_t units, bool device, uint64_t protect_parent, uint32_t tenant) {
  const uint64_t bytes = pool.account_bytes(units);
  uint64_t unit = kNoUnit;
  if (charge(pool, tenant, bytes) || make_own_room(pool, tenant, bytes, protect_parent)) {
    MARU_POINT("alloc.charged");
    unit = find_extent(pool, {units, device, protect_parent, tenant});
    if (unit != kNoUnit) return unit;
    discharge(pool, tenant, bytes);
    if (!shares_count(pool)) return kNoUnit;
  }
  pool.tenants[tenant].refused.fetch_add(1, std::memory_order_relaxed);
  return kNoUnit;
}

void clear_header(Pool& pool, uint64_t unit) {
  // Before the slab's first byte is real its headers are not either: nothing was ever written there, and
  // touching it on a full medium would kill us.
  const uint64_t slab = pool.slab_of_unit(unit);
  if (pool.slabs[slab].real_bytes.load(std::memory_order_acquire) == 0 ||
      !pool.segment_is_there(pool.segment_of_slab(slab)))
    return;
  const uint64_t units = chunk_units_at(pool, unit), within = unit % pool.geometry.units_per_slab;
  if (units == 0 || within % units != 0) return;
  ExtentHeader* header = pool.header_of(unit, units);
  if (header->sealed.load(std::memory_order_relaxed) != 0) header->sealed.store(0, std::memory_order_release);
}

void wipe_extent(Pool& pool, uint64_t unit) {
  const uint64_t slab = pool.slab_of_unit(unit);
  if (!pool.segment_is_there(pool.segment_of_slab(slab))) return;
  const uint64_t bytes = chunk_units_at(pool, unit) * pool.geometry.unit_bytes;
  const uint64_t first = unit % pool.geometry.units_per_slab * pool.geometry.unit_bytes;
  if (first + bytes > pool.slabs[slab].real_bytes.load(std::memory_order_acquire)) return;
  std::memset(pool.writable + pool.byte_of_unit(unit), 0, bytes);
}

void free_extent(Pool& pool, uint64_t unit, bool device) {
  const uint64_t owner = pool.owners[unit].load(std::memory_order_relaxed);
  const uint64_t bytes = pool.account_bytes(chunk_units_at(pool, unit));
  clear_header(pool, unit);
  MARU_POINT("free.header_cleared");
  if (owner_wiped(owner)) wipe_extent(pool, unit);
  if (device && !MARU_MUTANT("device_extent_not_cooled")) {
    pool.owners[unit].store(
        owner_cooling_word((now_ns() + pool.geometry.cooling_ns) / kMillisecond, owner_wiped(owner)));
    pool.count(Counter::kCooled);
  } else {
    pool.owners[unit].store(0);
  }
  MARU_POINT("free.owner_cleared");
  discharge(pool, owner_tenant(owner), bytes);
  const uint64_t slab = pool.slab_of_unit(unit), word = pool.slabs[slab].word.load(std::memory_order_relaxed);
  const uint64_t units = slab_chunk_units(word);
  if (slab_state(word) != SlabState::kActive || units == 0) return;
  const uint64_t within = unit % pool.geometry.units_per_slab;
  pool.slabs[slab].cursor.store(static_cast<uint32_t>(within / units), std::memory_order_relaxed);
  const int32_t free_before = pool.slabs[slab].free_hint.fetch_add(1, std::memory_order_relaxed);
  if (free_before >= static_cast<int32_t>(pool.geometry.units_per_slab / units) - 1)
    pool.super->empty_slab.store(slab + 1, std::memory_order_relaxed);
  ClassRow& row = class_row(pool, units);
  row.free_hint.fetch_add(1, std::memory_order_relaxed);
  const uint32_t segment = pool.segment_of_slab(slab);
  row.cursor[segment].store(static_cast<uint32_t>(slab - pool.geometry.segments[segment].first_slab),
                            std::memory_order_relaxed);
}

void recount_free_hints(Pool& pool) {
  std::vector<std::pair<uint64_t, int64_t>> per_class;
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire),
                   units = slab_chunk_units(word);
    if (slab_state(word) != SlabState::kActive || units == 0 || units > pool.geometry.units_per_slab)
      continue;
    int32_t free_count = 0;
    for (uint64_t n = 0; n < pool.geometry.units_per_slab / units; n++) {
      const OwnerKind kind = owner_kind(
          pool.owners[slab * pool.geometry.units_per_slab + n * units].load(std::memory_order_relaxed));
      free_count += kind == OwnerKind::kFree || kind == OwnerKind::kCooling;
    }
    pool.slabs[slab].free_hint.store(free_count, std::memory_order_relaxed);
    auto it =
        std::find_if(per_class.begin(), per_class.end(), [&](const auto& c) { return c.first == units; });
    if (it == per_class.end()) it = per_class.insert(it, {units, 0});
    it->second += free_count;
  }
  for (const auto& [units, free_count] : per_class)
    class_row(pool, units).free_hint.store(free_count, std::memory_order_relaxed);
}

}  // namespace maru
