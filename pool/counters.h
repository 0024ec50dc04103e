// What is counted. One row per process number in shared memory, so that counting disturbs nobody; the pool's
// figure is the sum over all rows. Order is part of the format: append only.
#pragma once

#include <cstdint>

namespace maru {

enum class Counter : uint32_t {
  kLookupKeys,   // Keys asked for by lookup, pin and get.
  kHitKeys,      // Of these, found.
  kPinned,       // Pins taken.
  kPinnedBytes,  // Bytes made readable by them, in place.
  kStored,       // Chunks sealed.
  kStoredBytes,
  kExists,     // reserve/put answered: already there.
  kInFlight,   // ... somebody else is writing it.
  kFull,       // ... nothing that could or should be evicted.
  kBusy,       // ... a lock was not free in time.
  kLost,       // Sealed too late: the key had been taken over, or the namespace bumped.
  kDiscarded,  // Reservations and drafts given back.
  kRemoved,
  kEvicted,
  kEvictedBytes,
  kEvictedParents,  // Evicted although children were resident: orphaned suffixes.
  kEvictReverts,    // Eviction gave way to a pin.
  kExpired,         // Chunks found past their time, or of a bumped namespace.
  kRevoked,         // Reservations taken over after their deadline.
  kQuarantined,     // Chunks whose bytes no longer matched their checksum.
  kCooled,          // Extents that had to rest because a device may still write them.
  kReaped,          // Dead processes cleaned up after.
  kResolved,        // Single words of dead processes resolved on the way.
  kLockSteals,      // Locks taken from dead holders.
  kReclassed,       // Slabs given another chunk size.
  kSpaceRefused,    // The medium gave no more space.
  kSweeps,
  kCrowdedOut,        // Evicted although there was room, because all buckets of a key were full.
  kGateRefused,       // Not stored (answered FULL): what would have had to go is wanted sooner.
  kKeyPinsExpired,    // Pins that nobody had an address of, dropped at their maximum age.
  kSuffixesLinked,    // Batches of an engine's own keys that continue a chunk which is there,
  kSuffixesOrphaned,  // ... whose predecessor is gone,
  kSuffixesUnplaced,  // ... of which nobody asked before, so that what they continue is not known.
  kCount,
};

inline constexpr const char* kCounterNames[] = {
    "lookup_keys",
    "hit_keys",
    "pinned",
    "pinned_bytes",
    "stored",
    "stored_bytes",
    "exists",
    "in_flight",
    "full",
    "busy",
    "lost",
    "discarded",
    "removed",
    "evicted",
    "evicted_bytes",
    "evicted_parents",
    "evict_reverts",
    "expired",
    "revoked",
    "quarantined",
    "cooled",
    "reaped",
    "resolved",
    "lock_steals",
    "reclassed",
    "space_refused",
    "sweeps",
    "crowded_out",
    "gate_refused",
    "key_pins_expired",
    "suffixes_linked",
    "suffixes_orphaned",
    "suffixes_unplaced",
};
static_assert(sizeof(kCounterNames) / sizeof(kCounterNames[0]) == static_cast<size_t>(Counter::kCount));

}  // namespace maru
