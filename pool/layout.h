// The byte layout of a pool, format 1: every struct that lies in shared memory, and nothing else.
//
// This is a file format. On the other side of the mapping may be another version of us, or somebody who died
// in the middle of a line: offsets, never pointers; fixed-width integers; one writer named for every field;
// sizes checked at compile time. layout_description.cpp turns these structs into the description that docs,
// the Python reader and the CRC in the superblock share. Changing any of them raises kPoolFormat.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace maru {

inline constexpr uint64_t kIndexMagic = 0x315844495552414dull;    // "MARUIDX1", little-endian.
inline constexpr uint64_t kSegmentMagic = 0x314745535552414dull;  // "MARUSEG1".
inline constexpr uint32_t kPoolFormat = 1;

// Feature bits this version understands. An unknown incompatible bit refuses the pool, an unknown compatible
// one is ignored, so that a fleet can be upgraded one process at a time.
inline constexpr uint64_t kKnownIncompatibleFeatures = 0;

inline constexpr uint32_t kProcessLimitMax = 255;  // A process number is 8 bits; 255 means "nobody".
inline constexpr uint32_t kNobody = 255;
inline constexpr uint32_t kSegmentLimit = 32;
inline constexpr uint32_t kClassLimit = 64;
inline constexpr uint32_t kPartLimit = 16;
inline constexpr uint32_t kBucketSlots = 15;
// A key lives in its home bucket or, when that was full, in one of the next two. With half of all slots taken
// one bucket in a hundred is full; three in a row are not met.
inline constexpr uint32_t kBucketsProbed = 3;
inline constexpr uint32_t kCounterLimit = 64;
inline constexpr uint32_t kReuseBinCount = 64;
inline constexpr uint32_t kHeaderExpires =
    1u << 24;  // Of ExtentHeader::chunk_units: it has a time of its own to go.
inline constexpr char kDefaultTenantName[] = "default";
inline constexpr uint32_t kDefaultTenant = 1;  // Number of whoever owns what has no other owner.
inline constexpr uint64_t kTenantRefused = 1;  // Bit of TenantRow::flags.
inline constexpr uint32_t kPolicyGate = 1;     // Bit of Superblock::eviction_policy.
inline constexpr uint64_t kHugePageBytes = 2ull << 20;

// Bytes of the `lock` file that have a meaning of their own (open-file-description locks).
inline constexpr uint64_t kLockByteCreate = 0;       // Held while a pool is created, attached or destroyed.
inline constexpr uint64_t kLockByteHousekeeper = 1;  // Held by the one process that sweeps.
inline constexpr uint64_t kLockByteSpace = 2;        // Held by the one process that makes space real.
inline constexpr uint64_t kLockByteDevice = 3;       // Held by the one process that registers device memory.
inline constexpr uint64_t kLockByteSender = 4;  // Held by the one process that sends to a far pool what comes
                                                // into this one (src/maru/client/sender.py).
inline constexpr uint64_t kLockByteDemoter = 5;  // Held by the one process that copies chunks below the pool
inline constexpr uint64_t kLockByteAdding = 6;   // Held while a segment is added.
                                                 // (src/maru/tiering/demoter.py).
inline constexpr uint64_t kLockByteProcess = 1024;  // + process number: held as long as its memory lives.

template <class T>
using Atomic = std::atomic<T>;
static_assert(Atomic<uint64_t>::is_always_lock_free && sizeof(Atomic<uint64_t>) == 8);
static_assert(Atomic<uint16_t>::is_always_lock_free && sizeof(Atomic<uint16_t>) == 2);

enum class PoolState : uint64_t { kLive = 1, kDestroyed = 2 };
// kAwaited: its slabs are planned and numbered; the memory is added while the pool lives.
enum class SegmentState : uint64_t { kAbsent = 0, kOnline = 1, kDraining = 2, kLost = 3, kAwaited = 4 };
enum class Medium : uint32_t { kShm = 1, kHugetlb = 2, kFile = 3, kDevdax = 4 };
enum class ChecksumPolicy : uint32_t { kOff = 0, kBoundary = 1, kAlways = 2 };

