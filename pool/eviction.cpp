#include "eviction.h"

#include <algorithm>
#include <array>
#include <utility>

#include "allocator.h"
#include "chunk_index.h"
#include "departure.h"
#include "pins.h"
#include "reuse.h"
#include "shares.h"

namespace maru {

namespace {

constexpr uint64_t kSlotsPerLook =
    8;  // Occupied slots looked at per eviction when there are candidates enough.
// Victims that turned out not to be what their slots said: rivals are faster a few times, a torn index is
// wrong each time, and each may cost a turn of the hand.
constexpr uint32_t kVictimsTried = 64;
constexpr uint64_t kWalkLimit = 4096;  // Free slots walked over when there is a candidate already.
// Where everything is pinned each allocation would walk the whole index, some 2 ns a slot, to find that out:
// on a long one the answer is remembered for four times as long as it took.
constexpr uint64_t kLongIndexSlots = 65536;
constexpr uint64_t kBarrenNsPerSlot = 8;
constexpr size_t kTenantsOfSlab = 16;  // A slab of more than these is left as it is where shares count.
constexpr uint32_t kAgeOldest = 8000;  // In epochs; beyond it all are equally old.
constexpr uint32_t kAgeOrphan = 8001;

// A chunk whose parent is gone cannot be reached by a prefix: it goes before any leaf, with or without
// children.
bool is_orphan(const Pool& pool, uint64_t i) {
  const uint64_t parent = pool.cold[i].parent.load(std::memory_order_relaxed);
  if (parent == 0 || parent_slot(parent) >= pool.geometry.slot_count) return false;
  const uint64_t word = pool.hot[parent_slot(parent)].word.load(std::memory_order_relaxed);
  return static_cast<uint32_t>(slot_generation(word)) != parent_generation(parent) ||
         slot_state(word) == SlotState::kFree;
}

uint32_t age_of(const Pool& pool, const SlotHot& slot) {
  const uint32_t stamp = slot.stamp.load(std::memory_order_relaxed);
  return std::min((eviction_epoch(pool) - stamp_epoch(stamp)) & kStampEpochMask, kAgeOldest);
}

// Age for choosing; kAgeStale for what counts as absent already. Whoever was hit before ages more slowly, by
// a quarter for each hit: frequency counts a little beside recency.
uint32_t rank(Pool& pool, uint64_t i, uint64_t word) {
  const SlotHot& slot = pool.hot[i];
  if (slot_state(word) == SlotState::kQuarantined || !is_current(pool, slot, i)) return kAgeStale;
  if (is_orphan(pool, i)) return kAgeOrphan;
  return age_of(pool, slot) * 4 / (4 + stamp_hits(slot.stamp.load(std::memory_order_relaxed)));
}

CandidateList& list_for(Evictor& evictor, uint64_t units, uint32_t tenant) {
  for (CandidateList& list : evictor.lists)
    if (list.units == units && list.tenant == tenant) return list;
  if (evictor.lists.size() >= Evictor::kListLimit) evictor.lists.erase(evictor.lists.begin());
  evictor.lists.emplace_back();
  evictor.lists.back().units = units;
  evictor.lists.back().tenant = tenant;
  return evictor.lists.back();
}

// Keep the oldest kSize.
void offer(Pool& pool, CandidateList& list, uint64_t slot, uint64_t word) {
  for (uint32_t n = 0; n < list.count; n++)
    if (list.entries[n].slot == slot) {
      list.entries[n].word = word;
      return;
    }
  if (list.count < CandidateList::kSize) {
    list.entries[list.count++] = {slot, word};
    return;
  }
  uint32_t youngest = 0, youngest_rank = UINT32_MAX;
  for (uint32_t n = 0; n < list.count; n++) {
    const uint32_t r = rank(pool, list.entries[n].slot, list.entries[n].word);
    if (r < youngest_rank) {
      youngest = n;
      youngest_rank = r;
    }
  }
  if (rank(pool, slot, word) > youngest_rank) list.entries[youngest] = {slot, word};
}

// What room is looked for, and what must not be asked to make it.
struct Search {
  uint64_t units;   // 0: of any size.
  uint64_t parent;  // Parent word of the chunk that is coming in; 0 for none.
  uint32_t tenant;  // Whose it is.
  bool own_only;
  bool by_share;
  bool others_only = false;  // Nothing of its own goes, not even if others have nothing.
  bool own_too = false;      // First others make way for whoever is below its share.
  bool leaves_only = true;   // First; when a whole turn saw none that is unpinned, any other chunk will do.
  std::vector<uint64_t> ancestors{};

