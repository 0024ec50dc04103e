// Writing: reserve, fill, seal. And drafts: allocate first, name later.
//
// The argument. A reserved slot's word names its writer p. Only p moves it to SEALED, by one CAS, after its
// bytes are fenced; so nobody ever sees a sealed chunk with bytes still on their way.
//   Deadline. A writer may stall (SIGSTOP, swap, a stuck GPU). Past its deadline a rival may move RESERVED|p
//   to REVOKED|p, again one CAS: either p sealed first and the rival finds EXISTS, or the rival was first and
//   p's seal fails: LOST. The slot then binds no key, and the rival takes another slot and another extent.
//   Take-over takes the key, never the bytes: p may be in the middle of a store. Only p, or p's cleaner after
//   its death, gives a revoked extent back. What is taken over from one process is counted and capped. If p
//   dies: RESERVED|p and REVOKED|p are released by p's cleaner, or at once by whoever the word blocks. Parts.
//   With n writers each holds a pin while it writes, and sets a bit when it is done; whoever sets the last
//   one seals. When one of them gives up, dies or is too late, the word becomes REVOKED|nobody: the key is
//   free at once, and the extent goes when the last pin does, because the others may still be writing.
#pragma once

#include "chunk_index.h"
#include "pool.h"

namespace maru {

inline constexpr uint64_t kDefaultDeadlineNs = 30 * kSecond;

struct ReserveRequest {
  Key key{};
  uint64_t size_bytes = 0;  // Of the whole chunk, all parts together.
  uint32_t namespace_id = 0;
  uint64_t parent = 0;                        // Parent word, from find_parent; 0 for a root.
  uint64_t ttl_ns = 0;                        // 0: the namespace's.
  uint64_t deadline_ns = kDefaultDeadlineNs;  // From now.
  bool device = false;
  bool brought = false;  // Of the pool that this one is in front of: who tells changes says so.
  uint32_t part = 0;
  uint32_t parts = 1;
};

struct Reservation {
  uint64_t slot = 0;
  uint64_t word = 0;  // RESERVED|p|generation as it was when we got it.
  uint64_t extent = 0;
  uint64_t size_bytes = 0;  // Of the whole chunk.
  uint64_t part_offset = 0;
  uint64_t part_bytes = 0;
  uint32_t part = 0;
  uint32_t parts = 1;
  bool joined = false;     // Another process reserved the extent; ours was not needed.
  bool is_hashed = false;  // Whoever copied the bytes hashed them too:
  uint64_t hash = 0;       // ... XXH3-64 of the whole chunk.
};

struct Draft {
  uint64_t unit = 0;
  uint64_t extent = 0;
  uint64_t size_bytes = 0;
  bool device = false;
};

// Raises ChunkTooLarge, BadSize. Anything else is an Outcome: RESERVED (then `out` is filled), EXISTS,
// IN_FLIGHT, FULL, BUSY.
Outcome reserve_chunk(Pool& pool, const ReserveRequest& request, Reservation* out);

// STORED (with parts: this part is in) or LOST. The reservation is over either way.
Outcome seal_chunk(Pool& pool, const Reservation& reservation);

// Give it up. The bytes of a device reservation rest before they are used again.
void discard_chunk(Pool& pool, const Reservation& reservation);

// Move the deadline to `deadline_ns` from now. False when the reservation was taken over already.
bool renew_chunk(Pool& pool, const Reservation& reservation, uint64_t deadline_ns);

// FULL when nothing can or should be evicted for `tenant`. Raises ChunkTooLarge, BadSize.
Outcome allocate_draft(Pool& pool, uint64_t size_bytes, bool device, uint32_t tenant, bool wiped, Draft* out);

// Name a draft and seal it: STORED, or EXISTS, IN_FLIGHT, BUSY, FULL, LOST; unless STORED or LOST the draft
// remains.
// With `held` a STORED chunk comes back pinned: from before anybody could have evicted it.
Outcome publish_draft(Pool& pool, const Draft& draft, const ReserveRequest& request,
                      PinnedExtent* held = nullptr);
void discard_draft(Pool& pool, const Draft& draft);

// REMOVE a sealed chunk. False when it is absent, or pinned (then nothing changed).
bool remove_key(Pool& pool, Key key, const NamespaceSet* mine = nullptr);

// What `sealed` of an extent header says: a check of the 60 bytes before it, mixed with the pool's identity,
// so that what an earlier pool left on a device is not taken for ours. Never 0.
uint32_t header_mark(const Pool& pool, const ExtentHeader& header);

// Take back from what has been taken over from `process`, never below zero.
void uncount_revoked(Pool& pool, uint32_t process, uint64_t size_bytes);

// End a slot whose word is RELEASING|me: give its extent back if it is still this slot's, and free the slot.
// Shared by discard, LOST seals and the cleaner.
void release_slot(Pool& pool, uint64_t slot, bool device);

// A reservation of several parts becomes nobody's. False when its state had moved on. The caller pins the
// slot or holds its shard lock, so that it cannot be freed and claimed anew before its tag is cleared.
bool revoke_parts(Pool& pool, uint64_t slot, uint64_t reserved_word);

// Free a slot whose word is REVOKED|nobody, once no writer of a part pins it.
bool release_if_unpinned(Pool& pool, uint64_t slot);

}  // namespace maru