// First 4 KiB of the index. The first part is written by the creator before the magic and never again.
struct Superblock {
  Atomic<uint64_t> magic;  // Stored last: a creator that died leaves none, and the next one starts afresh.
  uint32_t format;
  uint32_t layout_crc;  // CRC-32 of the layout description: a stranger's compiler cannot fool us.
  uint64_t features_incompatible;
  uint64_t features_compatible;
  uint8_t pool_uuid[16];
  uint8_t boot_id[16];  // Of the boot that created it: shared memory does not outlive the boot.
  uint64_t created_unix_ns;
  uint64_t index_bytes;
  uint64_t unit_bytes;
  uint64_t slab_bytes;
  uint64_t slot_count;
  uint64_t buckets_per_shard;
  uint32_t shard_count;
  uint32_t slab_count;
  uint32_t process_limit;
  uint32_t namespace_limit;
  uint32_t checksum_policy;
  uint32_t medium;
  uint64_t cooling_ns;  // How long an extent that a device may be writing rests after its writer's death.
  uint64_t
      revoked_limit_bytes;  // Per process: what may be taken over from it before rivals must wait instead.
  uint64_t offset_segments;
  uint64_t offset_processes;
  uint64_t offset_counters;
  uint64_t offset_classes;
  uint64_t offset_namespaces;
  uint64_t offset_shards;
  uint64_t offset_buckets;
  uint64_t offset_slots_hot;
  uint64_t offset_slots_cold;
  uint64_t offset_slabs;
  uint64_t offset_owners;
  uint64_t offset_pins;
  uint64_t offset_reuse;
  uint64_t offset_tenants;
  uint32_t tenant_limit;
  uint32_t spare_c;
  uint32_t reuse_entries;    // Of the reuse sample; a power of two.
  uint32_t eviction_policy;  // Bit 0: the gate against loops larger than the pool.
  uint8_t spare_a[224];
  // Words that change, one cache line each so that they do not disturb one another.
  alignas(64) Atomic<uint64_t> state;  // PoolState. Destroyer writes.
  Atomic<uint64_t> pool_epoch;         // Raised when everything in the pool becomes a miss.
  Atomic<uint64_t> recounts_left;   // Of accounts, after a death, until one comes to an end. Cleaners write.
  Atomic<uint64_t> promised_bytes;  // Of all tenants' shares. Whoever sets a share writes, under a lock.
  alignas(64) Atomic<uint64_t> live[4];  // Bit p: process p may hold pins. Set by p, cleared by p's cleaner.
  alignas(64) Atomic<uint64_t> references;  // Chunks asked for since creation: the clock of eviction. A hint.
  Atomic<uint64_t> eviction_epoch;          // Half a pool's worth of references each. A hint.
  Atomic<uint64_t> epoch_start;             // `references` when it began. A hint.
  Atomic<uint64_t> resident;                // Chunks that take room. A hint, recounted after a death.
  Atomic<uint64_t>
      gate;  // chunk units : 32 | epochs : 32 for which chunks of that size stay; 0: open. A hint.
  alignas(64) Atomic<uint64_t> hand;      // Where the eviction hand stands. A hint.
  alignas(64) Atomic<uint64_t> sweep_ns;  // CLOCK_BOOTTIME of the last sweep. Housekeeper writes.
  Atomic<uint64_t> sweep_count;
  Atomic<uint64_t>
      space_refused_ns;         // Last time the medium refused to give space. Whoever was refused writes.
  Atomic<uint64_t> empty_slab;  // Slab number + 1 of one whose chunks are all free. A hint.
  uint8_t spare_b[32];
};

// One data segment. Written by the creator (later: by whoever adds one) before `word` says ONLINE.
struct SegmentRow {
  Atomic<uint64_t> word;  // SegmentState : 8 | generation : 56.
  uint8_t segment_uuid[16];
  uint64_t file_bytes;
  uint64_t header_offset;  // Of the extent headers, in the segment's file.
  uint64_t data_offset;    // Of the first slab, in the segment's file; a multiple of 2 MiB.
  uint32_t first_slab;
  uint32_t slab_count;
  uint32_t medium;
  int32_t numa_node;  // -1: unknown.
  uint64_t page_bytes;
  char path[440];  // A hint for people and for attach; relative to the pool's folder when it has no '/'.
};

// Bits of ProcessRow::flags. A reader holds nothing but pins, so another reader may clean up after it.
inline constexpr uint64_t kProcessReads = 1;

// One attached process. Being alive is not written here: it is the byte lock on kLockByteProcess + number.
// The exception is a row that the daemon holds for another host: it lives until `lease_ns` as well (lease.h).
struct ProcessRow {
  Atomic<uint64_t> epoch;          // Raised at each attach: tells a new owner from the last. Owner writes.
  Atomic<uint32_t> attached;       // 1 from attach to clean-up. Owner sets; cleaner clears, last of all.
  Atomic<uint32_t> pid;            // For people reading `maru stat`; in the process's own PID namespace.
  Atomic<uint64_t> pid_namespace;  // Inode of that namespace. Owner writes.
  Atomic<uint64_t> attached_ns;    // CLOCK_BOOTTIME. Owner writes.
  Atomic<uint64_t> revoked_bytes;  // Bytes of reservations taken over from it. Rivals add; owner subtracts;
                                   // cleaner clears.
  Atomic<uint64_t> flags;          // ProcessFlag bits. Owner writes; cleaner clears.
  char name[48];                   // For people. Owner writes.
  Atomic<uint64_t> key_pin_ns;     // CLOCK_BOOTTIME of its oldest key pin; 0: none. Owner writes.
  Atomic<uint32_t> key_pins;       // Of its pins, those that nobody has an address of. Owner writes.
  uint8_t spare_a[4];
  Atomic<uint64_t> lease_ns;  // CLOCK_BOOTTIME until which the row lives without its byte lock; 0: an
                              // ordinary process. Whoever holds the byte lock writes.
  uint8_t spare_b[8];
};

