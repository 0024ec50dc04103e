// One process's attachment to a pool: the mapped sections as typed pointers, the numbers that size them, and
// who we are in the process table. The other rooms are functions over this struct; none of them holds state
// of its own.
//
//   chunk_index  find a key, guard its uniqueness         pins        who reads what
//   allocator    extents and slabs                        eviction    whose turn it is to go
//   reservation  reserve, seal, discard, drafts, parts    cleaner     what the dead left behind
//   space        bytes made real before they are used     housekeeper the thread that does the slow things
//   recut        slabs that change their chunk size      shares      what each tenant takes, and may take
//   reading      pinned, copied, compared, let go         team        large copies by several threads
//   tally        what we did, by namespace, for an audit log
//   check        every invariant, spelled out
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "clock.h"
#include "counters.h"
#include "crash_point.h"
#include "fork_guard.h"
#include "geometry.h"
#include "layout.h"
#include "lock_file.h"
#include "words.h"

namespace maru {

struct Key {
  uint64_t lo;
  uint64_t hi;
  bool operator==(const Key&) const = default;
};
static_assert(sizeof(Key) == 16);

// What a call that changes the pool answers. None of these is an error.
enum class Outcome : int {
  kReserved = 0,  // Yours to write.
  kStored = 1,    // Sealed: everyone can read it.
  kExists = 2,    // Already there.
  kInFlight = 3,  // Somebody is writing it now.
  kFull = 4,      // Nothing could, or should, be evicted for it.
  kBusy = 5,      // A lock was not free in time, or the pool is going away.
  kLost = 6,      // You came too late: the key was taken over, or its namespace invalidated.
};

// A chunk pinned for reading.
struct PinnedExtent {
  uint64_t slot;
  uint64_t extent;
  uint64_t size_bytes;
};

struct Evictor;
struct SlowRecut;
struct Tally;

struct Pool final : ForkWitness {
  Pool();
  ~Pool() override;  // Detaches (unless forked away) and unmaps.
  void forked() noexcept override;

  // ---- who and where ----
  std::string folder;
  Geometry geometry;
  std::unique_ptr<LockFile> lock_file;
  uint32_t me = kNobody;
  uint64_t my_epoch = 0;
  void* tied_page = nullptr;      // Holds our byte lock.
  Atomic<bool> is_forked{false};  // True in a child: this attachment is the parent's, touch nothing. Also of
                                  // a leased row that is left behind for the next daemon.

  // ---- the index ----
  uint8_t* index = nullptr;
  Superblock* super = nullptr;
  SegmentRow* segments = nullptr;
  ProcessRow* processes = nullptr;
  CounterRow* counters = nullptr;
  CounterRow* my_counters = nullptr;
  ClassRow* classes = nullptr;
  NamespaceRow* namespaces = nullptr;
  ShardRow* shards = nullptr;
  Bucket* buckets = nullptr;
  SlotHot* hot = nullptr;
  SlotCold* cold = nullptr;
  SlabRow* slabs = nullptr;
  Atomic<uint64_t>* owners = nullptr;
  Atomic<uint16_t>* pins = nullptr;
  Atomic<uint16_t>* my_pins = nullptr;
  ReuseTable* reuse = nullptr;
  TenantRow* tenants = nullptr;
  NamespaceMark* namespace_marks = nullptr;  // In the first segment.

  // ---- the data: one reserved address range each, segments side by side in slab order ----
  uint8_t* writable = nullptr;  // Read-write: writers' own reservations only. Nothing of a reader's.
  uint8_t* readable = nullptr;  // PROT_READ: everything sealed.
  size_t data_span = 0;
  struct SegmentMap {
    uint8_t* headers = nullptr;  // Read-write map (a reader's: read) of the file's first data_offset bytes.
    uint64_t first_byte = 0;     // Of its first slab, in the ranges above.
    uint64_t byte_count = 0;     // Of its slabs.
    std::string path;
    uint64_t device = 0, inode = 0;
    Medium medium = Medium::kShm;
  };
  std::vector<SegmentMap> maps;

