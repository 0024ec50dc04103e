#include "attach.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "allocator.h"
#include "creation.h"
#include "eviction.h"
#include "failure.h"
#include "index_file.h"
#include "layout_description.h"
#include "lease.h"
#include "process_table.h"
#include "recut.h"
#include "tally.h"

namespace maru {

namespace {

[[noreturn]] void mismatch(const std::string& path, const std::string& what) {
  throw Failure("PoolMismatch", path + ": " + what, {{"path", path}});
}

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "%08llx", static_cast<unsigned long long>(value));
  return text;
}

// Read the superblock into private memory and refuse what this version cannot serve. Everything is checked
// before anything is mapped.
void refuse_strangers(const std::string& path, const Superblock& super, uint64_t file_bytes,
                      Geometry* geometry) {
  if (super.magic.load() != kIndexMagic)
    mismatch(path, "this is not a Maru index (or its creator died); destroy it and create the pool again");
  if (super.format != kPoolFormat)
    mismatch(path, "pool format " + std::to_string(super.format) + ", this version reads format " +
                       std::to_string(kPoolFormat) + "; use the version that made it, or destroy it");
  if (const uint64_t unknown = super.features_incompatible & ~kKnownIncompatibleFeatures; unknown != 0)
    mismatch(path, "the pool uses features this version does not know (bits " + hex(unknown) +
                       "); upgrade this process");
  if (super.layout_crc != layout_crc())
    mismatch(path, "the pool was laid out by another build (layout " + hex(super.layout_crc) + ", ours " +
                       hex(layout_crc()) + "); use one version everywhere, or destroy the pool");
  uint8_t boot_id[16];
  read_boot_id(boot_id);
  if (std::memcmp(super.boot_id, boot_id, 16) != 0)
    mismatch(
        path,
        "the pool was made before this boot and its content is lost; Pool.open or Pool.create makes it anew");
  if (super.state.load() != static_cast<uint64_t>(PoolState::kLive))
    mismatch(path, "torn superblock: state word; destroy the pool and create it again");
  const std::string problem = geometry_problem(super, file_bytes, geometry);
  if (!problem.empty())
    mismatch(path, "torn superblock: " + problem + "; destroy the pool and create it again");
}

