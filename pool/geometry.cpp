#include "geometry.h"

#include <algorithm>
#include <bit>

#include "failure.h"

namespace maru {

namespace {

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB;
constexpr uint64_t kSmallUnitBytes = 4 * kKiB, kLargeUnitBytes = 64 * kKiB;
constexpr uint64_t kSmallUnitPoolBytes = 64 * kGiB;
constexpr uint64_t kSlabBytesMin = 64 * kKiB, kSlabBytesMax = 256 * kMiB;
constexpr uint64_t kSlabsWanted = 16;  // So that a 256 MiB chunk fits a pool of 4 GiB.
constexpr uint64_t kExpectedChunkBytes = 256 * kKiB;
constexpr uint64_t kSlotCountMin = 1024;
constexpr uint64_t kSlotCountMax = 1ull << 31;  // A slot number must fit 32 bits with one to spare.
constexpr uint64_t kSizeBytesMin = 1 * kMiB;
constexpr uint64_t kSizeBytesMax = 1ull << 46;  // 64 TiB: unit offsets stay far below 56 bits.
constexpr uint64_t kIndexPage = 4096;
constexpr uint64_t kSlabCountMax = 1u << 20;
constexpr uint32_t kTenantRowsMax = 4096;  // Far below what an owner word can name.
constexpr uint64_t kReuseEntriesMin = 8192, kReuseEntriesMax = 65536;

[[noreturn]] void bad_size(const std::string& message, uint64_t wanted_bytes) {
  throw Failure("BadSize", message, {{"wanted_bytes", static_cast<int64_t>(wanted_bytes)}});
}

SegmentGeometry place_segment(uint32_t first_slab, uint32_t slab_count, uint64_t slab_bytes,
                              uint64_t unit_bytes, uint32_t namespace_limit) {
  SegmentGeometry segment;
  segment.first_slab = first_slab;
  segment.slab_count = slab_count;
  segment.header_offset = headers_begin(namespace_limit);
  const uint64_t headers = slab_count * (slab_bytes / unit_bytes) * sizeof(ExtentHeader);
  segment.data_offset = round_up(segment.header_offset + headers, kHugePageBytes);
  segment.file_bytes = round_up(segment.data_offset + slab_count * slab_bytes, kHugePageBytes);
  return segment;
}

}  // namespace

Geometry plan_geometry(const CreateOptions& options, const std::vector<uint64_t>& device_bytes) {
  uint64_t size = options.size_bytes;
  for (uint64_t bytes : device_bytes) size += bytes;
  if (size < kSizeBytesMin) bad_size("a pool needs at least 1 MiB", size);
  if (size > kSizeBytesMax) bad_size("a pool can have at most 64 TiB", size);
  if (options.segments.empty() || options.segments.size() + options.spare_bytes.size() > kSegmentLimit)
    bad_size("a pool has 1 to 32 data segments, spare ones among them", size);

  if (options.process_limit < 1 || options.process_limit > kProcessLimitMax)
    bad_size("process_limit must be 1 to 255", options.process_limit);
  if (options.namespace_limit < 1 || options.namespace_limit > 1u << 20)
    bad_size("namespace_limit must be 1 to 1048576", options.namespace_limit);

  Geometry g;
  g.unit_bytes = options.unit_bytes ? options.unit_bytes
                                    : (size <= kSmallUnitPoolBytes ? kSmallUnitBytes : kLargeUnitBytes);
  if (!is_power_of_two(g.unit_bytes) || g.unit_bytes < 512 || g.unit_bytes > kHugePageBytes)
    bad_size("unit_bytes must be a power of two from 512 B to 2 MiB", g.unit_bytes);
  g.slab_bytes = options.slab_bytes
                     ? options.slab_bytes
                     : std::clamp(std::bit_floor(size / kSlabsWanted), kSlabBytesMin, kSlabBytesMax);
  if (!is_power_of_two(g.slab_bytes) || g.slab_bytes < 4 * g.unit_bytes || g.slab_bytes > 16 * kGiB)
    bad_size("slab_bytes must be a power of two, at least 4 units and at most 16 GiB", g.slab_bytes);
  g.units_per_slab = g.slab_bytes / g.unit_bytes;
  if (g.units_per_slab >= 1u << 24) bad_size("slab_bytes must be below 2^24 units", g.slab_bytes);

  const size_t files = std::count(device_bytes.begin(), device_bytes.end(), 0u);
  for (size_t i = 0; i < options.segments.size(); i++) {
    uint64_t slabs = 0;
    if (device_bytes[i] == 0) {
      slabs = options.size_bytes / files / g.slab_bytes;
      if (slabs == 0)
        bad_size("each segment needs at least one slab of " + std::to_string(g.slab_bytes) + " bytes", size);
    } else {
      slabs = device_bytes[i] / g.slab_bytes;
      while (slabs &&
             place_segment(0, slabs, g.slab_bytes, g.unit_bytes, options.namespace_limit).file_bytes >
                 device_bytes[i])
        slabs--;
      if (slabs == 0) bad_size("the device is smaller than one slab", device_bytes[i]);
    }
    if (g.slab_count + slabs > kSlabCountMax) bad_size("too many slabs; ask for larger slab_bytes", size);
    g.segments.push_back(
        place_segment(g.slab_count, slabs, g.slab_bytes, g.unit_bytes, options.namespace_limit));
    if (device_bytes[i]) g.segments.back().file_bytes = device_bytes[i];
    g.slab_count += slabs;
  }
  for (const uint64_t spare : options.spare_bytes) {
    const uint64_t slabs = spare / g.slab_bytes;
    if (slabs == 0)
      bad_size("each spare segment needs at least one slab of " + std::to_string(g.slab_bytes) + " bytes",
               spare);
    if (spare > kSizeBytesMax || g.slab_count + slabs > kSlabCountMax)
      bad_size("too many slabs; ask for larger slab_bytes", spare);
    g.segments.push_back(
        place_segment(g.slab_count, slabs, g.slab_bytes, g.unit_bytes, options.namespace_limit));
    g.slab_count += slabs;
  }
  g.unit_count = g.slab_count * g.units_per_slab;

  const uint64_t expected = options.expected_chunk_bytes ? options.expected_chunk_bytes : kExpectedChunkBytes;
  const uint64_t slots =
      options.slot_count ? options.slot_count : std::max(kSlotCountMin, 2 * g.data_bytes() / expected);
  if (slots > kSlotCountMax) bad_size("more than 2^31 slots; raise the expected chunk size", slots);
  g.shard_count = static_cast<uint32_t>(std::clamp<uint64_t>(std::bit_floor(slots / 256), 1, 256));
  g.buckets_per_shard = (slots + g.shard_count * kBucketSlots - 1) / (g.shard_count * kBucketSlots);
  g.slot_count = g.buckets_per_shard * g.shard_count * kBucketSlots;

  g.process_limit = options.process_limit;
  g.namespace_limit = options.namespace_limit;
  g.tenant_limit = tenant_limit_for(g.namespace_limit);
  g.checksum = options.checksum;
  g.cooling_ns = options.cooling_ns;
  g.revoked_limit_bytes = g.data_bytes() / 8;
  g.reuse_entries =
      static_cast<uint32_t>(std::clamp(std::bit_floor(g.slot_count / 4), kReuseEntriesMin, kReuseEntriesMax));
  g.gate = options.gate;
  place_sections(g);
  return g;
}

uint64_t headers_begin(uint32_t namespace_limit) {
  return sizeof(SegmentHeader) + round_up(sizeof(NamespaceMark) * namespace_limit, kIndexPage);
}

uint32_t tenant_limit_for(uint32_t namespace_limit) { return std::min(namespace_limit + 1, kTenantRowsMax); }

void place_sections(Geometry& g) {
  uint64_t at = 4096;
  const auto place = [&at](uint64_t& offset, uint64_t bytes) {
    offset = at;
    at = round_up(at + bytes, kIndexPage);
  };
  g.slot_bytes = g.data_bytes() / g.slot_count;
  place(g.offset_segments, sizeof(SegmentRow) * kSegmentLimit);
  place(g.offset_processes, sizeof(ProcessRow) * g.process_limit);
  place(g.offset_counters, sizeof(CounterRow) * g.process_limit);
  place(g.offset_classes, sizeof(ClassRow) * kClassLimit);
  place(g.offset_namespaces, sizeof(NamespaceRow) * g.namespace_limit);
  place(g.offset_shards, sizeof(ShardRow) * (g.shard_count + 1));  // The last one guards the namespace table.
  place(g.offset_buckets, sizeof(Bucket) * g.buckets_per_shard * g.shard_count);
  place(g.offset_slots_hot, sizeof(SlotHot) * g.slot_count);
  place(g.offset_slots_cold, sizeof(SlotCold) * g.slot_count);
  place(g.offset_slabs, sizeof(SlabRow) * g.slab_count);
  place(g.offset_owners, sizeof(uint64_t) * g.unit_count);
  place(g.offset_pins, sizeof(uint16_t) * g.slot_count * g.process_limit);
  place(g.offset_reuse, sizeof(ReuseTable) + sizeof(uint64_t) * g.reuse_entries);
  place(g.offset_tenants, sizeof(TenantRow) * g.tenant_limit);
  g.index_bytes = at;
}

std::string geometry_problem(const Superblock& super, uint64_t file_bytes, Geometry* out) {
  Geometry g;
  g.unit_bytes = super.unit_bytes;
  g.slab_bytes = super.slab_bytes;
  g.slot_count = super.slot_count;
  g.buckets_per_shard = super.buckets_per_shard;
  g.shard_count = super.shard_count;
  g.slab_count = super.slab_count;
  g.process_limit = super.process_limit;
  g.namespace_limit = super.namespace_limit;
  g.tenant_limit = super.tenant_limit;
  g.checksum = static_cast<ChecksumPolicy>(super.checksum_policy);
  g.cooling_ns = super.cooling_ns;
  g.revoked_limit_bytes = super.revoked_limit_bytes;
  g.reuse_entries = super.reuse_entries;
  g.gate = super.eviction_policy & kPolicyGate;
  // Each number is bounded before it is multiplied with another, so that nothing below can overflow.
  if (!is_power_of_two(g.unit_bytes) || g.unit_bytes < 512 || g.unit_bytes > kHugePageBytes)
    return "unit size";
  if (!is_power_of_two(g.slab_bytes) || g.slab_bytes < 4 * g.unit_bytes || g.slab_bytes > 16 * kGiB)
    return "slab size";
  g.units_per_slab = g.slab_bytes / g.unit_bytes;
  if (g.units_per_slab >= 1u << 24) return "slab size";
  if (g.slab_count == 0 || g.slab_count > kSlabCountMax || g.data_bytes() > 2 * kSizeBytesMax)
    return "slab count";
  g.unit_count = g.slab_count * g.units_per_slab;
  if (!is_power_of_two(g.shard_count) || g.shard_count > 256) return "shard count";
  if (g.buckets_per_shard == 0 || g.buckets_per_shard > kSlotCountMax) return "bucket count";
  if (g.slot_count != g.buckets_per_shard * g.shard_count * kBucketSlots ||
      g.slot_count > kSlotCountMax + (1u << 20))
    return "slot count";
  if (g.process_limit < 1 || g.process_limit > kProcessLimitMax) return "process limit";
  if (g.namespace_limit < 1 || g.namespace_limit > 1u << 20) return "namespace limit";
  if (g.tenant_limit != tenant_limit_for(g.namespace_limit)) return "tenant limit";
  if (super.checksum_policy > 2) return "checksum policy";
  if (!is_power_of_two(g.reuse_entries) || g.reuse_entries < kReuseEntriesMin ||
      g.reuse_entries > kReuseEntriesMax)
    return "reuse sample";
  place_sections(g);
  if (super.index_bytes != g.index_bytes || super.offset_segments != g.offset_segments ||
      super.offset_processes != g.offset_processes || super.offset_counters != g.offset_counters ||
      super.offset_classes != g.offset_classes || super.offset_namespaces != g.offset_namespaces ||
      super.offset_shards != g.offset_shards || super.offset_buckets != g.offset_buckets ||
      super.offset_slots_hot != g.offset_slots_hot || super.offset_slots_cold != g.offset_slots_cold ||
      super.offset_slabs != g.offset_slabs || super.offset_owners != g.offset_owners ||
      super.offset_pins != g.offset_pins || super.offset_reuse != g.offset_reuse ||
      super.offset_tenants != g.offset_tenants)
    return "section offsets";
  if (file_bytes < g.index_bytes) return "the index file is truncated";
  *out = std::move(g);
  return "";
}

}  // namespace maru
