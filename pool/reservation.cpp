#include "reservation.h"

#include <algorithm>

#include "allocator.h"
#include "chunk_index.h"
#include "claim.h"
#include "departure.h"
#include "eviction.h"
#include "failure.h"
#include "pins.h"
#include "process_table.h"
#include "shares.h"
#include "tally.h"
#include "xxh3.h"

namespace maru {

namespace {

void refuse_bad_size(const Pool& pool, uint64_t size_bytes) {
  if (size_bytes == 0)
    throw Failure("BadSize", "a chunk has at least one byte", {{"wanted_bytes", int64_t{0}}});
  if (size_bytes > pool.geometry.slab_bytes)
    throw Failure("ChunkTooLarge",
                  "a chunk of " + std::to_string(size_bytes) + " bytes does not fit a slab of " +
                      std::to_string(pool.geometry.slab_bytes) + " bytes",
                  {{"wanted_bytes", static_cast<int64_t>(size_bytes)},
                   {"slab_bytes", static_cast<int64_t>(pool.geometry.slab_bytes)}});
}

void refuse_bad_parts(const ReserveRequest& request) {
  if (request.parts < 1 || request.parts > kPartLimit || request.part >= request.parts ||
      request.size_bytes % request.parts != 0)
    throw Failure("BadSize",
                  "part " + std::to_string(request.part) + " of " + std::to_string(request.parts) +
                      ": parts must be 1 to " + std::to_string(kPartLimit) +
                      ", part below it, and the size a multiple of it",
                  {{"wanted_bytes", static_cast<int64_t>(request.size_bytes)}});
}

Outcome counted(Pool& pool, Outcome outcome) {
  if (outcome == Outcome::kExists) pool.count(Counter::kExists);
  if (outcome == Outcome::kInFlight) pool.count(Counter::kInFlight);
  if (outcome == Outcome::kFull) pool.count(Counter::kFull);
  if (outcome == Outcome::kBusy) pool.count(Counter::kBusy);
  if (outcome == Outcome::kLost) pool.count(Counter::kLost);
  return outcome;
}

// The header travels with the bytes: it is written while the extent is still ours alone, and cleared by
// whoever frees.
void write_header(Pool& pool, const SlotHot& slot, const SlotCold& cold, uint32_t namespace_id, uint64_t unit,
                  uint64_t word) {
  const uint64_t units = chunk_units_at(pool, unit);
  if (units == 0) return;
  ExtentHeader* header = pool.header_of(unit, units);
  const NamespaceRow& row = pool.namespaces[namespace_id];
  header->sealed.store(0, std::memory_order_relaxed);
  header->key_lo = slot.key_lo.load(std::memory_order_relaxed);
  header->key_hi = slot.key_hi.load(std::memory_order_relaxed);
  std::memcpy(header->namespace_digest, row.digest, sizeof header->namespace_digest);
  header->generation = static_cast<uint32_t>(slot_generation(word));
  header->namespace_epoch = slot.namespace_epoch.load(std::memory_order_relaxed);
  header->size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
  header->checksum = cold.checksum.load(std::memory_order_relaxed);
  const bool expires = slot.flags.load(std::memory_order_relaxed) & kSlotExpires;
  header->chunk_units = static_cast<uint32_t>(units) | (expires ? kHeaderExpires : 0);
  header->sealed.store(header_mark(pool, *header), std::memory_order_release);
}

// Is nothing of its namespace, or nothing by this process, to be stored?
bool is_not_stored(const Pool& pool, const ReserveRequest& request) {
  return pool.reads_only ||
         pool.namespaces[request.namespace_id].flags.load(std::memory_order_relaxed) & kNamespaceUncached;
}

// Everything that must be true of the bytes and the slot before the word says SEALED. False: the namespace
// was invalidated meanwhile.
bool prepare_to_seal(Pool& pool, const Reservation& r, uint64_t word) {
  const uint64_t i = r.slot, extent = r.extent;
  SlotHot& slot = pool.hot[i];
  SlotCold& cold = pool.cold[i];
  if (!pool.segment_is_there(extent_segment(extent))) return false;
  if (!MARU_MUTANT("sealed_before_fence")) store_fence();
  const uint64_t unit = pool.unit_of_extent(extent);
  // The caller's device copies are over: that is what sealing means. A crash from here on needs no resting
  // time.
  pool.owners[unit].fetch_and(~kDeviceBit);
  if (pool.geometry.checksum == ChecksumPolicy::kAlways) {
    const uint64_t sum = r.is_hashed ? r.hash : xxh3_64(pool.readable_at(extent), r.size_bytes);
    cold.checksum.store(sum, std::memory_order_relaxed);
    slot.flags.fetch_or(kSlotChecksummed, std::memory_order_relaxed);
  }
  const uint32_t id = slot.namespace_id.load(std::memory_order_relaxed);
  if (id >= pool.geometry.namespace_limit || static_cast<uint32_t>(pool.namespaces[id].epoch.load()) !=
                                                 slot.namespace_epoch.load(std::memory_order_relaxed))
    return false;
  MARU_POINT("seal.before_header");
  write_header(pool, slot, cold, id, unit, word);
  MARU_POINT("seal.before_word");
  return true;
}

// Our seal or discard came first, or a rival revoked us: either way the slot is ours to release.
void release_own(Pool& pool, uint64_t i, uint64_t reserved_word, bool device) {
  SlotHot& slot = pool.hot[i];
  const uint64_t generation = slot_generation(reserved_word);
  const uint64_t releasing = slot_word(SlotState::kReleasing, pool.me, generation);
  uint64_t word = reserved_word;
  bool was_revoked = false;
  if (!slot.word.compare_exchange_strong(word, releasing)) {
    // Taken over: the key is somebody else's, the bytes are still ours to give back.
    if (word != slot_word(SlotState::kRevoked, pool.me, generation)) return;
    if (!slot.word.compare_exchange_strong(word, releasing)) return;
    was_revoked = true;
  }
  MARU_POINT("discard.releasing");
  if (was_revoked) {
    uncount_revoked(pool, pool.me, slot.size_bytes.load(std::memory_order_relaxed));
  }
  release_slot(pool, i, device);
}

bool device_bit(const Pool& pool, uint64_t extent) {
  return owner_device(pool.owners[pool.unit_of_extent(extent)].load());
}

// One writer of several gives up: no key for any of them, and the extent goes with the last one's pin.
void abandon_parts(Pool& pool, const Reservation& r) {
  revoke_parts(pool, r.slot, r.word);
  MARU_POINT("part.revoked");
  unpin(pool, r.slot);
  release_if_unpinned(pool, r.slot);
}

// `namespace_id`: read while the slot was ours; sealed, it may be somebody else's at once.
Outcome sealed_outcome(Pool& pool, const Reservation& r, uint32_t namespace_id) {
  add_child(pool, pool.cold[r.slot].parent.load(std::memory_order_relaxed));
  count_resident(pool, 1);
  pool.count(Counter::kStored);
  pool.count(Counter::kStoredBytes, r.size_bytes);
  tally(pool, TallyKind::kStored, namespace_id, 1, r.size_bytes);
  return Outcome::kStored;
}

Outcome seal_part(Pool& pool, const Reservation& r) {
  SlotHot& slot = pool.hot[r.slot];
  store_fence();
  MARU_POINT("part.before_done");
  const uint64_t before = pool.cold[r.slot].parts.fetch_or(part_done_bit(r.part));
  MARU_POINT("part.done");
  Outcome outcome = Outcome::kStored;
  uint64_t word = slot.word.load();
  const bool still_ours =
      slot_generation(word) == slot_generation(r.word) && slot_state(word) == SlotState::kReserved;
  if (!still_ours) {
    outcome = Outcome::kLost;
  } else if (parts_complete(before | part_done_bit(r.part)) || MARU_MUTANT("last_part_not_awaited")) {
    const uint64_t sealed = slot_word(SlotState::kSealed, kNobody, slot_generation(word));
    const uint32_t namespace_id = slot.namespace_id.load(std::memory_order_relaxed);
    if (prepare_to_seal(pool, r, word) && slot.word.compare_exchange_strong(word, sealed)) {
      MARU_POINT("seal.after_word");
      sealed_outcome(pool, r, namespace_id);
    } else {
      outcome = Outcome::kLost;
    }
  }
  if (outcome == Outcome::kLost) {
    abandon_parts(pool, r);
    return counted(pool, outcome);
  }
  unpin(pool, r.slot);
  return outcome;
}

}  // namespace

Outcome reserve_chunk(Pool& pool, const ReserveRequest& request, Reservation* out) {
  refuse_bad_size(pool, request.size_bytes);
  refuse_bad_parts(request);
  if (!pool.is_live()) return counted(pool, Outcome::kBusy);
  if (is_not_stored(pool, request)) return counted(pool, Outcome::kFull);
  if (request.parts == 1) {
    // Look before making room: what is there, or on its way, should evict nobody.
    if (is_sealed(pool, request.key)) return counted(pool, Outcome::kExists);
    if (is_being_written(pool, request.key)) return counted(pool, Outcome::kInFlight);
  } else {
    // Somebody may have reserved it for all of us: then there is nothing to allocate.
    const Outcome outcome = join_chunk(pool, request, out);
    if (outcome != Outcome::kLost) return outcome == Outcome::kReserved ? outcome : counted(pool, outcome);
  }
  count_incoming(pool, request.key);
  const uint64_t unit = allocate_extent(pool, pool.units_for(request.size_bytes), request.device,
                                        request.parent, tenant_of(pool, request.namespace_id));
  if (unit == kNoUnit) return counted(pool, Outcome::kFull);
  MARU_POINT("reserve.allocated");
  const Outcome outcome = claim_key(pool, request, unit, out);
  if (outcome != Outcome::kReserved || out->joined) free_extent(pool, unit, false);
  return outcome == Outcome::kReserved ? outcome : counted(pool, outcome);
}

Outcome seal_chunk(Pool& pool, const Reservation& r) {
  if (!pool.is_live()) return counted(pool, Outcome::kLost);
  if (r.parts > 1) return seal_part(pool, r);
  uint64_t word = r.word;
  const uint64_t sealed = slot_word(SlotState::kSealed, kNobody, slot_generation(word));
  const uint32_t namespace_id = pool.hot[r.slot].namespace_id.load(std::memory_order_relaxed);
  if (prepare_to_seal(pool, r, word) && pool.hot[r.slot].word.compare_exchange_strong(word, sealed)) {
    MARU_POINT("seal.after_word");
    return sealed_outcome(pool, r, namespace_id);
  }
  release_own(pool, r.slot, r.word, false);
  return counted(pool, Outcome::kLost);
}

void discard_chunk(Pool& pool, const Reservation& r) {
  pool.count(Counter::kDiscarded);
  // The caller's streaming stores must not land after the extent has become somebody else's.
  if (!MARU_MUTANT("discarded_before_fence")) store_fence();
  if (r.parts > 1) return abandon_parts(pool, r);
  release_own(pool, r.slot, r.word, device_bit(pool, r.extent));
}

bool renew_chunk(Pool& pool, const Reservation& r, uint64_t deadline_ns) {
  const uint64_t word = pool.hot[r.slot].word.load();
  if (slot_state(word) != SlotState::kReserved || slot_generation(word) != slot_generation(r.word))
    return false;
  pool.cold[r.slot].deadline_ns.store(now_ns() + deadline_ns);
  const uint64_t after = pool.hot[r.slot].word.load();
  return after == word;
}

Outcome allocate_draft(Pool& pool, uint64_t size_bytes, bool device, uint32_t tenant, bool wiped,
                       Draft* out) {
  refuse_bad_size(pool, size_bytes);
  if (!pool.is_live()) return counted(pool, Outcome::kBusy);
  if (pool.reads_only) return counted(pool, Outcome::kFull);
  const uint64_t unit = allocate_extent(pool, pool.units_for(size_bytes), device, 0, tenant);
  if (unit == kNoUnit) return counted(pool, Outcome::kFull);
  // Nothing is written yet. What it is named for later says again whether it is wiped.
  if (wiped) pool.owners[unit].fetch_or(kWipedBit);
  MARU_POINT("draft.allocated");
  *out = {unit, pool.extent_of_unit(unit), size_bytes, device};
  return Outcome::kReserved;
}

Outcome publish_draft(Pool& pool, const Draft& draft, const ReserveRequest& request, PinnedExtent* held) {
  if (!pool.is_live()) return counted(pool, Outcome::kBusy);
  if (is_not_stored(pool, request)) return counted(pool, Outcome::kFull);
  if (is_sealed(pool, request.key)) return counted(pool, Outcome::kExists);
  count_incoming(pool, request.key);
  // It comes on the account of whom it is named for.
  const uint32_t tenant = tenant_of(pool, request.namespace_id),
                 before = owner_tenant(pool.owners[draft.unit].load(std::memory_order_relaxed));
  const uint64_t bytes = pool.account_bytes(chunk_units_at(pool, draft.unit));
  if (tenant != before && !charge(pool, tenant, bytes)) return counted(pool, Outcome::kFull);
  Reservation r;
  const Outcome outcome = claim_key(pool, request, draft.unit, &r);
  if (tenant != before) discharge(pool, outcome == Outcome::kReserved ? before : tenant, bytes);
  if (outcome != Outcome::kReserved) return counted(pool, outcome);
  MARU_POINT("draft.named");
  // A pin on a slot that is still ours is seen by every evictor that could see it sealed.
  if (held && !pin_again(pool, r.slot)) held = nullptr;
  const Outcome sealed = seal_chunk(pool, r);
  if (held && sealed == Outcome::kStored) *held = {r.slot, r.extent, draft.size_bytes};
  if (held && sealed != Outcome::kStored) unpin(pool, r.slot);
  return sealed;
}

void discard_draft(Pool& pool, const Draft& draft) {
  pool.count(Counter::kDiscarded);
  store_fence();
  if (owned_by_process(pool.owners[draft.unit].load(), pool.me)) free_extent(pool, draft.unit, draft.device);
}

namespace {

template <class Mine>
bool remove_among(Pool& pool, Key key, const Mine& mine) {
  bool removed = false;
  uint32_t namespace_id = 0;
  uint64_t size_bytes = 0;
  probe_among(pool, key, mine, [&](uint64_t i) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    if (slot_state(word) != SlotState::kSealed || !key_equals(pool.hot[i], key)) return false;
    if (!mine.owns(pool.hot[i])) return false;
    namespace_id = pool.hot[i].namespace_id.load(std::memory_order_relaxed);
    size_bytes = pool.hot[i].size_bytes.load(std::memory_order_relaxed);
    removed = drop_slot(pool, i);
    return true;
  });
  if (removed) {
    pool.count(Counter::kRemoved);
    tally(pool, TallyKind::kRemoved, namespace_id, 1, size_bytes);
  }
  return removed;
}

}  // namespace