template <class T>
T* section(uint8_t* base, uint64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

// Where a segment lies and what it is.
void read_place(const std::string& folder, const SegmentRow& row, Pool::SegmentMap* out) {
  out->path = segment_path(folder, std::string(row.path, strnlen(row.path, sizeof row.path)));
  out->medium = static_cast<Medium>(row.medium);
}

// Read the segment rows into the geometry, bounded so that slabs lie side by side and nothing overlaps.
void read_segments(Pool& pool) {
  Geometry& g = pool.geometry;
  const std::string path = pool.folder + "/" + kIndexName;
  uint64_t slabs = 0;
  for (uint32_t i = 0; i < kSegmentLimit; i++) {
    const SegmentRow& row = pool.segments[i];
    if (segment_state(row.word.load()) == SegmentState::kAbsent) break;
    SegmentGeometry place{row.first_slab, row.slab_count, row.header_offset, row.data_offset, row.file_bytes};
    const uint64_t header_bytes = uint64_t{place.slab_count} * g.units_per_slab * sizeof(ExtentHeader);
    if (place.first_slab != slabs || place.slab_count == 0 || slabs + place.slab_count > g.slab_count ||
        place.header_offset != headers_begin(g.namespace_limit) || place.data_offset % kHugePageBytes != 0 ||
        place.data_offset < place.header_offset + header_bytes || place.data_offset > 1ull << 50 ||
        place.file_bytes > 1ull << 50 ||
        place.file_bytes < place.data_offset + place.slab_count * g.slab_bytes || row.medium < 1 ||
        row.medium > 4)
      mismatch(path, "torn segment table at segment " + std::to_string(i) +
                         "; destroy the pool and create it again");
    slabs += place.slab_count;
    g.segments.push_back(place);
    Pool::SegmentMap map;
    read_place(pool.folder, row, &map);
    map.first_byte = place.first_slab * g.slab_bytes;
    map.byte_count = place.slab_count * g.slab_bytes;
    pool.maps.push_back(map);
  }
  if (slabs != g.slab_count)
    mismatch(path, "torn segment table: slabs are missing; destroy the pool and create it again");
}

// Reserve one range of addresses, 2 MiB congruent with the files so that huge pages can be used.
uint8_t* reserve_range(size_t bytes) {
  const size_t padded = bytes + kHugePageBytes;
  void* raw = mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED)
    throw Failure("PoolMismatch",
                  "no address space for " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
  const auto start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = round_up(start, kHugePageBytes);
  if (aligned > start) munmap(raw, aligned - start);
  const uintptr_t end = start + padded, wanted_end = aligned + bytes;
  if (end > wanted_end) munmap(reinterpret_cast<void*>(wanted_end), end - wanted_end);
  return reinterpret_cast<uint8_t*>(aligned);
}

// Its own part of the address ranges; the bit in `unmapped` last, after which everybody here reads what is
// set here.
void map_segment(Pool& pool, uint32_t number) {
  Pool::SegmentMap& map = pool.maps[number];
  read_place(pool.folder, pool.segments[number], &map);
  const SegmentGeometry& place = pool.geometry.segments[number];
  const int protection = pool.reads_only ? PROT_READ : PROT_READ | PROT_WRITE;
  Descriptor fd(::open(map.path.c_str(), (pool.reads_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW));
  if (!fd && errno == EACCES && !pool.reads_only && ::access(map.path.c_str(), R_OK) == 0)
    mismatch(map.path, "this user may only read the pool's data; attach with access=read");
  if (!fd)
    mismatch(map.path, std::string("cannot open this segment of the pool: ") + std::strerror(errno) +
                           "; mount it where the pool expects it, or give it up: maru pool segment");
  struct stat st{};
  fstat(fd.get(), &st);
  if (S_ISCHR(st.st_mode) != (map.medium == Medium::kDevdax))
    mismatch(map.path,
             "the index calls this segment another medium than it is; destroy the pool and create it again");
  if (S_ISREG(st.st_mode) && static_cast<uint64_t>(st.st_size) < place.file_bytes)
    mismatch(map.path, "the segment is truncated: " + std::to_string(st.st_size) + " of " +
                           std::to_string(place.file_bytes) +
                           " bytes; give it up (maru pool segment), or destroy the pool");
  map.device = st.st_dev;
  map.inode = st.st_ino;
  void* headers = mmap(nullptr, place.data_offset, protection, MAP_SHARED, fd.get(), 0);
  if (headers == MAP_FAILED) mismatch(map.path, std::string("cannot map: ") + std::strerror(errno));
  if (map.headers) munmap(map.headers, place.data_offset);  // Of an attempt that failed.
  map.headers = static_cast<uint8_t*>(headers);
  madvise(headers, place.data_offset, MADV_DONTFORK);
  madvise(headers, place.data_offset, MADV_DONTDUMP);

  const auto* header = reinterpret_cast<const SegmentHeader*>(map.headers);
  if (header->magic.load() != kSegmentMagic)
    mismatch(map.path, "this is not a Maru segment; destroy the pool and create it again");
  if (std::memcmp(header->pool_uuid, pool.super->pool_uuid, 16) != 0 ||
      std::memcmp(header->segment_uuid, pool.segments[number].segment_uuid, 16) != 0) {
    const std::string other(header->index_path, strnlen(header->index_path, sizeof header->index_path));
    mismatch(map.path, "this segment belongs to another pool (its index: " + other + ")");
  }
  if (header->data_offset != place.data_offset || header->slab_bytes != pool.geometry.slab_bytes ||
      header->unit_bytes != pool.geometry.unit_bytes || header->slab_count != place.slab_count ||
      header->first_slab != place.first_slab)
    mismatch(map.path, "the segment's header and the index disagree; destroy the pool and create it again");

  const auto offset = static_cast<off_t>(place.data_offset);
  uint8_t* rw = pool.writable + map.first_byte;
  uint8_t* ro = pool.readable + map.first_byte;
  // A reader's range for writing stays what it was reserved as: whoever stores there faults.
  if ((!pool.reads_only && mmap(rw, map.byte_count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd.get(),
                                offset) == MAP_FAILED) ||
      mmap(ro, map.byte_count, PROT_READ, MAP_SHARED | MAP_FIXED, fd.get(), offset) == MAP_FAILED)
    mismatch(map.path, std::string("cannot map: ") + std::strerror(errno));
  for (uint8_t* at : {rw, ro}) {
    madvise(at, map.byte_count, MADV_DONTFORK);
    // KV cache is what people wrote. By the kernel's default a pool that was destroyed under its users would
    // be in their core dumps, and with a wider coredump_filter every pool.
    madvise(at, map.byte_count, MADV_DONTDUMP);
    madvise(at, map.byte_count, MADV_HUGEPAGE);  // Counts only where tmpfs was mounted with huge=advise.
  }
  pool.unmapped.fetch_and(~(1u << number), std::memory_order_release);
}

// Touch now what lookups will touch, so that the first one in this process is as fast as the next.
void populate_index(Pool& pool) {
  const Geometry& g = pool.geometry;
  const auto populate = [&](uint64_t from, uint64_t to) {
    madvise(pool.index + from, round_up(to, 4096) - from, MADV_POPULATE_WRITE);
  };
  populate(0, g.offset_pins);
  const uint64_t column = g.slot_count * sizeof(uint16_t);
  const uint64_t mine = (g.offset_pins + pool.me * column) / 4096 * 4096;
  populate(mine, std::min(round_up(mine + column + 4096, 4096), g.index_bytes));
}

bool is_to_be_mapped(const Pool& pool, uint32_t segment) {
  const SegmentState state = segment_state(pool.segments[segment].word.load());
  return state == SegmentState::kOnline || state == SegmentState::kDraining;
}

}  // namespace

void bind_sections(Pool& pool) {
  const Geometry& g = pool.geometry;
  uint8_t* base = pool.index;
  pool.super = reinterpret_cast<Superblock*>(base);
  pool.segments = section<SegmentRow>(base, g.offset_segments);
  pool.processes = section<ProcessRow>(base, g.offset_processes);
  pool.counters = section<CounterRow>(base, g.offset_counters);
  pool.classes = section<ClassRow>(base, g.offset_classes);
  pool.namespaces = section<NamespaceRow>(base, g.offset_namespaces);
  pool.shards = section<ShardRow>(base, g.offset_shards);
  pool.buckets = section<Bucket>(base, g.offset_buckets);
  pool.hot = section<SlotHot>(base, g.offset_slots_hot);
  pool.cold = section<SlotCold>(base, g.offset_slots_cold);
  pool.slabs = section<SlabRow>(base, g.offset_slabs);
  pool.owners = section<Atomic<uint64_t>>(base, g.offset_owners);
  pool.pins = section<Atomic<uint16_t>>(base, g.offset_pins);
  pool.reuse = section<ReuseTable>(base, g.offset_reuse);
  pool.tenants = section<TenantRow>(base, g.offset_tenants);
}

uint32_t map_new_segments(Pool& pool) {
  uint32_t mapped = 0;
  std::lock_guard<std::mutex> guard(pool.mapping);
  if (pool.unmapped.load(std::memory_order_relaxed) << (kSegmentLimit - pool.maps.size()) == 0) return 0;
  for (uint32_t i = 0; i < pool.maps.size(); i++) {
    if (pool.is_mapped(i) || !is_to_be_mapped(pool, i)) continue;
    try {
      map_segment(pool, i);
    } catch (const Failure&) {
      continue;  // Not to be had here (yet): what lies in it stays a miss to us.
    }
    mapped++;
  }
  if (mapped) {
    pool.fresh_slabs_gone.store(false);
    prefer_numa_node(pool, pool.near_node.load());
  }
  return mapped;
}

std::unique_ptr<Pool> attach_pool(const AttachOptions& options) {
  learn_time_namespace();
  const uint64_t deadline = now_ns() + kAttachDeadlineNs;
  const std::string index_path = options.folder + "/" + kIndexName;
  auto pool = std::make_unique<Pool>();
  pool->folder = options.folder;
  pool->copy_threads = options.copy_threads;
  pool->reads_only = options.reads_only;
  pool->lock_file = std::make_unique<LockFile>(options.folder + "/" + kLockName, false, 0);
  Descriptor attaching = pool->lock_file->lock(kLockByteCreate, deadline);
  if (!attaching) {
    if (!pool->lock_file->is_current())
      throw Failure("PoolNotFound", "the pool at " + options.folder + " was just destroyed",
                    {{"path", options.folder}});
    throw Failure("PoolBusy",
                  "somebody has been creating or attaching " + options.folder + " for more than 5 s",
                  {{"path", options.folder}});
  }
  MARU_POINT("attach.locked");
  Descriptor fd(::open(index_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) {
    if (errno == ENOENT)
      throw Failure("PoolNotFound", "no pool at " + options.folder, {{"path", options.folder}});
    mismatch(index_path, std::string("cannot open: ") + std::strerror(errno));
  }
  struct stat st{};
  fstat(fd.get(), &st);
  auto super = std::make_unique<Superblock>();
  const ssize_t got = pread(fd.get(), static_cast<void*>(super.get()), sizeof(Superblock), 0);
  // What a creator that died before the magic left, or a destroyer before the end, is no pool: open() makes
  // it anew.
  if (super->magic.load() == 0 ||
      (got == static_cast<ssize_t>(sizeof(Superblock)) && super->magic.load() == kIndexMagic &&
       super->state.load() == static_cast<uint64_t>(PoolState::kDestroyed)))
    throw Failure("PoolNotFound", "no complete pool at " + options.folder, {{"path", options.folder}});
  if (got != static_cast<ssize_t>(sizeof(Superblock)))
    mismatch(index_path, "the index is truncated (" + std::to_string(st.st_size) +
                             " bytes); destroy it and create the pool again");
  refuse_strangers(index_path, *super, static_cast<uint64_t>(st.st_size), &pool->geometry);

  void* index = mmap(nullptr, pool->geometry.index_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (index == MAP_FAILED) mismatch(index_path, std::string("cannot map: ") + std::strerror(errno));
  pool->index = static_cast<uint8_t*>(index);
  madvise(index, pool->geometry.index_bytes, MADV_DONTFORK);
  madvise(index, pool->geometry.index_bytes, MADV_DONTDUMP);
  bind_sections(*pool);
  read_segments(*pool);
  pool->data_span = pool->geometry.data_bytes();
  pool->writable = reserve_range(pool->data_span);
  pool->readable = reserve_range(pool->data_span);
  pool->unmapped.store(UINT32_MAX);
  for (uint32_t i = 0; i < pool->maps.size(); i++)
    if (is_to_be_mapped(*pool, i)) map_segment(*pool, i);
  if (pool->maps[0].headers)
    pool->namespace_marks = section<NamespaceMark>(pool->maps[0].headers, sizeof(SegmentHeader));
  pool->evictor = std::make_unique<Evictor>();
  pool->slow_recut = std::make_unique<SlowRecut>();
  MARU_POINT("attach.mapped");
  if (options.adopt_row != kNobody) {
    if (!adopt_lease(*pool, options.adopt_row, options.adopt_epoch))
      throw Failure("LeaseEnded",
                    "row " + std::to_string(options.adopt_row) + " of " + options.folder +
                        " is not held for that host any more",
                    {{"path", options.folder}});
    renew_lease(*pool, options.lease_ns);
  } else if (options.lease_ns != 0) {
    claim_lease(*pool, options.process_name, options.lease_ns);
  } else {
    claim_process(*pool, options.process_name);
  }
  attaching = Descriptor();
  populate_index(*pool);
  return pool;
}

Pool::Pool() = default;

Pool::~Pool() {
  if (is_forked.load()) {
    tied_page = nullptr;  // The parent's; it was not inherited.
  } else {
    if (me != kNobody) leave_process(*this);
    LockFile::untie(tied_page);
    for (const SegmentMap& map : maps)
      if (map.headers) munmap(map.headers, geometry.segments[&map - maps.data()].data_offset);
    if (index) munmap(index, geometry.index_bytes);
  }
  // In a child these are the fences; they go with the last view.
  if (writable) munmap(writable, data_span);
  if (readable) munmap(readable, data_span);
}

void Pool::forked() noexcept {
  is_forked.store(true);
  fence_addresses(writable, data_span);
  fence_addresses(readable, data_span);
}

}  // namespace maru
