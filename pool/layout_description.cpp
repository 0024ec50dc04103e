#include "layout_description.h"

#include <array>
#include <initializer_list>

#include "layout.h"
#include "words.h"

namespace maru {

namespace {

struct Field {
  const char* name;
  size_t offset;
  size_t bytes;
};

std::string quoted(const char* text) { return "\"" + std::string(text) + "\""; }

std::string describe(const char* name, size_t bytes, std::initializer_list<Field> fields) {
  std::string out =
      "{\"name\": " + quoted(name) + ", \"bytes\": " + std::to_string(bytes) + ", \"fields\": [";
  const char* separator = "";
  for (const Field& field : fields) {
    out += separator + ("{\"name\": " + quoted(field.name)) +
           ", \"offset\": " + std::to_string(field.offset) + ", \"bytes\": " + std::to_string(field.bytes) +
           "}";
    separator = ", ";
  }
  return out + "]}";
}

#define MARU_F(S, field) \
  Field { #field, offsetof(S, field), sizeof(S::field) }

std::string make_description() {
  std::string out = "{\"format\": " + std::to_string(kPoolFormat) + ", \"structs\": [";
  out += describe("Superblock", sizeof(Superblock),
                  {MARU_F(Superblock, magic),
                   MARU_F(Superblock, format),
                   MARU_F(Superblock, layout_crc),
                   MARU_F(Superblock, features_incompatible),
                   MARU_F(Superblock, features_compatible),
                   MARU_F(Superblock, pool_uuid),
                   MARU_F(Superblock, boot_id),
                   MARU_F(Superblock, created_unix_ns),
                   MARU_F(Superblock, index_bytes),
                   MARU_F(Superblock, unit_bytes),
                   MARU_F(Superblock, slab_bytes),
                   MARU_F(Superblock, slot_count),
                   MARU_F(Superblock, buckets_per_shard),
                   MARU_F(Superblock, shard_count),
                   MARU_F(Superblock, slab_count),
                   MARU_F(Superblock, process_limit),
                   MARU_F(Superblock, namespace_limit),
                   MARU_F(Superblock, checksum_policy),
                   MARU_F(Superblock, medium),
                   MARU_F(Superblock, cooling_ns),
                   MARU_F(Superblock, revoked_limit_bytes),
                   MARU_F(Superblock, offset_segments),
                   MARU_F(Superblock, offset_processes),
                   MARU_F(Superblock, offset_counters),
                   MARU_F(Superblock, offset_classes),
                   MARU_F(Superblock, offset_namespaces),
                   MARU_F(Superblock, offset_shards),
                   MARU_F(Superblock, offset_buckets),
                   MARU_F(Superblock, offset_slots_hot),
                   MARU_F(Superblock, offset_slots_cold),
                   MARU_F(Superblock, offset_slabs),
                   MARU_F(Superblock, offset_owners),
                   MARU_F(Superblock, offset_pins),
                   MARU_F(Superblock, offset_reuse),
                   MARU_F(Superblock, offset_tenants),
                   MARU_F(Superblock, tenant_limit),
                   MARU_F(Superblock, reuse_entries),
                   MARU_F(Superblock, eviction_policy),
                   MARU_F(Superblock, state),
                   MARU_F(Superblock, pool_epoch),
                   MARU_F(Superblock, recounts_left),
                   MARU_F(Superblock, promised_bytes),
                   MARU_F(Superblock, live),
                   MARU_F(Superblock, references),
                   MARU_F(Superblock, eviction_epoch),
                   MARU_F(Superblock, epoch_start),
                   MARU_F(Superblock, resident),
                   MARU_F(Superblock, gate),
                   MARU_F(Superblock, hand),
                   MARU_F(Superblock, sweep_ns),
                   MARU_F(Superblock, sweep_count),
                   MARU_F(Superblock, space_refused_ns),
                   MARU_F(Superblock, empty_slab)});
  out += ", " +
         describe("SegmentRow", sizeof(SegmentRow),
                  {MARU_F(SegmentRow, word), MARU_F(SegmentRow, segment_uuid), MARU_F(SegmentRow, file_bytes),
                   MARU_F(SegmentRow, header_offset), MARU_F(SegmentRow, data_offset),
                   MARU_F(SegmentRow, first_slab), MARU_F(SegmentRow, slab_count), MARU_F(SegmentRow, medium),
                   MARU_F(SegmentRow, numa_node), MARU_F(SegmentRow, page_bytes), MARU_F(SegmentRow, path)});
  out += ", " + describe("ProcessRow", sizeof(ProcessRow),
                         {MARU_F(ProcessRow, epoch), MARU_F(ProcessRow, attached), MARU_F(ProcessRow, pid),
                          MARU_F(ProcessRow, pid_namespace), MARU_F(ProcessRow, attached_ns),
                          MARU_F(ProcessRow, revoked_bytes), MARU_F(ProcessRow, flags),
                          MARU_F(ProcessRow, name), MARU_F(ProcessRow, key_pin_ns),
                          MARU_F(ProcessRow, key_pins), MARU_F(ProcessRow, lease_ns)});
  out += ", " + describe("CounterRow", sizeof(CounterRow), {MARU_F(CounterRow, value)});
  out += ", " + describe("ClassRow", sizeof(ClassRow),
                         {MARU_F(ClassRow, chunk_units), MARU_F(ClassRow, free_hint),
                          MARU_F(ClassRow, evictions), MARU_F(ClassRow, cursor)});
  out +=
      ", " + describe("NamespaceRow", sizeof(NamespaceRow),
                      {MARU_F(NamespaceRow, word), MARU_F(NamespaceRow, digest), MARU_F(NamespaceRow, epoch),
                       MARU_F(NamespaceRow, ttl_ns), MARU_F(NamespaceRow, tenant_number),
                       MARU_F(NamespaceRow, flags), MARU_F(NamespaceRow, tenant)});
  out += ", " +
         describe("TenantRow", sizeof(TenantRow),
                  {MARU_F(TenantRow, word), MARU_F(TenantRow, name), MARU_F(TenantRow, share_bytes),
                   MARU_F(TenantRow, limit_bytes), MARU_F(TenantRow, flags), MARU_F(TenantRow, used_bytes),
                   MARU_F(TenantRow, made_way), MARU_F(TenantRow, made_own_way), MARU_F(TenantRow, refused)});
  out += ", " + describe("ShardRow", sizeof(ShardRow), {MARU_F(ShardRow, owner)});
  out += ", " + describe("Bucket", sizeof(Bucket), {MARU_F(Bucket, tag), MARU_F(Bucket, overflowed)});
  out += ", " + describe("SlotHot", sizeof(SlotHot),
                         {MARU_F(SlotHot, word), MARU_F(SlotHot, key_lo), MARU_F(SlotHot, key_hi),
                          MARU_F(SlotHot, extent), MARU_F(SlotHot, size_bytes), MARU_F(SlotHot, namespace_id),
                          MARU_F(SlotHot, namespace_epoch), MARU_F(SlotHot, stamp), MARU_F(SlotHot, children),
                          MARU_F(SlotHot, flags)});
  out +=
      ", " + describe("SlotCold", sizeof(SlotCold),
                      {MARU_F(SlotCold, expiry_ns), MARU_F(SlotCold, deadline_ns), MARU_F(SlotCold, parent),
                       MARU_F(SlotCold, parts), MARU_F(SlotCold, part_owner), MARU_F(SlotCold, checksum)});
  out += ", " + describe("SlabRow", sizeof(SlabRow),
                         {MARU_F(SlabRow, word), MARU_F(SlabRow, real_bytes), MARU_F(SlabRow, free_hint),
                          MARU_F(SlabRow, cursor)});
  out += ", " + describe("ReuseTable", sizeof(ReuseTable),
                         {MARU_F(ReuseTable, sampled), MARU_F(ReuseTable, distance)});
  out += ", " + describe("SegmentHeader", sizeof(SegmentHeader),
                         {MARU_F(SegmentHeader, magic),           MARU_F(SegmentHeader, format),
                          MARU_F(SegmentHeader, layout_crc),      MARU_F(SegmentHeader, pool_uuid),
                          MARU_F(SegmentHeader, segment_uuid),    MARU_F(SegmentHeader, boot_id),
                          MARU_F(SegmentHeader, file_bytes),      MARU_F(SegmentHeader, header_offset),
                          MARU_F(SegmentHeader, data_offset),     MARU_F(SegmentHeader, slab_bytes),
                          MARU_F(SegmentHeader, unit_bytes),      MARU_F(SegmentHeader, segment_index),
                          MARU_F(SegmentHeader, first_slab),      MARU_F(SegmentHeader, slab_count),
                          MARU_F(SegmentHeader, medium),          MARU_F(SegmentHeader, index_path),
                          MARU_F(SegmentHeader, namespace_limit), MARU_F(SegmentHeader, checksum_policy),
                          MARU_F(SegmentHeader, process_limit),   MARU_F(SegmentHeader, eviction_policy),
                          MARU_F(SegmentHeader, cooling_ns),      MARU_F(SegmentHeader, slot_count),
                          MARU_F(SegmentHeader, segment_count)});
  out += ", " + describe("NamespaceMark", sizeof(NamespaceMark),
                         {MARU_F(NamespaceMark, digest), MARU_F(NamespaceMark, in_use),
                          MARU_F(NamespaceMark, epoch), MARU_F(NamespaceMark, tenant)});
  out += ", " + describe("ExtentHeader", sizeof(ExtentHeader),
                         {MARU_F(ExtentHeader, key_lo), MARU_F(ExtentHeader, key_hi),
                          MARU_F(ExtentHeader, namespace_digest), MARU_F(ExtentHeader, generation),
                          MARU_F(ExtentHeader, namespace_epoch), MARU_F(ExtentHeader, size_bytes),
                          MARU_F(ExtentHeader, checksum), MARU_F(ExtentHeader, chunk_units),
                          MARU_F(ExtentHeader, sealed)});
  out +=
      "], \"words\": {\"slot\": [\"state:4\", \"suspect:1\", \"spare:3\", \"process:8\", \"generation:48\"], "
      "\"slab\": [\"state:4\", \"spare:4\", \"process:8\", \"chunk_units:24\", \"generation:24\"], "
      "\"owner\": [\"value:44\", \"tenant:16\", \"wiped:1\", \"device:1\", \"kind:2\"], \"extent\": "
      "[\"offset:56\", \"segment:8\"], "
      "\"parent\": [\"generation:32\", \"slot_plus_one:32\"], "
      "\"parts\": [\"total:8\", \"spare:8\", \"done:16\", \"spare:32\"], "
      "\"segment\": [\"state:8\", \"generation:56\"], "
      "\"shard\": [\"process_plus_one:8\", \"epoch:56\"]}, ";
  out +=
      "\"slot_states\": [\"FREE\", \"RESERVED\", \"SEALED\", \"EVICTING\", \"REVOKED\", \"RELEASING\", "
      "\"QUARANTINED\"], \"slab_states\": [\"FREE\", \"ACTIVE\", \"DRAINING\"], "
      "\"owner_kinds\": [\"FREE\", \"PROCESS\", \"SLOT\", \"COOLING\"], "
      "\"segment_states\": [\"ABSENT\", \"ONLINE\", \"DRAINING\", \"LOST\", \"AWAITED\"], ";
  out += "\"constants\": {\"index_magic\": " + std::to_string(kIndexMagic) +
         ", \"segment_magic\": " + std::to_string(kSegmentMagic) +
         ", \"bucket_slots\": " + std::to_string(kBucketSlots) +
         ", \"header_expires\": " + std::to_string(kHeaderExpires) +
         ", \"buckets_probed\": " + std::to_string(kBucketsProbed) +
         ", \"class_limit\": " + std::to_string(kClassLimit) +
         ", \"segment_limit\": " + std::to_string(kSegmentLimit) +
         ", \"part_limit\": " + std::to_string(kPartLimit) + ", \"nobody\": " + std::to_string(kNobody) +
         ", \"lock_byte_process\": " + std::to_string(kLockByteProcess) +
         ", \"slot_expires\": " + std::to_string(kSlotExpires) +
         ", \"slot_checksummed\": " + std::to_string(kSlotChecksummed) +
         ", \"slot_brought\": " + std::to_string(kSlotBrought) + "}}";
  return out;
}

}  // namespace

const std::string& layout_description() {
  static const std::string text = make_description();
  return text;
}

uint32_t layout_crc() {
  uint32_t crc = 0xffffffffu;
  for (const char c : layout_description()) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
  }
  return ~crc;
}

}  // namespace maru
