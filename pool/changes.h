// What came and what left since the last look: the pool's slots compared with a private record of what was
// told.
//
// Nobody writes a log for it, so storing and evicting pay nothing; whoever wants to know pays by looking at
// all slots (some milliseconds a million). What came and went between two looks is never told.
//
// The argument. A slot's fields do not change while its word says SEALED with one generation, so (slot,
// generation) names one chunk for ever, and a look compares nothing else. A slot used again in between has
// another generation: the old key is told as gone, then the new one as come. A key may have moved to another
// slot meanwhile; it counts as there as long as it is told of any slot, and since a key lives within
// kBucketsProbed buckets of its home, those are all the slots to ask. So what was told, taken in order,
// always sums up to "the keys of the slots that are told", and after a look in which nobody changed anything
// these are the keys that lookup finds.
//   Who writes: nobody writes the pool here. The record is private to this object.
//   The worst that a race can do: a slot that changes while it is looked at counts as not readable, and the
//   next look tells what became of it.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "pool.h"

namespace maru {

enum class ChangeKind : uint8_t { kStored = 1, kRemoved = 2 };

// One change, as Python unpacks it. The parent is told before its child, if it is there at all.
struct Change {
  Key key;
  Key parent;  // Zero unless has_parent.
  uint8_t namespace_digest[16];
  uint64_t size_bytes;
  ChangeKind kind;
  bool has_parent;
  bool is_brought;  // From the pool that this one is in front of.
  uint8_t spare[5];
};
static_assert(sizeof(Change) == 64);

inline constexpr uint64_t kChangesMin = 2;  // A slot that was used again is two changes.

class ChangeScan {
 public:
  explicit ChangeScan(const Pool& pool);

  // Go on looking where the last call stopped, and add at most `limit` (kChangesMin or more) changes to
  // `out`. True when every slot was looked at since the last time it said so. Raises PoolMismatch when the
  // pool is not the one that this record is of.
  bool look(const Pool& pool, uint64_t limit, std::vector<Change>* out);

  // Everything that counts as told, each parent before its children.
  std::vector<Change> told(const Pool& pool) const;
  uint64_t told_count() const { return told_count_; }

 private:
  // What was told of a slot; counts while its generation is set.
  struct Told {
    Key key;
    uint64_t parent;  // As in SlotCold.
    uint64_t size_bytes;
    uint32_t namespace_id;
    uint32_t flags;  // SlotFlag
  };
  // What a lookup would find in a slot.
  struct Seen {
    uint64_t generation;
    Told chunk;
  };
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  template <class T>
  using Column = std::unique_ptr<T[], Free>;  // Zero, and no memory until it is written.

  void refuse_another(const Pool& pool) const;
  bool is_told(uint64_t slot, uint64_t generation) const;
  bool parent_is_told(uint64_t parent) const;
  bool is_told_elsewhere(const Pool& pool, Key key) const;
  bool see(const Pool& pool, uint64_t slot, Seen* seen) const;
  bool settle(const Pool& pool, uint64_t slot, uint64_t limit, std::vector<Change>* out);
  bool tell(const Pool& pool, uint64_t slot, uint64_t limit, std::vector<Change>* out);
  Change change_of(const Pool& pool, ChangeKind kind, const Told& chunk) const;

  uint8_t pool_uuid_[16];
  uint64_t slot_count_;
  uint64_t cursor_ = 0;
  uint64_t told_count_ = 0;
  uint64_t now_ns_ = 0;  // When this look began: what has run out by then has left.
  bool is_live_ = true;
  Column<uint64_t> generation_;  // + 1 of what was told; 0: nothing.
  Column<Told> chunk_;
  std::vector<uint64_t> chain_;  // Scratch: a slot and its ancestors that are not told yet.
};

}  // namespace maru
