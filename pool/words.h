// Packing and unpacking of the 64-bit words that hold the pool's facts. Pure functions, no memory access.
//
// A word in a transient state names the process responsible for ending that state; that is what makes a death
// at any instruction recoverable without a log.
#pragma once

#include <cstdint>

#include "layout.h"

namespace maru {

// ---- slot word: state : 4 | suspect : 1 | - : 3 | process : 8 | generation : 48 ---------------------------
//
//   FREE -> RESERVED|p -> SEALED -> EVICTING|q -> FREE (generation + 1)
//                |           \-> QUARANTINED -> EVICTING|q, suspect -> FREE
//                \-> REVOKED|p -> RELEASING|q -> FREE
//
// RESERVED, SEALED and EVICTING bind their key. QUARANTINED, REVOKED and RELEASING do not: their extents
// still belong to somebody, but another slot may take the key.
enum class SlotState : uint64_t {
  kFree = 0,
  kReserved = 1,   // p writes.
  kSealed = 2,     // Readable by everyone, never changes.
  kEvicting = 3,   // q looks whether somebody pins it; goes on to FREE or back.
  kRevoked = 4,    // p was too late; only p, or p's cleaner, gives the bytes back.
  kReleasing = 5,  // q gives the extent back; never returns.
  kQuarantined =
      6,  // Counts as absent (bad checksum, stale, expired while pinned); freed when nobody pins it.
};

inline constexpr uint64_t kSuspectBit = 1ull << 4;

constexpr uint64_t slot_word(SlotState state, uint32_t process, uint64_t generation) {
  return static_cast<uint64_t>(state) | static_cast<uint64_t>(process) << 8 | generation << 16;
}
constexpr SlotState slot_state(uint64_t word) { return static_cast<SlotState>(word & 15); }
constexpr uint32_t slot_process(uint64_t word) { return (word >> 8) & 255; }
constexpr uint64_t slot_generation(uint64_t word) { return word >> 16; }
constexpr uint64_t next_generation(uint64_t word) { return (slot_generation(word) + 1) & 0xffffffffffffull; }
constexpr bool binds_key(uint64_t word) {
  const SlotState state = slot_state(word);
  return state == SlotState::kReserved || state == SlotState::kSealed ||
         (state == SlotState::kEvicting && !(word & kSuspectBit));
}

// ---- stamp: eviction epoch of the last hit : 30 | epochs in which it was hit, 3 at most : 2
// ----------------
inline constexpr uint32_t kStampEpochMask = (1u << 30) - 1, kStampHitsMax = 3;
constexpr uint32_t stamp_of(uint32_t epoch, uint32_t hits) {
  return (epoch & kStampEpochMask) << 2 | (hits < kStampHitsMax ? hits : kStampHitsMax);
}
constexpr uint32_t stamp_epoch(uint32_t stamp) { return stamp >> 2; }
constexpr uint32_t stamp_hits(uint32_t stamp) { return stamp & 3; }

// Bits of SlotHot::flags.
enum SlotFlag : uint32_t {
  kSlotExpires = 1,      // cold.expiry_ns counts.
  kSlotChecksummed = 2,  // cold.checksum counts.
  kSlotBrought = 4,      // It came from the pool that this one is in front of.
};

// ---- slab word: state : 4 | - : 4 | process : 8 | chunk units : 24 | generation : 24
// -----------------------
enum class SlabState : uint64_t { kFree = 0, kActive = 1, kDraining = 2 };

constexpr uint64_t slab_word(SlabState state, uint32_t process, uint64_t chunk_units, uint64_t generation) {
  return static_cast<uint64_t>(state) | static_cast<uint64_t>(process) << 8 | chunk_units << 16 |
         (generation & 0xffffff) << 40;
}
constexpr SlabState slab_state(uint64_t word) { return static_cast<SlabState>(word & 15); }
constexpr uint32_t slab_process(uint64_t word) { return (word >> 8) & 255; }
constexpr uint64_t slab_chunk_units(uint64_t word) { return (word >> 16) & 0xffffff; }
constexpr uint64_t slab_generation(uint64_t word) { return word >> 40; }

// ---- owner word of a unit: the allocator's only truth
// ------------------------------------------------------ 0 free | PROCESS: private to a process | SLOT: of
// that slot | COOLING: nobody's until a time (milliseconds). Of the first two: value : 44 | tenant : 16 |
// wiped : 1 | device : 1 | kind : 2. A cooling one may be wiped too. The tenant is whose account the extent
// is on (shares.h); 0: nobody's.
enum class OwnerKind : uint64_t { kFree = 0, kProcess = 1, kSlot = 2, kCooling = 3 };

inline constexpr uint64_t kDeviceBit = 1ull << 61;  // A device may be writing into this extent.
inline constexpr uint64_t kWipedBit = 1ull << 60;   // Its bytes are overwritten before it is anybody else's.
inline constexpr uint32_t kTenantShift = 44, kTenantMax = 0xffff;
inline constexpr uint64_t kOwnerValueMask = (1ull << kTenantShift) - 1;

constexpr uint64_t owner_process_word(uint32_t process, bool device, uint32_t tenant) {
  return 1ull << 62 | (device ? kDeviceBit : 0) | uint64_t{tenant} << kTenantShift | process;
}
constexpr uint64_t owner_slot_word(uint64_t slot, bool device, uint32_t tenant, bool wiped) {
  return 2ull << 62 | (device ? kDeviceBit : 0) | (wiped ? kWipedBit : 0) | uint64_t{tenant} << kTenantShift |
         slot;
}
constexpr uint64_t owner_cooling_word(uint64_t until_ms, bool wiped) {
  return 3ull << 62 | (wiped ? kWipedBit : 0) | until_ms;
}
constexpr OwnerKind owner_kind(uint64_t word) { return static_cast<OwnerKind>(word >> 62); }
constexpr bool owner_device(uint64_t word) { return (word & kDeviceBit) != 0; }
constexpr uint64_t owner_value(uint64_t word) { return word & kOwnerValueMask; }
constexpr bool has_account(OwnerKind kind) { return kind == OwnerKind::kProcess || kind == OwnerKind::kSlot; }
constexpr uint32_t owner_tenant(uint64_t word) {
  return has_account(owner_kind(word)) ? (word >> kTenantShift) & kTenantMax : 0;
}
constexpr bool owner_wiped(uint64_t word) {
  return owner_kind(word) != OwnerKind::kFree && (word & kWipedBit);
}
constexpr bool owned_by_slot(uint64_t word, uint64_t slot) {
  return owner_kind(word) == OwnerKind::kSlot && owner_value(word) == slot;
}
constexpr bool owned_by_process(uint64_t word, uint32_t process) {
  return owner_kind(word) == OwnerKind::kProcess && owner_value(word) == process;
}

// ---- extent, parent, parts
// ---------------------------------------------------------------------------------
constexpr uint64_t extent_word(uint32_t segment, uint64_t offset) {
  return static_cast<uint64_t>(segment) << 56 | offset;
}
constexpr uint32_t extent_segment(uint64_t word) { return static_cast<uint32_t>(word >> 56); }
constexpr uint64_t extent_offset(uint64_t word) { return word & 0xffffffffffffffull; }

constexpr uint64_t parent_word(uint64_t slot, uint64_t generation) {
  return (slot + 1) << 32 | (generation & 0xffffffffu);
}
constexpr uint64_t parent_slot(uint64_t word) { return (word >> 32) - 1; }  // Only when word != 0.
constexpr uint32_t parent_generation(uint64_t word) { return static_cast<uint32_t>(word); }

constexpr uint64_t parts_word(uint32_t total) { return total; }
constexpr uint32_t parts_total(uint64_t word) { return word & 255; }
constexpr uint32_t parts_done_mask(uint64_t word) { return (word >> 16) & 0xffff; }
constexpr uint64_t part_done_bit(uint32_t part) { return 1ull << (16 + part); }
constexpr bool parts_complete(uint64_t word) {
  return parts_total(word) <= kPartLimit && parts_done_mask(word) == (1u << parts_total(word)) - 1;
}

// ---- segment word: state : 8 | generation : 56
// -------------------------------------------------------------
constexpr uint64_t segment_word(SegmentState state, uint64_t generation) {
  return static_cast<uint64_t>(state) | generation << 8;
}
constexpr SegmentState segment_state(uint64_t word) { return static_cast<SegmentState>(word & 255); }
constexpr uint64_t segment_generation(uint64_t word) { return word >> 8; }

}  // namespace maru