// Counters of one process number, never reset: the pool's totals are sums over all rows, also of the dead.
struct CounterRow {
  Atomic<uint64_t> value[kCounterLimit];  // Order: enum Counter. Owner adds.
};

// Hints about one chunk size. The truth about a slab's chunk size is its slab word.
struct ClassRow {
  Atomic<uint64_t> chunk_units;
  Atomic<int64_t> free_hint;  // Free chunks in slabs of this class, about.
  Atomic<uint64_t> evictions;
  Atomic<uint32_t> cursor[kSegmentLimit];  // Slab to try first, per segment.
  uint8_t spare[40];
};

// A registered namespace. Row 0 is the default namespace. Rows are never removed.
struct NamespaceRow {
  Atomic<uint64_t> word;  // 0 free, 1 in use; stored last at registration.
  uint8_t digest[16];
  Atomic<uint64_t> epoch;  // Chunks remember the epoch they were stored in; raising it makes them all a miss.
  Atomic<uint64_t> ttl_ns;         // 0: none.
  Atomic<uint32_t> tenant_number;  // Row of the table of tenants. Registrar writes, before the word.
  Atomic<uint32_t> flags;          // NamespaceFlag bits.
  uint8_t spare[16];
  char tenant[64];
};

// Bits of NamespaceRow::flags.
enum NamespaceFlag : uint32_t {
  kNamespaceWiped = 1,      // What leaves is overwritten with zeros before its memory is anybody else's.
  kNamespaceHeld = 2,       // Nothing of it is copied below the pool or to another one.
  kNamespaceSealed = 4,     // Below the pool only where a place encrypts.
  kNamespaceUncached = 8,   // Nothing is stored at all.
  kNamespaceUnshared = 16,  // As held, and told of to nobody who does not map the pool.
};

// Whose namespaces they are, what that is promised and allowed, and what it takes. Row 0 is nobody, row 1
// whoever owns the default namespace. Rows are never removed.
struct alignas(64) TenantRow {
  Atomic<uint64_t> word;  // 0 free, 1 in use; stored last at registration.
  char name[64];
  Atomic<uint64_t> share_bytes;  // Nobody else pushes it below that. 0: none.
  Atomic<uint64_t> limit_bytes;  // It never takes more. 0: none.
  Atomic<uint64_t> flags;        // Bit 0: at its limit what comes in is refused; else its own coldest leaves.
  uint8_t spare_a[32];
  Atomic<uint64_t> used_bytes;    // Of extents on its account: the sum over owner words, kept as they change,
                                  // recounted after a death.
  Atomic<uint64_t> made_way;      // Its chunks that were evicted for others.
  Atomic<uint64_t> made_own_way;  // ... for its own.
  Atomic<uint64_t> refused;       // Stores that its limit, or others' shares, left no room for.
  uint8_t spare_b[32];
};

// Guards key uniqueness in one shard, never structure.
struct alignas(64) ShardRow {
  Atomic<uint64_t> owner;  // 0 free, or process number + 1 : 8 | epoch : 56.
  uint8_t spare[56];
};

// Tags of 15 slots in one cache line. Tags are hints: a stale one costs a look, a missing one costs a miss.
struct alignas(64) Bucket {
  Atomic<uint32_t> tag[kBucketSlots];
  Atomic<uint32_t> overflowed;  // 1: some key whose home is here lives in the next bucket.
};

// What a lookup needs: one cache line.
struct alignas(64) SlotHot {
  Atomic<uint64_t> word;  // state : 4 | flags : 4 | process : 8 | generation : 48 (words.h).
  Atomic<uint64_t> key_lo;
  Atomic<uint64_t> key_hi;
  Atomic<uint64_t> extent;  // segment : 8 | byte offset in the segment's slabs : 56.
  Atomic<uint64_t> size_bytes;
  Atomic<uint32_t> namespace_id;
  Atomic<uint32_t> namespace_epoch;
  Atomic<uint32_t> stamp;     // Eviction epoch of the last hit : 30 | hits : 2. Racy on purpose.
  Atomic<uint32_t> children;  // Resident chunks that continue this one. A hint, recounted after a death.
  Atomic<uint32_t> flags;     // SlotFlag bits. Owner of the reservation writes.
  uint32_t spare;
};

