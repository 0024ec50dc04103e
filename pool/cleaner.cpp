#include "cleaner.h"

#include "allocator.h"
#include "chunk_index.h"
#include "departure.h"
#include "eviction.h"
#include "lease.h"
#include "pins.h"
#include "process_table.h"
#include "reservation.h"
#include "shares.h"

namespace maru {

namespace {

// In a busy pool a recount may not come to an end; no more of them than that.
constexpr uint64_t kRecountsMax = 40;

// Has the slot got its extent? Before that its fields are those of its last life, and the living process that
// is just claiming it would be robbed in the middle.
bool is_bound(const Pool& pool, uint64_t i) {
  const uint64_t extent = pool.hot[i].extent.load(std::memory_order_acquire);
  return pool.extent_is_sane(extent, 1) && owned_by_slot(pool.owners[pool.unit_of_extent(extent)].load(), i);
}

// End a reservation of several parts. Our pin keeps the slot from being freed and claimed anew before its tag
// is cleared.
void end_parts(Pool& pool, uint64_t i, uint64_t word) {
  pool.my_pins[i].fetch_add(1);
  revoke_parts(pool, i, word);
  pool.my_pins[i].fetch_sub(1);
  release_if_unpinned(pool, i);
}

// Take over a slot's word from the dead and end it. `process` is in the word, dead, and cannot come back: its
// number is only given out again by whoever cleaned up after it.
void finish_dead(Pool& pool, uint64_t i, uint64_t word) {
  SlotHot& slot = pool.hot[i];
  const uint64_t generation = slot_generation(word), extent = slot.extent.load(std::memory_order_relaxed);
  const bool ours = is_bound(pool, i);
  const SlotState state = slot_state(word);
  if (state == SlotState::kEvicting && ours && is_pinned(pool, i)) {
    // It died between marking and taking, and somebody reads: back, with the same generation.
    const SlotState back = word & kSuspectBit ? SlotState::kQuarantined : SlotState::kSealed;
    slot.word.compare_exchange_strong(word, slot_word(back, kNobody, generation));
    return;
  }
  if (state == SlotState::kReserved && ours && parts_total(pool.cold[i].parts.load()) > 1)
    return end_parts(pool, i, word);
  MARU_POINT("clean.before_word");
  if (!slot.word.compare_exchange_strong(word, slot_word(SlotState::kReleasing, pool.me, generation))) return;
  MARU_POINT("clean.word_taken_over");
  const bool device = ours && owner_device(pool.owners[pool.unit_of_extent(extent)].load());
  if (state == SlotState::kEvicting) remove_child(pool, pool.cold[i].parent.load(std::memory_order_relaxed));
  release_slot(pool, i, device);
}

bool has_unfinished_part(const Pool& pool, uint64_t i, uint32_t process) {
  const uint64_t parts = pool.cold[i].parts.load();
  for (uint32_t part = 0; part < parts_total(parts) && part < kPartLimit; part++) {
    if (parts_done_mask(parts) >> part & 1) continue;
    if ((pool.cold[i].part_owner[part / 8].load() >> (part % 8 * 8) & 255) == process + 1) return true;
  }
  return false;
}

// All parts are in, yet the word says RESERVED: whoever set the last bit died before it could seal, or is
// about to (then its seal answers LOST). Nobody else would ever end it.
bool is_complete(const Pool& pool, uint64_t i) {
  const uint64_t parts = pool.cold[i].parts.load();
  return parts_total(parts) > 1 && parts_complete(parts);
}

// Does the chunk lie in a segment that is being emptied?
bool is_draining(const Pool& pool, uint64_t i) {
  const uint32_t segment = extent_segment(pool.hot[i].extent.load(std::memory_order_relaxed));
  return segment < pool.maps.size() &&
         segment_state(pool.segments[segment].word.load(std::memory_order_relaxed)) ==
             SegmentState::kDraining;
}

void clean_slots(Pool& pool, uint32_t process) {
  for (uint64_t i = 0; i < pool.geometry.slot_count; i++) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    const SlotState state = slot_state(word);
    if (state == SlotState::kFree || state == SlotState::kSealed || state == SlotState::kQuarantined)
      continue;
    if (slot_process(word) == process) {
      finish_dead(pool, i, word);
      // A rival that saw it alive may have revoked the reservation just before our swap: then there is one
      // more word of the dead to end, and nobody would look at it again.
      const uint64_t after = pool.hot[i].word.load(std::memory_order_acquire);
      if (slot_state(after) == SlotState::kRevoked && slot_process(after) == process &&
          !MARU_MUTANT("cleaner_looks_once"))
        finish_dead(pool, i, after);
    } else if (state == SlotState::kReserved && is_bound(pool, i) &&
               parts_total(pool.cold[i].parts.load()) > 1 &&
               (has_unfinished_part(pool, i, process) || is_complete(pool, i))) {
      end_parts(pool, i, word);
    } else if (state == SlotState::kRevoked && slot_process(word) == kNobody) {
      release_if_unpinned(pool, i);
    }
    MARU_POINT("clean.slot");
  }
}

void clean_slabs(Pool& pool, uint32_t process) {
  for (uint64_t slab = 0; slab < pool.geometry.slab_count; slab++) {
    uint64_t word = pool.slabs[slab].word.load(std::memory_order_acquire);
    if (slab_state(word) != SlabState::kDraining || slab_process(word) != process) continue;
    // What it had claimed already is freed with its other owner words.
    const uint64_t active =
        slab_word(SlabState::kActive, kNobody, slab_chunk_units(word), slab_generation(word) + 1);
    pool.slabs[slab].word.compare_exchange_strong(word, active);
    MARU_POINT("clean.slab");
  }
}

void clean_owners(Pool& pool, uint32_t process) {
  for (uint64_t unit = 0; unit < pool.geometry.unit_count; unit++) {
    const uint64_t word = pool.owners[unit].load(std::memory_order_relaxed);
    if (!owned_by_process(word, process)) continue;
    free_extent(pool, unit, owner_device(word));
    MARU_POINT("clean.owner");
  }
}

void clean_locks(Pool& pool, uint32_t process) {
  for (uint32_t shard = 0; shard <= pool.geometry.shard_count; shard++) {
    uint64_t owner = pool.shards[shard].owner.load();
    if (owner != 0 && (owner & 255) == process + 1)
      pool.shards[shard].owner.compare_exchange_strong(owner, 0);
  }
}

}  // namespace