  Search(const Pool& pool, uint64_t wanted_units, uint64_t of_parent, uint32_t of_tenant, bool only_own)
      : units(wanted_units),
        parent(of_parent),
        tenant(of_tenant),
        own_only(only_own),
        by_share(!only_own && shares_count(pool)) {}

  // Does it make way for this tenant?
  bool makes_way(const Pool& pool, uint64_t i, uint64_t size) const {
    if (!by_share && !own_only) return true;
    const SlotHot& slot = pool.hot[i];
    const uint32_t from = tenant_of(pool, slot.namespace_id.load(std::memory_order_relaxed));
    if (own_only) return from == tenant;
    const uint64_t bytes = pool.account_bytes(pool.units_for(size));
    return may_make_way(pool, from, tenant, bytes, own_too) || !is_current(pool, slot, i);
  }

  bool spares(uint64_t i) const {
    if (parent == 0) return false;
    return parent_slot(parent) == i || std::binary_search(ancestors.begin(), ancestors.end(), i);
  }
};

// Does a chunk of the size lie here that may be evicted at all, leaving leaves and pins aside? Fills `word`.
bool is_of_size(const Pool& pool, const Search& search, uint64_t i, uint64_t* word) {
  const SlotHot& slot = pool.hot[i];
  *word = slot.word.load(std::memory_order_acquire);
  if (!may_be_evicted(slot_state(*word))) return false;
  const uint64_t extent = slot.extent.load(std::memory_order_relaxed);
  const uint64_t size = slot.size_bytes.load(std::memory_order_relaxed);
  // What lies in a lost segment, or in one that is not mapped here, makes no room that could be written.
  return pool.extent_is_sane(extent, size) && (search.units == 0 || pool.units_for(size) == search.units) &&
         !search.spares(i) && pool.segment_is_there(extent_segment(extent)) &&
         search.makes_way(pool, i, size);
}

// Nothing continues it, or nobody could reach it anyway.
bool is_leaf_enough(const Pool& pool, const Search& search, uint64_t i, uint64_t word) {
  return !search.leaves_only || slot_state(word) == SlotState::kQuarantined ||
         pool.hot[i].children.load(std::memory_order_relaxed) == 0 || is_orphan(pool, i) ||
         !is_current(pool, pool.hot[i], i);
}

bool is_candidate(const Pool& pool, const Search& search, uint64_t i, uint64_t* word) {
  return is_of_size(pool, search, i, word) && is_leaf_enough(pool, search, i, *word);
}

// What can no longer be evicted leaves the list, so that what is left in it is worth choosing from.
void drop_stale(Pool& pool, const Search& search, CandidateList& list) {
  uint32_t kept = 0;
  for (uint32_t n = 0; n < list.count; n++) {
    const CandidateList::Entry entry = list.entries[n];
    uint64_t word = 0;
    if (is_candidate(pool, search, entry.slot, &word) && word == entry.word && !is_pinned(pool, entry.slot))
      list.entries[kept++] = entry;
  }
  list.count = kept;
}

// Move the hand over some occupied slots, on while there is no candidate at all, and at most once around.
// False: a whole turn saw no unpinned chunk of this size, leaf or not.
bool move_hand(Pool& pool, const Search& search, CandidateList& list) {
  const uint64_t turn = pool.geometry.slot_count;
  // From where the hand stands, over our own copy of it: two processes may look at the same slots, but a turn
  // is whole.
  const uint64_t start = pool.super->hand.load(std::memory_order_relaxed);
  uint64_t walked = 0, occupied = 0;
  bool saw_any = list.count > 0;
  while (walked < turn && (occupied < kSlotsPerLook || list.count == 0)) {
    if (list.count > 0 && walked >= kWalkLimit) break;
    const uint64_t i = (start + walked++) % turn;
    uint64_t word = 0;
    if (!is_of_size(pool, search, i, &word)) continue;
    occupied++;
    const bool fits = is_leaf_enough(pool, search, i, word);
    if ((saw_any && !fits) || is_pinned(pool, i)) continue;
    saw_any = true;
    if (fits) offer(pool, list, i, word);
  }
  pool.super->hand.store(start + walked, std::memory_order_relaxed);
  pool.evictor->looked_at += occupied;
  return saw_any;
}

// The oldest of the list; there is one.
uint32_t oldest_of(Pool& pool, const CandidateList& list, uint32_t* its_rank) {
  uint32_t best = 0;
  *its_rank = 0;
  for (uint32_t n = 0; n < list.count; n++) {
    const uint32_t r = rank(pool, list.entries[n].slot, list.entries[n].word);
    if (n == 0 || r > *its_rank) {
      best = n;
      *its_rank = r;
    }
  }
  return best;
}

uint64_t evict_victim(Pool& pool, const Search& search, uint64_t i, bool device) {
  const uint64_t extent = pool.hot[i].extent.load(std::memory_order_relaxed);
  const uint64_t size = pool.hot[i].size_bytes.load(std::memory_order_relaxed);
  if (!pool.extent_is_sane(extent, size)) return kNoUnit;
  const uint64_t unit = pool.unit_of_extent(extent), units = chunk_units_at(pool, unit);
  if (search.units != 0 && units != search.units) return kNoUnit;
  if (!push_out(pool, i, unit, device, search.tenant, search.own_only ? 0 : search.tenant)) return kNoUnit;
  pool.evictor->victims++;
  pool.count(Counter::kEvicted);
  pool.count(Counter::kEvictedBytes, size);
  class_row(pool, units).evictions.fetch_add(1, std::memory_order_relaxed);
  return unit;
}

// Is any slab cut into chunks of this size?
bool has_slab(const Pool& pool, uint64_t units) {
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(std::memory_order_relaxed);
    if (slab_state(word) != SlabState::kFree && slab_chunk_units(word) == units) return true;
  }
  return false;
}

// The chunks that the one being stored continues: to evict one of them would put it out of reach itself.
// Sorted.
std::vector<uint64_t> ancestors_of(const Pool& pool, uint64_t parent) {
  const uint64_t limit = pool.geometry.slot_count;
  std::vector<uint64_t> out;
  while (parent != 0 && parent_slot(parent) < limit && out.size() < limit) {
    const uint64_t i = parent_slot(parent);
    const uint64_t word = pool.hot[i].word.load(std::memory_order_relaxed);
    if (static_cast<uint32_t>(slot_generation(word)) != parent_generation(parent)) break;
    out.push_back(i);
    parent = pool.cold[i].parent.load(std::memory_order_relaxed);
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

uint32_t count_references(Pool& pool, const Key* keys, uint64_t count) {
  Superblock& super = *pool.super;
  const uint64_t now = super.references.fetch_add(count, std::memory_order_relaxed) + count;
  if (pool.geometry.gate) {
    ReuseSampler sampler(pool, now - count);
    for (uint64_t i = 0; i < count; i++) sampler.see(keys[i], i);
  }
  uint64_t start = super.epoch_start.load(std::memory_order_relaxed);
  const uint64_t resident =
      std::min(super.resident.load(std::memory_order_relaxed), pool.geometry.slot_count);
  const uint64_t length = std::max<uint64_t>(1, resident / kEpochsPerPool);
  if (now - start < length) return eviction_epoch(pool);  // No division on the way of nearly every call.
  const uint64_t epochs = (now - start) / length;
  if (super.epoch_start.compare_exchange_strong(start, start + epochs * length, std::memory_order_relaxed)) {
    const uint64_t before = super.eviction_epoch.fetch_add(epochs, std::memory_order_relaxed);
    if (pool.geometry.gate && before / kEpochsPerBin != (before + epochs) / kEpochsPerBin)
      choose_protection(pool);
  }
  return eviction_epoch(pool);
}

void remember_missing(Pool& pool, const Key* keys, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) {
    Atomic<uint32_t>& place = pool.evictor->missing[mix_key(keys[i]) % Evictor::kMissingLimit];
    place.store(tag_of(keys[i]), std::memory_order_relaxed);
  }
}

void count_incoming(Pool& pool, Key key) {
  Atomic<uint32_t>& place = pool.evictor->missing[mix_key(key) % Evictor::kMissingLimit];
  if (place.load(std::memory_order_relaxed) == tag_of(key))
    place.store(0, std::memory_order_relaxed);
  else
    count_references(pool, &key, 1);
}

namespace {

uint64_t evict_one(Pool& pool, Search& search, bool device) {
  const uint64_t units = search.units, parent = search.parent;
  std::lock_guard<std::mutex> guard(pool.evictor->mutex);
  CandidateList& list =
      list_for(*pool.evictor, units, search.by_share || search.own_only ? search.tenant : 0);
  if (list.barren_until_ns != 0) {
    if (now_ns() < list.barren_until_ns) return kNoUnit;
    list.barren_until_ns = 0;
  }
  for (uint32_t tries = 0; tries < kVictimsTried; tries++) {
    drop_stale(pool, search, list);
    // A size that is new has nothing to evict: the hand need not go round to find that out.
    if (list.count == 0 && units != 0 && !has_slab(pool, units)) return kNoUnit;
    if (!move_hand(pool, search, list)) {  // All are pinned, kept, or what the new chunk continues.
      if (search.by_share && !search.own_too) {
        if (search.others_only) return kNoUnit;
        search.own_too = true;
        continue;
      }
      if (pool.geometry.slot_count >= kLongIndexSlots)
        list.barren_until_ns = now_ns() + kBarrenNsPerSlot * pool.geometry.slot_count;
      return kNoUnit;
    }
    if (list.count == 0) {
      // A whole turn met no unpinned leaf: readers hold the ends of prefixes whose beginnings nobody holds.
      if (!search.leaves_only) return kNoUnit;
      search.leaves_only = false;
      search.ancestors = ancestors_of(pool, parent);
      continue;
    }
    uint32_t its_rank = 0;
    const uint32_t oldest = oldest_of(pool, list, &its_rank);
    const CandidateList::Entry victim = list.entries[oldest];
    const uint64_t gate = pool.super->gate.load(std::memory_order_relaxed);
    // What was promised is had whether the gate would keep others' chunks or not.
    if (!search.others_only && gate >> 32 == units && its_rank < kAgeOrphan &&
        age_of(pool, pool.hot[victim.slot]) < (gate & 0xffffffff))
      return kGateClosed;
    list.entries[oldest] = list.entries[--list.count];
    const uint64_t next = pool.cold[victim.slot].parent.load(std::memory_order_relaxed);
    const uint64_t unit = evict_victim(pool, search, victim.slot, device);
    if (unit == kNoUnit) continue;
    // The parent may be a leaf now: it is next in line, so that a cold prefix goes from its tail up.
    uint64_t word = 0;
    if (next != 0 && parent_slot(next) < pool.geometry.slot_count &&
        is_candidate(pool, search, parent_slot(next), &word) &&
        static_cast<uint32_t>(slot_generation(word)) == parent_generation(next))
      offer(pool, list, parent_slot(next), word);
    return unit;
  }
  return kNoUnit;
}

}  // namespace

uint64_t evict_for(Pool& pool, uint64_t units, bool device, uint64_t parent, uint32_t tenant,
                   bool others_only) {
  Search search(pool, units, parent, tenant, false);
  search.others_only = others_only;
  return evict_one(pool, search, device);
}

bool evict_own(Pool& pool, uint32_t tenant, uint64_t parent) {
  Search search(pool, 0, parent, tenant, true);
  const uint64_t unit = evict_one(pool, search, false);
  if (unit == kNoUnit) return false;
  free_extent(pool, unit, false);
  return true;
}

uint32_t eviction_order(Pool& pool, uint64_t i) {
  const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
  if (!may_be_evicted(slot_state(word)) || is_pinned(pool, i)) return 0;
  const uint32_t age = rank(pool, i, word);
  const bool leaf = age >= kAgeOrphan || pool.hot[i].children.load(std::memory_order_relaxed) == 0;
  return 1 + age + (leaf ? 2 * kAgeStale : 0);
}

uint32_t leaving_rank(Pool& pool, uint64_t i) {
  return rank(pool, i, pool.hot[i].word.load(std::memory_order_relaxed));
}

SlabContent look_at_slab(Pool& pool, uint64_t slab, uint64_t chunk_units, uint64_t sample, uint32_t tenant,
                         bool own_too) {
  SlabContent out;
  if (chunk_units == 0 || chunk_units > pool.geometry.units_per_slab) return out;
  const uint64_t count = pool.geometry.units_per_slab / chunk_units;
  const uint64_t step = std::max<uint64_t>(1, count / sample);
  const bool by_share = shares_count(pool);
  std::array<std::pair<uint32_t, uint64_t>, kTenantsOfSlab> takes{};  // From whom, how much of it.
  uint64_t occupied = 0, ages = 0;
  for (uint64_t n = 0; n < count; n += step) {
    const uint64_t owner =
        pool.owners[slab * pool.geometry.units_per_slab + n * chunk_units].load(std::memory_order_relaxed);
    if (owner_kind(owner) == OwnerKind::kFree) continue;
    if (owner_kind(owner) != OwnerKind::kSlot || owner_value(owner) >= pool.geometry.slot_count) return out;
    const uint64_t i = owner_value(owner), word = pool.hot[i].word.load(std::memory_order_relaxed);
    if (!may_be_evicted(slot_state(word)) || is_pinned(pool, i)) return out;
    if (by_share && is_current(pool, pool.hot[i], i)) {
      auto* one = std::find_if(takes.begin(), takes.end(),
                               [&](auto& t) { return t.first == owner_tenant(owner) || t.second == 0; });
      if (one == takes.end()) return out;
      *one = {owner_tenant(owner), one->second + step * pool.account_bytes(chunk_units)};
      if (!may_make_way(pool, one->first, tenant, one->second, own_too)) return out;
    }
    ages += rank(pool, i, word);
    occupied++;
  }
  out.may_go = true;
  out.load = occupied * step;
  // Free chunks say nothing: a slab that was cut anew a moment ago is nearly empty, and its first chunk is
  // young.
  out.age = occupied ? static_cast<uint32_t>(ages / occupied) : kAgeStale;
  return out;
}

uint32_t coldest_age(Pool& pool, uint64_t units, uint32_t tenant) {
  std::lock_guard<std::mutex> guard(pool.evictor->mutex);
  const CandidateList& list = list_for(*pool.evictor, units, shares_count(pool) ? tenant : 0);
  uint32_t oldest = 0;
  for (uint32_t n = 0; n < list.count; n++)
    oldest = std::max(oldest, rank(pool, list.entries[n].slot, list.entries[n].word));
  return oldest;
}

}  // namespace maru