// What only a writer, the evictor and the sweep need.
struct alignas(64) SlotCold {
  Atomic<uint64_t> expiry_ns;      // CLOCK_BOOTTIME; 0 never.
  Atomic<uint64_t> deadline_ns;    // Of the reservation; past it a rival may take the key.
  Atomic<uint64_t> parent;         // slot + 1 : 32 | low 32 bits of its generation : 32; 0 for a root.
  Atomic<uint64_t> parts;          // total : 8 | - : 8 | done mask : 16.
  Atomic<uint64_t> part_owner[2];  // One byte a part: process number + 1 of who writes it.
  Atomic<uint64_t> checksum;       // XXH3-64 of the bytes, when the slot flag says so.
  Atomic<uint64_t> spare;
};

// A slab: equal chunks of one size.
struct SlabRow {
  Atomic<uint64_t> word;        // state : 4 | - : 4 | process : 8 | chunk units : 24 | generation : 24.
  Atomic<uint64_t> real_bytes;  // The medium has really given this many bytes from the slab's start.
  Atomic<int32_t> free_hint;
  Atomic<uint32_t> cursor;  // Chunk to try first. A hint.
  Atomic<uint64_t> spare;
};

// How far apart chunks are asked for again, from a sample of keys. Written by whoever reads or stores; all of
// it is a hint. `reuse_entries` words follow, each sampled key's last reference: tag : 20 | references : 44.
struct ReuseTable {
  Atomic<uint64_t> sampled;                   // References of sampled keys, decayed; in 1/1024.
  Atomic<uint64_t> distance[kReuseBinCount];  // Of these, how many came back after so many epochs.
  uint8_t spare[56];
};

// First 4 KiB of a segment: whose it is, so that no second allocator ever opens the same memory.
struct SegmentHeader {
  Atomic<uint64_t> magic;  // Stored last.
  uint32_t format;
  uint32_t layout_crc;
  uint8_t pool_uuid[16];
  uint8_t segment_uuid[16];
  uint8_t boot_id[16];
  uint64_t file_bytes;
  uint64_t header_offset;
  uint64_t data_offset;
  uint64_t slab_bytes;
  uint64_t unit_bytes;
  uint32_t segment_index;
  uint32_t first_slab;
  uint32_t slab_count;
  uint32_t medium;
  char index_path[1024];  // Folder of the pool this segment belongs to.
  uint32_t namespace_limit;
  uint32_t checksum_policy;
  uint32_t process_limit;
  uint32_t eviction_policy;
  uint64_t cooling_ns;
  uint64_t slot_count;
  uint32_t segment_count;  // Of the whole pool, when this one was made.
  uint8_t spare[2916];
};

// One chunk, described in the segment itself: lets a lost index be rebuilt and another host verify what it
// reads.
struct alignas(64) ExtentHeader {
  uint64_t key_lo;
  uint64_t key_hi;
  uint8_t namespace_digest[16];
  uint32_t generation;       // Low half of the slot's.
  uint32_t namespace_epoch;  // Low half of the epoch it was stored in.
  uint64_t size_bytes;
  uint64_t checksum;        // XXH3-64 of the bytes; 0 when not computed.
  uint32_t chunk_units;     // units : 24 | flags : 8 (kHeaderExpires).
  Atomic<uint32_t> sealed;  // 0, or a check of the 60 bytes before it and the pool's uuid. Sealer writes
                            // last; whoever frees clears.
};

// A namespace, described in the first segment: which epoch counts must be known when the index is lost. The
// rows follow the segment's header, in the order of the index's table.
struct NamespaceMark {
  uint8_t digest[16];
  Atomic<uint64_t> in_use;  // 1. Registrar writes, after the digest and before the index's row.
  Atomic<uint64_t> epoch;   // At least the index's: whoever raises that one raises this one first.
  char tenant[64];
};

static_assert(sizeof(NamespaceMark) == 96);
static_assert(sizeof(Superblock) <= 4096);
static_assert(sizeof(SegmentRow) == 512);
static_assert(sizeof(ProcessRow) == 128);
static_assert(sizeof(CounterRow) == 512);
static_assert(sizeof(ClassRow) == 192);
static_assert(sizeof(NamespaceRow) == 128);
static_assert(sizeof(TenantRow) == 192);
static_assert(sizeof(ShardRow) == 64);
static_assert(sizeof(Bucket) == 64);
static_assert(sizeof(SlotHot) == 64);
static_assert(sizeof(SlotCold) == 64);
static_assert(sizeof(SlabRow) == 32);
static_assert(sizeof(ReuseTable) == 576);
static_assert(sizeof(SegmentHeader) == 4096);
static_assert(sizeof(ExtentHeader) == 64);

}  // namespace maru
