#include "rebuild.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "allocator.h"
#include "attach.h"
#include "chunk_index.h"
#include "clock.h"
#include "crash_point.h"
#include "departure.h"
#include "eviction.h"
#include "failure.h"
#include "index_file.h"
#include "layout_description.h"
#include "lock_file.h"
#include "reservation.h"
#include "shares.h"
#include "xxh3.h"

namespace maru {

namespace {

[[noreturn]] void mismatch(const std::string& path, const std::string& what) {
  throw Failure("PoolMismatch", path + ": " + what, {{"path", path}});
}

// One segment's file, mapped for reading. Tables of headers are read instead where that can be done: in a
// file on tmpfs a hole that is looked at through a mapping costs a page, and a full medium has none to give.
struct Scanned {
  std::string path;
  std::unique_ptr<SegmentHeader> header = std::make_unique<SegmentHeader>();
  Descriptor fd;
  bool device = false;
  const uint8_t* base = nullptr;
  uint64_t bytes = 0;

  Scanned() = default;
  Scanned(const Scanned&) = delete;
  Scanned& operator=(const Scanned&) = delete;
  ~Scanned() {
    if (base) munmap(const_cast<uint8_t*>(base), bytes);
  }
};

void scan(Scanned& segment, const std::string& folder) {
  segment.fd = Descriptor(::open(segment.path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!segment.fd)
    mismatch(segment.path, std::string("cannot open this segment: ") + std::strerror(errno) +
                               "; name the paths that the pool was created with");
  struct stat st{};
  fstat(segment.fd.get(), &st);
  segment.device = is_device(st);
  segment.bytes = segment.device ? device_size(st, segment.path) : static_cast<uint64_t>(st.st_size);
  if (segment.bytes < sizeof(SegmentHeader)) mismatch(segment.path, "too short for a segment of a Maru pool");
  void* map = mmap(nullptr, segment.bytes, PROT_READ, MAP_SHARED, segment.fd.get(), 0);
  if (map == MAP_FAILED) mismatch(segment.path, std::string("cannot map: ") + std::strerror(errno));
  segment.base = static_cast<const uint8_t*>(map);
  std::memcpy(static_cast<void*>(segment.header.get()), map, sizeof(SegmentHeader));
  const SegmentHeader& header = *segment.header;
  uint8_t boot_id[16];
  read_boot_id(boot_id);
  if (header.magic.load() != kSegmentMagic) mismatch(segment.path, "this is not a segment of a Maru pool");
  if (header.format != kPoolFormat || header.layout_crc != layout_crc())
    mismatch(segment.path, "laid out by another version; use that one");
  if (std::memcmp(header.boot_id, boot_id, sizeof boot_id) != 0)
    mismatch(segment.path, "written before this boot: its content is lost; create the pool anew");
  const std::string home(header.index_path, strnlen(header.index_path, sizeof header.index_path));
  if (home != folder) mismatch(segment.path, "a segment of the pool at " + home + "; rebuild it there");
}

std::string refuse_disagreement(const Scanned& one, const Scanned& first, uint32_t number) {
  const SegmentHeader &a = *one.header, &b = *first.header;
  if (std::memcmp(a.pool_uuid, b.pool_uuid, sizeof a.pool_uuid) != 0) return "a segment of an earlier pool";
  if (a.segment_index != number)
    return "segment number " + std::to_string(a.segment_index) + ", named as number " +
           std::to_string(number);
  if (a.slab_bytes != b.slab_bytes || a.unit_bytes != b.unit_bytes || a.namespace_limit != b.namespace_limit)
    return "its header and the first segment's disagree";
  return "";
}

// What one slab's table of headers says. Rows that are valid and of one chunk size; an honest table has no
// others.
struct SlabScan {
  std::vector<std::pair<uint64_t, const ExtentHeader*>> rows;  // (row, header)
  uint64_t units = 0;
};

SlabScan scan_slab(const Pool& pool, const ExtentHeader* table, Recovered& out) {
  const uint64_t count = pool.geometry.units_per_slab;
  SlabScan found;
  std::map<uint64_t, uint64_t> sizes;
  for (uint64_t row = 0; row < count; row++) {
    const ExtentHeader& header = table[row];
    const uint32_t mark = header.sealed.load(std::memory_order_relaxed);
    if (mark == 0) continue;
    const uint64_t units = header.chunk_units & 0xffffff;
    if (mark != header_mark(pool, header) || units == 0 || (row + 1) * units > count ||
        pool.units_for(header.size_bytes) != units) {
      out.left_out["a header that does not verify"]++;
      continue;
    }
    found.rows.emplace_back(row, &header);
    sizes[units]++;
  }
  for (const auto& [units, rows] : sizes)
    if (found.units == 0 || rows > sizes[found.units]) found.units = units;
  return found;
}

// Number of the namespace that a header speaks of, if what is stored in it still counts; else UINT32_MAX.
uint32_t namespace_of(const Pool& pool, const std::map<std::string, uint32_t>& numbers,
                      const ExtentHeader& header) {
  const auto found = numbers.find(std::string(reinterpret_cast<const char*>(header.namespace_digest), 16));
  if (found == numbers.end()) return UINT32_MAX;
  const uint64_t epoch = pool.namespaces[found->second].epoch.load(std::memory_order_relaxed);
  return static_cast<uint32_t>(epoch) == header.namespace_epoch ? found->second : UINT32_MAX;
}

uint64_t free_slot_for(const Pool& pool, Key key) {
  uint64_t bucket = home_bucket(pool, key);
  for (uint32_t n = 0; n < kBucketsProbed; n++) {
    for (uint64_t i = bucket * kBucketSlots; i < (bucket + 1) * kBucketSlots; i++)
      if (pool.hot[i].word.load(std::memory_order_relaxed) == 0) return i;
    pool.buckets[bucket].overflowed.store(1, std::memory_order_relaxed);
    bucket = next_bucket(pool, bucket);
  }
  return UINT64_MAX;
}

void bind(Pool& pool, uint64_t i, const ExtentHeader& header, uint64_t unit, uint32_t namespace_id) {
  SlotHot& slot = pool.hot[i];
  const Key key{header.key_lo, header.key_hi};
  slot.key_lo.store(key.lo);
  slot.key_hi.store(key.hi);
  slot.extent.store(pool.extent_of_unit(unit));
  slot.size_bytes.store(header.size_bytes);
  slot.namespace_id.store(namespace_id);
  slot.namespace_epoch.store(header.namespace_epoch);
  slot.flags.store(header.checksum ? uint32_t{kSlotChecksummed} : 0);
  pool.cold[i].checksum.store(header.checksum);
  pool.cold[i].parts.store(parts_word(1));
  pool.owners[unit].store(owner_slot_word(i, false, tenant_of(pool, namespace_id), false));
  pool.buckets[i / kBucketSlots].tag[i % kBucketSlots].store(tag_of(key));
  slot.word.store(slot_word(SlotState::kSealed, kNobody, header.generation));
}

// The table of headers of a segment's slab number `local`; in `buffer` if it had to be read.
const ExtentHeader* table_of(const Scanned& segment, uint64_t local, uint64_t rows, ExtentHeader* buffer) {
  const uint64_t bytes = rows * sizeof(ExtentHeader), from = segment.header->header_offset + local * bytes;
  if (segment.device) return reinterpret_cast<const ExtentHeader*>(segment.base + from);
  if (pread(segment.fd.get(), static_cast<void*>(buffer), bytes, static_cast<off_t>(from)) !=
      static_cast<ssize_t>(bytes))
    mismatch(segment.path, "cannot read the extent headers of slab " + std::to_string(local));
  return buffer;
}

void recover_slab(Pool& pool, const Scanned& segment, uint64_t slab,
                  const std::map<std::string, uint32_t>& numbers, ExtentHeader* buffer, Recovered& out) {
  const Geometry& g = pool.geometry;
  const uint64_t local = slab - segment.header->first_slab;
  const auto* table = table_of(segment, local, g.units_per_slab, buffer);
  const uint8_t* data = segment.base + segment.header->data_offset + local * g.slab_bytes;
  const SlabScan found = scan_slab(pool, table, out);
  uint64_t end_bytes = 0, taken = 0;
  for (const auto& [row, header] : found.rows) {
    if ((header->chunk_units & 0xffffff) != found.units) {
      out.left_out["a header of another chunk size than its slab's"]++;
      continue;
    }
    const uint32_t namespace_id = namespace_of(pool, numbers, *header);
    const Key key{header->key_lo, header->key_hi};
    const uint64_t first_byte = row * found.units * g.unit_bytes;
    const char* why = nullptr;
    if (header->chunk_units & kHeaderExpires)
      why = "expires at a time that is lost";
    else if (namespace_id == UINT32_MAX)
      why = "invalidated, or of an unknown namespace";
    else if (is_sealed(pool, key))
      why = "a second chunk of the same key";
    else if (header->checksum != 0 && xxh3_64(data + first_byte, header->size_bytes) != header->checksum)
      why = "bytes that do not match their checksum";
    const uint64_t i = why ? UINT64_MAX : free_slot_for(pool, key);
    if (!why && i == UINT64_MAX) why = "no room in the index";
    if (why) {
      out.left_out[why]++;
      continue;
    }
    bind(pool, i, *header, slab * g.units_per_slab + row * found.units, namespace_id);
    end_bytes = std::max(end_bytes, first_byte + found.units * g.unit_bytes);
    out.chunks++;
    out.bytes += header->size_bytes;
    taken++;
  }
  if (taken == 0) return;
  pool.slabs[slab].word.store(slab_word(SlabState::kActive, kNobody, found.units, 1));
  if (pool.slabs[slab].real_bytes.load() < end_bytes) pool.slabs[slab].real_bytes.store(end_bytes);
}

std::map<std::string, uint32_t> recover_namespaces(Pool& pool, const Scanned& first) {
  std::map<std::string, uint32_t> numbers;
  const auto* marks = reinterpret_cast<const NamespaceMark*>(first.base + sizeof(SegmentHeader));
  for (uint32_t id = 0; id < pool.geometry.namespace_limit; id++) {
    if (marks[id].in_use.load() != 1) continue;
    NamespaceRow& row = pool.namespaces[id];
    std::memcpy(row.digest, marks[id].digest, sizeof row.digest);
    row.epoch.store(marks[id].epoch.load());
    const std::string tenant(marks[id].tenant, strnlen(marks[id].tenant, sizeof marks[id].tenant - 1));
    std::memcpy(row.tenant, tenant.data(), tenant.size());
    const uint32_t number = register_tenant(pool, tenant);
    row.tenant_number.store(number ? number : kDefaultTenant);
    row.word.store(1);
    numbers.emplace(std::string(reinterpret_cast<const char*>(row.digest), 16), id);
  }
  return numbers;
}

void refuse_living(const CreateOptions& options) {
  auto old = std::make_unique<Superblock>();
  const std::string path = options.folder + "/" + kIndexName;
  if (index_is_complete(path, old.get()) && old->state.load() == static_cast<uint64_t>(PoolState::kLive))
    throw Failure(
        "PoolExists",
        "the pool at " + options.folder + " has an index; if it cannot be used, move " + path + " away first",
        {{"path", options.folder}});
  const LockFile lock_file(options.folder + "/" + kLockName, false, 0);
  for (uint32_t p = 0; p < kProcessLimitMax; p++)
    if (lock_file.is_held(kLockByteProcess + p))
      throw Failure("PoolBusy",
                    "a process still has the lost index of " + options.folder + " mapped (process number " +
                        std::to_string(p) + "); stop it first",
                    {{"path", options.folder}});
}

}  // namespace

Recovered rebuild_pool(CreateOptions options) {
  const Descriptor creating = lock_for_creation(options.folder, options.index_mode);
  refuse_living(options);
  std::vector<Scanned> segments(options.segments.size());
  std::vector<uint64_t> device_bytes;
  options.size_bytes = 0;
  for (uint32_t n = 0; n < segments.size(); n++) {
    Scanned& segment = segments[n];
    segment.path = segment_path(options.folder, options.segments[n].path);
    scan(segment, options.folder);
    const std::string problem = refuse_disagreement(segment, segments[0], n);
    if (!problem.empty()) mismatch(segment.path, problem);
    const auto medium = static_cast<Medium>(segment.header->medium);
    options.segments[n].medium = medium;
    if (n < segments[0].header->segment_count)
      device_bytes.push_back(medium == Medium::kDevdax ? segment.bytes : 0);
    if (n >= segments[0].header->segment_count)  // Added later: its size is its own.
      options.spare_bytes.push_back(segment.header->slab_count * segment.header->slab_bytes);
    else if (medium != Medium::kDevdax)
      options.size_bytes += segment.header->slab_count * segment.header->slab_bytes;
  }
  const SegmentHeader& first = *segments[0].header;
  options.unit_bytes = first.unit_bytes;
  options.slab_bytes = first.slab_bytes;
  options.slot_count = first.slot_count;
  options.process_limit = first.process_limit;
  options.namespace_limit = first.namespace_limit;
  options.checksum = static_cast<ChecksumPolicy>(std::min<uint32_t>(first.checksum_policy, 2));
  options.cooling_ns = first.cooling_ns;
  options.gate = first.eviction_policy & kPolicyGate;
  if (first.segment_count > segments.size())
    mismatch(segments[0].path, "the first of " + std::to_string(first.segment_count) +
                                   " segments, of which " + std::to_string(segments.size()) +
                                   " were named; name all of them, in their order");
  const std::vector<SegmentSpec> specs = options.segments;
  options.segments.resize(first.segment_count);
  const Geometry geometry = plan_geometry(options, device_bytes);
  options.segments = specs;
  for (uint32_t n = 0; n < segments.size(); n++) {
    const SegmentGeometry& place = geometry.segments[n];
    const SegmentHeader& header = *segments[n].header;
    if (header.first_slab != place.first_slab || header.slab_count != place.slab_count ||
        header.header_offset != place.header_offset || header.data_offset != place.data_offset ||
        segments[n].bytes < place.file_bytes)
      mismatch(segments[n].path,
               "not cut as a pool of these segments would be: it is cut off, or its header was overwritten");
  }

  NewIndex index(options.folder, geometry, options.index_mode);
  MARU_POINT("rebuild.index_made");
  std::memcpy(index.super()->pool_uuid, first.pool_uuid, sizeof first.pool_uuid);
  std::memcpy(index.super()->boot_id, first.boot_id, sizeof first.boot_id);
  auto* rows = reinterpret_cast<SegmentRow*>(index.base() + geometry.offset_segments);
  for (uint32_t n = 0; n < segments.size(); n++) {
    std::memcpy(rows[n].segment_uuid, segments[n].header->segment_uuid, sizeof rows[n].segment_uuid);
    index.describe_segment(n, options.segments[n],
                           numa_node_of(segments[n].path, options.segments[n].medium == Medium::kDevdax));
  }

  Pool pool;  // Bound to the index for as long as it is filled; attached to nothing.
  pool.geometry = geometry;
  pool.index = index.base();
  bind_sections(pool);
  for (const SegmentGeometry& place : geometry.segments) {
    Pool::SegmentMap map;
    map.first_byte = place.first_slab * geometry.slab_bytes;
    map.byte_count = place.slab_count * geometry.slab_bytes;
    pool.maps.push_back(map);
  }
  index.name_default();
  Recovered out;
  const std::map<std::string, uint32_t> numbers = recover_namespaces(pool, segments[0]);
  const auto buffer = std::make_unique<ExtentHeader[]>(geometry.units_per_slab);
  for (const Scanned& segment : segments)
    for (uint64_t s = 0; s < segment.header->slab_count; s++) {
      recover_slab(pool, segment, segment.header->first_slab + s, numbers, buffer.get(), out);
      MARU_POINT("rebuild.slab");
    }
  recount_free_hints(pool);
  recount_children(pool);
  recount_shares(pool);
  pool.index = nullptr;  // Not ours to unmap.
  index.publish(options.segments[0].medium);
  return out;
}

}  // namespace maru
