// Pins: who reads what.
//
// The argument (Dekker's, or hazard pointers). Each process has a column of 16-bit counters, one a slot.
//   Reader:  pins[me][slot] += 1;  then read the state word again; still the same SEALED word: it is pinned.
//   Evictor: state word SEALED -> EVICTING;  then read every live process's counter; all zero: it may go.
// Both store first and load afterwards, with sequentially consistent operations, so at least one of them sees
// the other: either the reader finds the word changed and gives its pin back, or the evictor finds the pin
// and reverts.
//   Who writes: only the owning process its own column, and after its death whoever holds its byte lock.
//   The worst a stale counter can do: keep a chunk that nobody reads, until the sweep wipes a dead column.
//   No line is written by two processes, so readers on different cores do not disturb each other.
//   A count cannot be corrected after a crash when count and ledger are two words; a column can: it is wiped
//   whole.
#pragma once

#include "chunk_index.h"
#include "pool.h"

namespace maru {

inline constexpr uint32_t kPinLimit =
    60000;  // Per process and chunk; leaves room for threads in the middle of it.
inline constexpr int kPinTries = 4;

inline Atomic<uint16_t>& pin_counter(const Pool& pool, uint32_t process, uint64_t slot) {
  return pool.pins[process * pool.geometry.slot_count + slot];
}

// Add a pin to a slot that is pinned already by us. False when there are too many.
inline bool pin_again(Pool& pool, uint64_t slot) {
  if (pool.my_pins[slot].fetch_add(1) < kPinLimit) return true;
  pool.my_pins[slot].fetch_sub(1);
  return false;
}

inline void unpin(Pool& pool, uint64_t slot) {
  MARU_POINT("unpin.before");
  if (pool.my_pins[slot].fetch_sub(1) == 0) pool.my_pins[slot].fetch_add(1);  // Never below zero.
}

// Does any live process pin this slot?
inline bool is_pinned(const Pool& pool, uint64_t slot) {
  for (uint32_t group = 0; group < 4; group++)
    for (uint64_t bits = pool.super->live[group].load(); bits; bits &= bits - 1) {
      const uint32_t process = group * 64 + static_cast<uint32_t>(__builtin_ctzll(bits));
      if (process < pool.geometry.process_limit && pin_counter(pool, process, slot).load() != 0) return true;
    }
  return false;
}

// Racy on purpose, and nothing is stored for the second hit of an epoch: readers then share the line
// undisturbed.
inline void touch(SlotHot& slot, uint32_t epoch) {
  const uint32_t stamp = slot.stamp.load(std::memory_order_relaxed);
  if (stamp_epoch(stamp) != epoch)
    slot.stamp.store(stamp_of(epoch, stamp_hits(stamp) + 1), std::memory_order_relaxed);
}

// Pin `key` when it is sealed and current. `epoch` is the eviction epoch that marks the hit.
template <class Mine = Everybody>
inline bool pin_key(Pool& pool, Key key, uint32_t epoch, PinnedExtent* out, const Mine& mine = Mine()) {
  return probe_among(pool, key, mine, [&](uint64_t i) {  // Another's is not even pinned for a moment.
    SlotHot& slot = pool.hot[i];
    for (int n = 0; n < kPinTries; n++) {
      const uint64_t word = slot.word.load(std::memory_order_acquire);
      if (slot_state(word) != SlotState::kSealed || !key_equals(slot, key)) return false;
      MARU_POINT("pin.before");
      if (!pin_again(pool, i)) return false;
      MARU_POINT("pin.taken");
      const uint64_t extent = slot.extent.load(std::memory_order_relaxed);
      const uint64_t size = slot.size_bytes.load(std::memory_order_relaxed);
      const bool usable = is_readable(pool, slot, i) && pool.extent_is_sane(extent, size) && mine.owns(slot);
      std::atomic_thread_fence(std::memory_order_acquire);
      if (slot.word.load() == word || MARU_MUTANT("no_recheck_after_pin")) {
        if (!usable) {
          unpin(pool, i);
          return false;
        }
        touch(slot, epoch);
        *out = {i, extent, size};
        return true;
      }
      unpin(pool, i);
    }
    return false;
  });
}

// Pin the leading run of `keys`; returns how many. With the `always` checksum policy each is verified first
// and a chunk whose bytes changed is quarantined: it, and everything after it, is a miss.
uint64_t pin_leading(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out);
uint64_t pin_leading(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out,
                     const NamespaceSet& mine);

// The same without looking at any byte: for whoever compares them on the way, as is_hashed and has_hash say.
uint64_t pin_leading_unverified(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out);

// Does this chunk have a checksum that reads are to be compared with? The caller holds a pin on it, here and
// below.
bool is_hashed(const Pool& pool, const PinnedExtent& chunk);

// Is this the hash of its bytes? If not, it is quarantined.
bool has_hash(Pool& pool, const PinnedExtent& chunk, uint64_t hash);

// One key, with the same verification.
bool pin_one(Pool& pool, Key key, PinnedExtent* out);

// The chunk that lies in `slot`, if it is still the one of this generation, with the same verification. It
// counts as no hit and leaves no stamp: whoever takes a copy away does not make it wanted.
bool pin_in_passing(Pool& pool, uint64_t slot, uint64_t generation, PinnedExtent* out);

}  // namespace maru
