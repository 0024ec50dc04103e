// How many of what, and where: computed once at creation, checked at attach, then carried as plain values.
//
// Nothing after attach reads sizes or offsets from shared memory again, so a pool whose superblock is
// overwritten by a stray store cannot send us outside our mappings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout.h"

namespace maru {

// One data segment asked for at creation. `path` is absolute, or a bare name in the pool's folder.
struct SegmentSpec {
  std::string path;
  Medium medium = Medium::kShm;
};

struct CreateOptions {
  std::string folder;
  std::vector<SegmentSpec> segments;
  std::vector<uint64_t> spare_bytes;  // Of segments that may be added later, in this order.
  uint64_t size_bytes = 0;            // Of all slabs of the segments that are there.
  uint64_t unit_bytes = 0;            // 0: 4 KiB up to 64 GiB, 64 KiB above.
  uint64_t slab_bytes = 0;            // 0: a sixteenth of the pool, 64 KiB to 256 MiB.
  uint64_t expected_chunk_bytes = 0;  // 0: 256 KiB. Sets how many chunks can be indexed.
  uint64_t slot_count = 0;            // 0: 2 x size / expected chunk.
  uint32_t process_limit = 128;
  uint32_t namespace_limit = 1024;
  ChecksumPolicy checksum = ChecksumPolicy::kBoundary;
  uint64_t cooling_ns = 30'000'000'000;
  bool gate = true;  // Refuse to evict what will be wanted sooner than what comes in.
  // Of the segments' files, and of the index and the lock: whoever reads a chunk counts its pin there, so
  // that one is also writable for readers.
  uint32_t data_mode = 0600;
  uint32_t index_mode = 0600;
};

struct SegmentGeometry {
  uint32_t first_slab = 0;
  uint32_t slab_count = 0;
  uint64_t header_offset = 0;
  uint64_t data_offset = 0;
  uint64_t file_bytes = 0;
};

struct Geometry {
  uint64_t unit_bytes = 0;
  uint64_t slab_bytes = 0;
  uint64_t units_per_slab = 0;
  uint64_t unit_count = 0;
  uint64_t slot_count = 0;
  uint64_t buckets_per_shard = 0;
  uint32_t shard_count = 0;
  uint32_t slab_count = 0;
  uint32_t process_limit = 0;
  uint32_t namespace_limit = 0;
  uint32_t tenant_limit = 0;
  ChecksumPolicy checksum = ChecksumPolicy::kBoundary;
  uint64_t cooling_ns = 0;
  uint64_t revoked_limit_bytes = 0;
  uint64_t slot_bytes = 0;  // Of the pool's memory to each place of the index.
  uint32_t reuse_entries = 0;
  bool gate = true;
  uint64_t index_bytes = 0;
  uint64_t offset_segments = 0, offset_processes = 0, offset_counters = 0, offset_classes = 0,
           offset_namespaces = 0, offset_shards = 0, offset_buckets = 0, offset_slots_hot = 0,
           offset_slots_cold = 0, offset_slabs = 0, offset_owners = 0, offset_pins = 0, offset_reuse = 0,
           offset_tenants = 0;
  std::vector<SegmentGeometry> segments;

  uint64_t data_bytes() const { return uint64_t{slab_count} * slab_bytes; }
};

// Raises BadSize when the request cannot be laid out.
Geometry plan_geometry(const CreateOptions& options, const std::vector<uint64_t>& device_bytes);

// Where a segment's extent headers begin: behind its own header and the namespaces' marks.
uint64_t headers_begin(uint32_t namespace_limit);

// How many rows the table of tenants has: a tenant has at least one namespace, and nobody has a row too.
uint32_t tenant_limit_for(uint32_t namespace_limit);

// Place the sections of the index one after the other, each on its own pages.
void place_sections(Geometry& geometry);

// Does what the superblock says add up, for an index file of `file_bytes`? Returns what is wrong, or "".
std::string geometry_problem(const Superblock& super, uint64_t file_bytes, Geometry* out);

constexpr uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }
constexpr bool is_power_of_two(uint64_t value) { return value && !(value & (value - 1)); }

}  // namespace maru
