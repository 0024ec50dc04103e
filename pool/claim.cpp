#include "claim.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <functional>

#include "allocator.h"
#include "chunk_index.h"
#include "cleaner.h"
#include "departure.h"
#include "eviction.h"
#include "pins.h"
#include "process_table.h"
#include "shares.h"

namespace maru {

namespace {

// What stands in the way of a new binding of the key.
enum class Verdict { kClear, kExists, kInFlight, kJoined, kWait };

// Take the key away from a writer that is past its deadline. The caller holds the shard lock, so the slot
// cannot be freed and claimed again between the CAS and clearing its tag.
bool revoke(Pool& pool, uint64_t i, uint64_t word) {
  const uint32_t process = slot_process(word);
  const uint64_t size = pool.hot[i].size_bytes.load(std::memory_order_relaxed);
  if (parts_total(pool.cold[i].parts.load()) > 1) {
    if (!revoke_parts(pool, i, word)) return false;
    release_if_unpinned(pool, i);
  } else {
    if (process >= pool.geometry.process_limit) return false;
    Atomic<uint64_t>& held = pool.processes[process].revoked_bytes;
    if (held.load(std::memory_order_relaxed) + size > pool.geometry.revoked_limit_bytes) return false;
    held.fetch_add(size, std::memory_order_relaxed);
    MARU_POINT("revoke.before_word");
    if (!pool.hot[i].word.compare_exchange_strong(
            word, slot_word(SlotState::kRevoked, process, slot_generation(word)))) {
      uncount_revoked(pool, process, size);
      return false;
    }
    MARU_POINT("revoke.after_word");
    clear_tag(pool, i);
    if (MARU_MUTANT("extent_reused_at_revoke"))
      free_extent(pool, pool.unit_of_extent(pool.hot[i].extent.load()), false);
  }
  pool.count(Counter::kRevoked);
  return true;
}

// A sealed chunk that no longer counts must let go of its key: gone if nobody reads it, quarantined if
// somebody does. False: neither, since an evictor holds it that may yet give it back.
bool retire_stale(Pool& pool, uint64_t i, uint64_t word) {
  MARU_POINT("stale.before_drop");
  if (!drop_slot(pool, i)) {
    if (!pool.hot[i].word.compare_exchange_strong(
            word, slot_word(SlotState::kQuarantined, kNobody, slot_generation(word))))
      return false;
    clear_tag(pool, i);
  }
  pool.count(Counter::kExpired);
  return true;
}

bool join(Pool& pool, const ReserveRequest& request, uint64_t i, uint64_t word, Reservation* out) {
  SlotHot& slot = pool.hot[i];
  SlotCold& cold = pool.cold[i];
  const uint64_t parts = cold.parts.load();
  if (request.parts < 2 || parts_total(parts) != request.parts) return false;
  if (slot.size_bytes.load(std::memory_order_relaxed) != request.size_bytes) return false;
  const uint32_t shift = request.part % 8 * 8;
  Atomic<uint64_t>& owners = cold.part_owner[request.part / 8];
  if ((owners.load() >> shift & 255) != 0) return false;  // Somebody writes this part already.
  const uint64_t extent = slot.extent.load();
  if (!pool.extent_is_sane(extent, request.size_bytes) || !pool.segment_is_there(extent_segment(extent)) ||
      !pin_again(pool, i))
    return false;
  owners.fetch_or(static_cast<uint64_t>(pool.me + 1) << shift);
  MARU_POINT("part.joined");
  if (request.device) pool.owners[pool.unit_of_extent(extent)].fetch_or(kDeviceBit);
  const uint64_t deadline = now_ns() + request.deadline_ns;
  if (cold.deadline_ns.load() < deadline) cold.deadline_ns.store(deadline);
  if (slot.word.load() != word) {
    unpin(pool, i);
    release_if_unpinned(pool, i);
    return false;
  }
  const uint64_t part_bytes = request.size_bytes / request.parts;
  *out = {i,
          word,
          extent,
          request.size_bytes,
          part_bytes * request.part,
          part_bytes,
          request.part,
          request.parts,
          true};
  return true;
}

// Look at every slot that binds the key. Under the shard lock.
Verdict look(Pool& pool, const ReserveRequest& request, Reservation* out) {
  Verdict verdict = Verdict::kClear;
  probe(pool, request.key, [&](uint64_t i) {
    SlotHot& slot = pool.hot[i];
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    if (!binds_key(word) || !key_equals(slot, request.key)) return false;
    switch (slot_state(word)) {
      case SlotState::kSealed:
        if (is_current(pool, slot, i)) {
          verdict = Verdict::kExists;
        } else if (retire_stale(pool, i, word) || MARU_MUTANT("stale_not_awaited")) {
          return false;  // Look on: it binds nothing now.
        } else {
          verdict = Verdict::kWait;
        }
        return true;
      case SlotState::kEvicting:
        // It may come back: not absent until it is gone.
        if (MARU_MUTANT("evicting_treated_as_absent")) return false;
        if (slot_process(word) != pool.me && !process_is_alive(pool, slot_process(word)))
          resolve_word(pool, i, word);
        verdict = Verdict::kWait;
        return true;
      default:
        break;
    }
    // RESERVED by somebody.
    if (join(pool, request, i, word, out)) {
      verdict = Verdict::kJoined;
      return true;
    }
    if (slot_process(word) != pool.me && !process_is_alive(pool, slot_process(word))) {
      resolve_word(pool, i, word);
      verdict = Verdict::kWait;  // Look again: the word has moved on.
      return true;
    }
    if (pool.cold[i].deadline_ns.load() <= now_ns() && revoke(pool, i, word)) return false;
    verdict = Verdict::kInFlight;
    return true;
  });
  return verdict;
}

// A free slot in the key's buckets, making one free if all of them are full. UINT64_MAX: none.
uint64_t find_free_slot(Pool& pool, Key key, uint64_t protect_parent, uint32_t tenant) {
  std::array<uint64_t, kBucketsProbed> buckets;
  buckets[0] = home_bucket(pool, key);
  for (uint32_t n = 1; n < kBucketsProbed; n++) buckets[n] = next_bucket(pool, buckets[n - 1]);
  for (const uint64_t bucket : buckets)
    for (uint64_t i = bucket * kBucketSlots; i < (bucket + 1) * kBucketSlots; i++)
      if (slot_state(pool.hot[i].word.load(std::memory_order_acquire)) == SlotState::kFree) return i;
  // All full: the one that eviction would choose among these.
  std::array<std::pair<uint32_t, uint64_t>, kBucketsProbed * kBucketSlots> order;
  uint32_t count = 0;
  for (const uint64_t bucket : buckets)
    for (uint64_t i = bucket * kBucketSlots; i < (bucket + 1) * kBucketSlots; i++)
      if (protect_parent == 0 || parent_slot(protect_parent) != i)
        order[count++] = {eviction_order(pool, i), i};
  std::sort(order.begin(), order.begin() + count, std::greater<>());
  for (uint32_t n = 0; n < count && order[n].first != 0; n++) {
    const uint64_t i = order[n].second, size = pool.hot[i].size_bytes.load(std::memory_order_relaxed);
    if (!drop_for(pool, i, tenant)) continue;
    pool.count(Counter::kEvicted);
    pool.count(Counter::kEvictedBytes, size);
    pool.count(Counter::kCrowdedOut);
    if (slot_state(pool.hot[i].word.load(std::memory_order_acquire)) == SlotState::kFree) return i;
  }
  return UINT64_MAX;
}

// Fill slot `i` and make it visible as RESERVED|me. Under the shard lock.
bool take_slot(Pool& pool, const ReserveRequest& request, uint64_t i, uint64_t unit, Reservation* out) {
  SlotHot& slot = pool.hot[i];
  SlotCold& cold = pool.cold[i];
  uint64_t free_word = slot.word.load(std::memory_order_acquire);
  const uint64_t word = slot_word(SlotState::kReserved, pool.me, slot_generation(free_word));
  if (slot_state(free_word) != SlotState::kFree || !slot.word.compare_exchange_strong(free_word, word))
    return false;
  MARU_POINT("claim.word_set");
  const NamespaceRow& row = pool.namespaces[request.namespace_id];
  const uint64_t now = now_ns(),
                 ttl = request.ttl_ns ? request.ttl_ns : row.ttl_ns.load(std::memory_order_relaxed);
  const bool device = owner_device(pool.owners[unit].load());
  slot.key_lo.store(request.key.lo, std::memory_order_relaxed);
  slot.key_hi.store(request.key.hi, std::memory_order_relaxed);
  slot.size_bytes.store(request.size_bytes, std::memory_order_relaxed);
  slot.namespace_id.store(request.namespace_id, std::memory_order_relaxed);
  slot.namespace_epoch.store(static_cast<uint32_t>(row.epoch.load()), std::memory_order_relaxed);
  slot.stamp.store(stamp_of(eviction_epoch(pool), 0), std::memory_order_relaxed);
  slot.children.store(0, std::memory_order_relaxed);
  slot.flags.store((ttl ? kSlotExpires : 0u) | (request.brought ? kSlotBrought : 0u),
                   std::memory_order_relaxed);
  cold.expiry_ns.store(ttl ? now + ttl : 0, std::memory_order_relaxed);
  cold.deadline_ns.store(now + request.deadline_ns, std::memory_order_relaxed);
  cold.parent.store(request.parent, std::memory_order_relaxed);
  cold.parts.store(parts_word(request.parts), std::memory_order_relaxed);
  cold.checksum.store(0, std::memory_order_relaxed);
  const uint64_t part_owner = static_cast<uint64_t>(pool.me + 1) << (request.part % 8 * 8);
  for (uint32_t w = 0; w < 2; w++)
    cold.part_owner[w].store(request.parts > 1 && request.part / 8 == w ? part_owner : 0,
                             std::memory_order_relaxed);
  const uint64_t extent = pool.extent_of_unit(unit);
  slot.extent.store(extent, std::memory_order_release);
  MARU_POINT("claim.fields_set");
  if (request.parts > 1) pin_again(pool, i);
  const bool wiped = row.flags.load(std::memory_order_relaxed) & kNamespaceWiped;
  pool.owners[unit].store(owner_slot_word(i, device, tenant_of(pool, request.namespace_id), wiped));
  MARU_POINT("claim.extent_given");
  const uint64_t bucket = i / kBucketSlots;
  for (uint64_t full = home_bucket(pool, request.key); full != bucket; full = next_bucket(pool, full))
    pool.buckets[full].overflowed.store(1, std::memory_order_release);
  pool.buckets[bucket].tag[i % kBucketSlots].store(tag_of(request.key), std::memory_order_release);
  MARU_POINT("claim.tag_set");
  const uint64_t part_bytes = request.size_bytes / request.parts;
  *out = {i,
          word,
          extent,
          request.size_bytes,
          part_bytes * request.part,
          part_bytes,
          request.part,
          request.parts,
          false};
  return true;
}

// Run `action` under the key's shard lock until it answers something else than kWait, within kLockWaitNs.
template <class Action>
Outcome under_lock(Pool& pool, Key key, Action action) {
  const uint64_t deadline = now_ns() + kLockWaitNs;
  const uint32_t shard = shard_of(pool, key);
  while (true) {
    if (!lock_shard(pool, shard)) return Outcome::kBusy;
    Outcome outcome = Outcome::kBusy;
    const bool again = action(&outcome);
    unlock_shard(pool, shard);
    if (!again) return outcome;
    if (now_ns() >= deadline) return Outcome::kBusy;
    sched_yield();
  }
}

}  // namespace

Outcome claim_key(Pool& pool, const ReserveRequest& request, uint64_t unit, Reservation* out) {
  return under_lock(pool, request.key, [&](Outcome* outcome) {
    switch (look(pool, request, out)) {
      case Verdict::kWait:
        return true;
      case Verdict::kExists:
        *outcome = Outcome::kExists;
        return false;
      case Verdict::kInFlight:
        *outcome = Outcome::kInFlight;
        return false;
      case Verdict::kJoined:
        *outcome = Outcome::kReserved;
        return false;
      case Verdict::kClear:
        break;
    }
    const uint64_t i =
        find_free_slot(pool, request.key, request.parent, tenant_of(pool, request.namespace_id));
    if (i == UINT64_MAX)
      *outcome = Outcome::kFull;
    else if (take_slot(pool, request, i, unit, out))
      *outcome = Outcome::kReserved;
    return false;
  });
}

Outcome join_chunk(Pool& pool, const ReserveRequest& request, Reservation* out) {
  return under_lock(pool, request.key, [&](Outcome* outcome) {
    switch (look(pool, request, out)) {
      case Verdict::kWait:
        return true;
      case Verdict::kExists:
        *outcome = Outcome::kExists;
        return false;
      case Verdict::kInFlight:
        *outcome = Outcome::kInFlight;
        return false;
      case Verdict::kJoined:
        *outcome = Outcome::kReserved;
        return false;
      case Verdict::kClear:
        *outcome = Outcome::kLost;
        return false;
    }
    return false;
  });
}

bool is_being_written(Pool& pool, Key key) {
  return probe(pool, key, [&](uint64_t i) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    if (slot_state(word) != SlotState::kReserved || !key_equals(pool.hot[i], key)) return false;
    if (parts_total(pool.cold[i].parts.load()) > 1 || pool.cold[i].deadline_ns.load() <= now_ns())
      return false;
    return slot_process(word) == pool.me || process_is_alive(pool, slot_process(word));
  });
}

}  // namespace maru
