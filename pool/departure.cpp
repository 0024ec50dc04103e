#include "departure.h"

#include <vector>

#include "allocator.h"
#include "chunk_index.h"
#include "pins.h"
#include "shares.h"

namespace maru {

namespace {

constexpr uint32_t kForNobody = 0;

// Take the extent off its tenant's account, for what `incoming` brings. False: its share keeps it. What
// counts as absent already is taken from nobody.
bool leave_account(Pool& pool, uint64_t i, uint64_t unit, uint32_t from, uint32_t incoming) {
  const uint64_t bytes = pool.account_bytes(chunk_units_at(pool, unit));
  if (!is_current(pool, pool.hot[i], i))
    discharge(pool, from, bytes);
  else if (!take_off(pool, from, incoming, bytes))
    return false;
  TenantRow& row = pool.tenants[from < pool.geometry.tenant_limit ? from : 0];
  (from == incoming ? row.made_own_way : row.made_way).fetch_add(1, std::memory_order_relaxed);
  return true;
}

// Take chunk `i` out of the index if nobody pins it, it still lies at `unit`, and shares let it go for
// `incoming`; the extent is then ours, on the account of `account`. For nobody it goes in any case, and stays
// on its account. False: pinned, kept, or no longer what it was.
bool evict_slot(Pool& pool, uint64_t i, uint64_t unit, bool device, uint32_t incoming, uint32_t account) {
  SlotHot& slot = pool.hot[i];
  uint64_t word = slot.word.load(std::memory_order_acquire);
  const SlotState state = slot_state(word);
  if (!may_be_evicted(state) || is_pinned(pool, i)) return false;
  MARU_POINT("evict.before_mark");
  const uint64_t suspect = state == SlotState::kQuarantined ? kSuspectBit : 0;
  const uint64_t generation = slot_generation(word);
  if (!slot.word.compare_exchange_strong(word,
                                         slot_word(SlotState::kEvicting, pool.me, generation) | suspect))
    return false;
  MARU_POINT("evict.marked");
  const uint64_t extent = slot.extent.load(std::memory_order_relaxed),
                 size = slot.size_bytes.load(std::memory_order_relaxed);
  const uint64_t owner = pool.owners[unit].load();
  const uint32_t from = owner_tenant(owner);
  // The account last, and while the word says that nobody else changes whose the extent is.
  const bool goes = pool.extent_is_sane(extent, size) && pool.unit_of_extent(extent) == unit &&
                    owned_by_slot(owner, i) &&
                    (!is_pinned(pool, i) || MARU_MUTANT("no_pin_recheck_after_evicting")) &&
                    (incoming == kForNobody || leave_account(pool, i, unit, from, incoming));
  if (!goes) {
    // Nothing changed meanwhile, so the generation stays and pins taken before are still good.
    pool.count(Counter::kEvictReverts);
    MARU_POINT("evict.before_revert");
    slot.word.store(slot_word(state, kNobody, generation));
    return false;
  }
  MARU_POINT("evict.unpinned");
  const uint64_t parent = pool.cold[i].parent.load(std::memory_order_relaxed);
  const bool was_parent = slot.children.load(std::memory_order_relaxed) != 0;
  // The extent first: until it is ours a cleaner may still put the chunk back, header and all.
  const uint64_t mine = owner_process_word(pool.me, device, incoming == kForNobody ? from : account);
  pool.owners[unit].store(mine | (owner_wiped(owner) ? kWipedBit : 0));
  MARU_POINT("evict.extent_taken");
  clear_header(pool, unit);
  MARU_POINT("evict.header_cleared");
  if (owner_wiped(owner)) {
    wipe_extent(pool, unit);
    MARU_POINT("evict.wiped");
    pool.owners[unit].store(mine);
  }
  clear_tag(pool, i);
  MARU_POINT("evict.tag_cleared");
  const uint64_t next = MARU_MUTANT("generation_not_bumped") ? generation : next_generation(word);
  slot.word.store(slot_word(SlotState::kFree, 0, next));
  MARU_POINT("evict.done");
  remove_child(pool, parent);
  count_resident(pool, -1);
  if (was_parent && state == SlotState::kSealed) pool.count(Counter::kEvictedParents);
  return true;
}

}  // namespace

bool push_out(Pool& pool, uint64_t i, uint64_t unit, bool device, uint32_t incoming, uint32_t account) {
  MARU_POINT("evict.chosen");
  return evict_slot(pool, i, unit, device, incoming, account);
}

bool drop_for(Pool& pool, uint64_t i, uint32_t incoming) {
  const uint64_t extent = pool.hot[i].extent.load(std::memory_order_relaxed);
  if (!pool.extent_is_sane(extent, 1)) return false;
  const uint64_t unit = pool.unit_of_extent(extent);
  if (!push_out(pool, i, unit, false, incoming, 0)) return false;
  free_extent(pool, unit, false);
  return true;
}

bool drop_slot(Pool& pool, uint64_t i) {
  const uint64_t extent = pool.hot[i].extent.load(std::memory_order_relaxed);
  if (!pool.extent_is_sane(extent, 1)) return false;
  const uint64_t unit = pool.unit_of_extent(extent);
  if (!evict_slot(pool, i, unit, false, kForNobody, 0)) return false;  // Off its account where it is freed.
  free_extent(pool, unit, false);
  return true;
}

void add_child(Pool& pool, uint64_t parent) {
  if (parent == 0 || parent_slot(parent) >= pool.geometry.slot_count) return;
  SlotHot& slot = pool.hot[parent_slot(parent)];
  if (static_cast<uint32_t>(slot_generation(slot.word.load(std::memory_order_relaxed))) ==
      parent_generation(parent))
    slot.children.fetch_add(1, std::memory_order_relaxed);
}

void remove_child(Pool& pool, uint64_t parent) {
  if (parent == 0 || parent_slot(parent) >= pool.geometry.slot_count) return;
  SlotHot& slot = pool.hot[parent_slot(parent)];
  if (static_cast<uint32_t>(slot_generation(slot.word.load(std::memory_order_relaxed))) !=
      parent_generation(parent))
    return;
  uint32_t seen = slot.children.load(std::memory_order_relaxed);
  while (seen > 0 && !slot.children.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed)) {
  }
}

void recount_children(Pool& pool) {
  std::vector<uint32_t> children(pool.geometry.slot_count, 0);
  uint64_t resident = 0;
  for (uint64_t i = 0; i < pool.geometry.slot_count; i++) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    if (may_be_evicted(slot_state(word))) resident++;
    if (slot_state(word) != SlotState::kSealed) continue;
    const uint64_t parent = pool.cold[i].parent.load(std::memory_order_relaxed);
    if (parent == 0 || parent_slot(parent) >= pool.geometry.slot_count) continue;
    const uint64_t parent_now = pool.hot[parent_slot(parent)].word.load(std::memory_order_relaxed);
    if (static_cast<uint32_t>(slot_generation(parent_now)) == parent_generation(parent))
      children[parent_slot(parent)]++;
  }
  for (uint64_t i = 0; i < pool.geometry.slot_count; i++)
    pool.hot[i].children.store(children[i], std::memory_order_relaxed);
  pool.super->resident.store(resident, std::memory_order_relaxed);
}

void count_resident(Pool& pool, int64_t by) {
  pool.super->resident.fetch_add(static_cast<uint64_t>(by), std::memory_order_relaxed);
}

}  // namespace maru