void ask_for_recount(Pool& pool) { pool.super->recounts_left.store(kRecountsMax); }

void clean_process(Pool& pool, uint32_t process) {
  MARU_POINT("clean.begin");
  // Pins first: a slot that only the dead one pinned can then be freed. A memset on atomics nobody else
  // writes.
  if (!MARU_MUTANT("dead_pins_not_wiped")) {
    Atomic<uint16_t>* column = pool.pins + process * pool.geometry.slot_count;
    for (uint64_t i = 0; i < pool.geometry.slot_count; i++)
      if (column[i].load(std::memory_order_relaxed) != 0) column[i].store(0, std::memory_order_release);
  }
  MARU_POINT("clean.pins_wiped");
  clean_locks(pool, process);
  if (!pool.reads_only) {  // Then it is a reader's row, and there is nothing more.
    clean_slots(pool, process);
    MARU_POINT("clean.slots_done");
    clean_slabs(pool, process);
    clean_owners(pool, process);
    MARU_POINT("clean.owners_done");
  }
  ProcessRow& row = pool.processes[process];
  row.revoked_bytes.store(0);
  row.flags.store(0);
  row.lease_ns.store(0);
  pool.super->live[process / 64].fetch_and(~(1ull << (process % 64)));
  MARU_POINT("clean.before_row");
  row.attached.store(0);
}

uint32_t clean_dead_processes(Pool& pool) {
  uint32_t cleaned = 0;
  for (uint32_t p = 0; p < pool.geometry.process_limit; p++) {
    if (p == pool.me || pool.processes[p].attached.load(std::memory_order_relaxed) == 0) continue;
    if (lease_runs(pool, p) && !MARU_MUTANT("lease_not_asked")) continue;
    const Descriptor lock = pool.lock_file->try_lock(kLockByteProcess + p);
    if (!lock || pool.processes[p].attached.load() == 0) continue;
    if (lease_runs(pool, p) && !MARU_MUTANT("lease_not_asked")) continue;
    ask_for_recount(pool);
    clean_process(pool, p);
    pool.count(Counter::kReaped);
    cleaned++;
  }
  if (cleaned > 0) {
    recount_free_hints(pool);
    recount_children(pool);
  }
  return cleaned;
}

void resolve_word(Pool& pool, uint64_t i, uint64_t word) {
  MARU_POINT("resolve.begin");
  // Only under the dead process's byte lock: else somebody may clean up after it, a newcomer take its number,
  // and the same word be a living process's by the time we come to change it.
  const Descriptor lock = pool.lock_file->try_lock(kLockByteProcess + slot_process(word));
  if ((!lock && !MARU_MUTANT("resolver_without_the_byte")) || pool.hot[i].word.load() != word) return;
  if (lease_runs(pool, slot_process(word))) return;
  finish_dead(pool, i, word);
  pool.count(Counter::kResolved);
}

void sweep(Pool& pool, uint64_t slot_budget, uint64_t* cursor) {
  clean_dead_processes(pool);
  const uint64_t left = pool.super->recounts_left.load(std::memory_order_relaxed);
  if (left > 0) pool.super->recounts_left.store(recount_shares(pool) ? 0 : left - 1);
  for (uint64_t n = 0; n < slot_budget && n < pool.geometry.slot_count; n++) {
    const uint64_t i = (*cursor)++ % pool.geometry.slot_count;
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    switch (slot_state(word)) {
      case SlotState::kQuarantined:
        drop_slot(pool, i);
        break;
      case SlotState::kRevoked:
        release_if_unpinned(pool, i);
        break;
      case SlotState::kSealed:
        if (!is_current(pool, pool.hot[i], i)) {
          if (drop_slot(pool, i)) pool.count(Counter::kExpired);
        } else if (is_draining(pool, i) && drop_slot(pool, i)) {
          pool.count(Counter::kEvicted);
        }
        break;
      default:
        break;
    }
  }
  pool.super->sweep_ns.store(now_ns());
  pool.super->sweep_count.fetch_add(1);
  pool.count(Counter::kSweeps);
}

}  // namespace maru