bool remove_key(Pool& pool, Key key, const NamespaceSet* mine) {
  return mine ? remove_among(pool, key, *mine) : remove_among(pool, key, Everybody{});
}

uint32_t header_mark(const Pool& pool, const ExtentHeader& header) {
  uint64_t identity;
  std::memcpy(&identity, pool.super->pool_uuid, sizeof identity);
  const auto mark = static_cast<uint32_t>(xxh3_64(&header, offsetof(ExtentHeader, sealed)) ^ identity);
  return mark ? mark : 1;
}

void uncount_revoked(Pool& pool, uint32_t process, uint64_t size_bytes) {
  // A rival may be adding at this moment: a lost update would shift the cap for as long as the process lives.
  // And its cleaner may have set it to zero between somebody's adding and taking back: below zero it would
  // mean no take-over ever.
  Atomic<uint64_t>& revoked = pool.processes[process].revoked_bytes;
  uint64_t held = revoked.load(std::memory_order_relaxed);
  while (!revoked.compare_exchange_weak(
      held, held > size_bytes || MARU_MUTANT("revoked_bytes_wrap") ? held - size_bytes : 0)) {
  }
}

void release_slot(Pool& pool, uint64_t i, bool device) {
  SlotHot& slot = pool.hot[i];
  const uint64_t word = slot.word.load(), extent = slot.extent.load(std::memory_order_relaxed);
  // The back-reference decides: a slot that died before it got its extent must not free the extent of its
  // last life.
  if (pool.extent_is_sane(extent, 1)) {
    const uint64_t unit = pool.unit_of_extent(extent);
    if (owned_by_slot(pool.owners[unit].load(), i) || MARU_MUTANT("no_back_reference_check"))
      free_extent(pool, unit, device);
  }
  MARU_POINT("release.extent_freed");
  clear_tag(pool, i);
  MARU_POINT("release.tag_cleared");
  slot.word.store(slot_word(SlotState::kFree, 0, next_generation(word)));
  MARU_POINT("release.done");
}

bool revoke_parts(Pool& pool, uint64_t i, uint64_t reserved_word) {
  uint64_t word = pool.hot[i].word.load();
  if (slot_generation(word) != slot_generation(reserved_word) || slot_state(word) != SlotState::kReserved)
    return false;
  if (!pool.hot[i].word.compare_exchange_strong(
          word, slot_word(SlotState::kRevoked, kNobody, slot_generation(word))))
    return false;
  clear_tag(pool, i);
  return true;
}

bool release_if_unpinned(Pool& pool, uint64_t i) {
  SlotHot& slot = pool.hot[i];
  uint64_t word = slot.word.load();
  if (slot_state(word) != SlotState::kRevoked || slot_process(word) != kNobody || is_pinned(pool, i) ||
      pool.reads_only)
    return false;
  // Nobody can pin or join a revoked slot any more, so once seen unpinned it stays so.
  if (!slot.word.compare_exchange_strong(word,
                                         slot_word(SlotState::kReleasing, pool.me, slot_generation(word))))
    return false;
  const uint64_t extent = slot.extent.load();
  release_slot(pool, i, pool.extent_is_sane(extent, 1) && device_bit(pool, extent));
  return true;
}

}  // namespace maru