  std::unique_ptr<Evictor> evictor;
  std::unique_ptr<SlowRecut> slow_recut;
  std::unique_ptr<Tally> tally;       // For an audit log; null where there is none.
  std::mutex mapping;                 // Held while segments that came later are mapped.
  Atomic<uint32_t> stripe{0};         // Which segment the next extent is taken from.
  Atomic<uint32_t> unmapped{0};       // Bit s: segment s is not mapped here: lost, awaited, or just added.
  Atomic<int32_t> near_node{-1};      // The NUMA node that we prefer; -1: none.
  Atomic<uint32_t> near_segments{0};  // Bit s: s lies on the NUMA node that we prefer. 0: take turns.
  uint32_t copy_threads = 1;          // Of one copy, at most.
  // Segments are mapped without write permission: this process reserves, frees and cleans nothing, since all
  // of that touches extent headers or wiped bytes. What it does in the index: count pins, touch, quarantine.
  bool reads_only = false;
  Atomic<bool> fresh_slabs_gone{false};  // Slabs are cut once and then only re-cut: no need to look again.

  // ---- small things every room needs ----
  void count(Counter counter, uint64_t by = 1) {
    my_counters->value[static_cast<uint32_t>(counter)].fetch_add(by, std::memory_order_relaxed);
  }
  bool is_live() const {
    return super->state.load(std::memory_order_relaxed) == static_cast<uint64_t>(PoolState::kLive);
  }
  uint64_t units_for(uint64_t size_bytes) const {
    return (size_bytes + geometry.unit_bytes - 1) / geometry.unit_bytes;
  }
  // What a chunk of so many units takes on its tenant's account: its memory, or one place of the index's
  // where those are scarcer. Else a tenant could fill the index with tiny chunks and be within its share.
  uint64_t account_bytes(uint64_t units) const {
    return std::max(units * geometry.unit_bytes, geometry.slot_bytes);
  }
  uint64_t slab_of_unit(uint64_t unit) const { return unit / geometry.units_per_slab; }
  uint32_t segment_of_slab(uint64_t slab) const {
    uint32_t segment = 0;
    while (segment + 1 < maps.size() && geometry.segments[segment + 1].first_slab <= slab) segment++;
    return segment;
  }
  // False as long as the segment is not mapped here, and once it is lost: its memory must not be touched any
  // more, not even its headers.
  bool segment_is_there(uint32_t segment) const {
    return is_mapped(segment) &&
           segment_state(segments[segment].word.load(std::memory_order_acquire)) != SegmentState::kLost;
  }
  // Once true it stays so, also for a segment that is lost afterwards.
  bool is_mapped(uint32_t segment) const {
    return segment < kSegmentLimit && !(unmapped.load(std::memory_order_acquire) >> segment & 1);
  }
  // Where a unit's bytes begin in the address ranges. Units are numbered over all slabs of all segments.
  uint64_t byte_of_unit(uint64_t unit) const { return unit * geometry.unit_bytes; }
  uint64_t extent_of_unit(uint64_t unit) const {
    const uint32_t segment = segment_of_slab(slab_of_unit(unit));
    return extent_word(segment, byte_of_unit(unit) - maps[segment].first_byte);
  }
  // False for an extent that no honest writer could have stored.
  bool extent_is_sane(uint64_t extent, uint64_t size_bytes) const {
    const uint32_t segment = extent_segment(extent);
    if (segment >= maps.size()) return false;
    const uint64_t offset = extent_offset(extent), room = maps[segment].byte_count;
    return offset % geometry.unit_bytes == 0 && offset < room && size_bytes <= room - offset &&
           size_bytes <= geometry.slab_bytes;
  }
  uint64_t byte_of_extent(uint64_t extent) const {
    return maps[extent_segment(extent)].first_byte + extent_offset(extent);
  }
  uint64_t unit_of_extent(uint64_t extent) const { return byte_of_extent(extent) / geometry.unit_bytes; }
  uint8_t* writable_at(uint64_t extent) const { return writable + byte_of_extent(extent); }
  const uint8_t* readable_at(uint64_t extent) const { return readable + byte_of_extent(extent); }
  ExtentHeader* header_of(uint64_t unit, uint64_t chunk_units) const {
    const uint64_t slab = slab_of_unit(unit);
    const uint32_t segment = segment_of_slab(slab);
    const uint64_t row = (slab - geometry.segments[segment].first_slab) * geometry.units_per_slab +
                         unit % geometry.units_per_slab / chunk_units;
    return reinterpret_cast<ExtentHeader*>(maps[segment].headers + geometry.segments[segment].header_offset) +
           row;
  }
};

}  // namespace maru
