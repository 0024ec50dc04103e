#include "segment_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "crash_point.h"
#include "creation.h"
#include "failure.h"
#include "index_file.h"
#include "layout_description.h"
#include "words.h"

namespace maru {

namespace {

// Refuse memory that belongs to another living pool, and files that are not ours at all.
void refuse_strangers(const OpenSegment& segment, const struct stat& st, const std::string& folder,
                      const uint8_t boot_id[16], std::vector<std::string>* notes) {
  if (!segment.device && st.st_size == 0) return;
  const size_t map_bytes = header_map_bytes(st);
  if (!segment.device && st.st_size < static_cast<off_t>(sizeof(SegmentHeader)))
    throw Failure(
        "PoolMismatch",
        segment.path + " is not empty and not a segment of a Maru pool; name another file or remove it",
        {{"path", segment.path}});
  void* map = mmap(nullptr, map_bytes, PROT_READ, MAP_SHARED, segment.fd.get(), 0);
  if (map == MAP_FAILED)
    throw Failure("PoolMismatch", "cannot map " + segment.path + ": " + reason(), {{"path", segment.path}});
  const auto* header = static_cast<const SegmentHeader*>(map);
  const bool ours = header->magic.load() == kSegmentMagic;
  // A creator that died between sizing the file and writing the header left zeros and holes: nothing
  // that could be lost.
  const auto* page = static_cast<const uint8_t*>(map);
  const bool blank = std::all_of(page, page + sizeof(SegmentHeader), [](uint8_t byte) { return byte == 0; });
  const bool this_boot = std::memcmp(header->boot_id, boot_id, 16) == 0;
  const std::string other(header->index_path, strnlen(header->index_path, sizeof header->index_path));
  const bool laid_out_by_us = header->layout_crc == layout_crc();
  munmap(map, map_bytes);
  const bool nothing_stored = blank && static_cast<uint64_t>(st.st_blocks) * 512 <= map_bytes;
  if (other == folder && laid_out_by_us) return;  // Left by a creator of this very pool that died.
  if (!ours) {
    if (nothing_stored) return;
    if (segment.device) return;  // A raw device holds anything; it was named, so it may be written.
    throw Failure(
        "PoolMismatch",
        segment.path + " is not empty and not a segment of a Maru pool; name another file or remove it",
        {{"path", segment.path}});
  }
  if (!this_boot) {
    notes->push_back(segment.path + " belonged to the pool " + other +
                     " of an earlier boot, whose content is lost: re-initialised");
    return;
  }
  const bool visible = ::access((other + "/" + kIndexName).c_str(), F_OK) == 0;
  throw Failure("PoolMismatch",
                segment.path + " is a segment of the pool " + other +
                    (visible ? "; attach that one, or destroy it first"
                             : ", whose index is not visible here; mount " + other +
                                   " at the same place (another container's /dev/shm?), or remove the file "
                                   "if that pool is gone"),
                {{"path", segment.path}, {"index_path", other}});
}

}  // namespace

void random_bytes(uint8_t* out, size_t size) {
  if (getrandom(out, size, 0) != static_cast<ssize_t>(size))
    throw Failure("PoolMismatch", "the system gives no random bytes: " + reason());
}

OpenSegment open_segment(const std::string& folder, const SegmentSpec& spec, uint32_t mode,
                         const uint8_t boot_id[16], bool* existed, std::vector<std::string>* notes) {
  OpenSegment segment;
  segment.path = segment_path(folder, spec.path);
  *existed = ::access(segment.path.c_str(), F_OK) == 0;
  segment.fd = Descriptor(::open(segment.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT, mode));
  if (!segment.fd) {
    if (errno == ENOSPC) no_space(folder, 0);
    throw Failure("PoolMismatch", "cannot open the segment " + segment.path + ": " + reason(),
                  {{"path", segment.path}});
  }
  try {
    struct stat st{};
    fstat(segment.fd.get(), &st);
    segment.device = is_device(st);
    if (!segment.device && !S_ISREG(st.st_mode))
      throw Failure("PoolMismatch", segment.path + " is neither a file nor a DAX device",
                    {{"path", segment.path}});
    if (segment.device != (spec.medium == Medium::kDevdax))
      throw Failure("PoolMismatch",
                    segment.path + (segment.device ? " is a device: say medium=devdax"
                                                   : " is not a device: drop medium=devdax"),
                    {{"path", segment.path}});
    segment.device_bytes = segment.device ? device_size(st, segment.path) : 0;
    refuse_strangers(segment, st, folder, boot_id, notes);
  } catch (...) {
    if (!*existed) ::unlink(segment.path.c_str());
    throw;
  }
  return segment;
}

void size_file(const OpenSegment& segment, const SegmentGeometry& place, uint32_t mode) {
  if (ftruncate(segment.fd.get(), 0) != 0 ||
      ftruncate(segment.fd.get(), static_cast<off_t>(place.file_bytes)) != 0 ||
      posix_fallocate(segment.fd.get(), 0, sizeof(SegmentHeader)) != 0)
    no_space(segment.path, place.file_bytes);
  (void)::fchmod(segment.fd.get(), mode);
}

void write_segment_header(const OpenSegment& segment, const SegmentGeometry& place, const SegmentRole& role,
                          const Geometry& geometry, const uint8_t pool_uuid[16], const uint8_t boot_id[16],
                          uint8_t segment_uuid[16]) {
  struct stat st{};
  fstat(segment.fd.get(), &st);
  const size_t map_bytes = header_map_bytes(st);
  void* map = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd.get(), 0);
  if (map == MAP_FAILED)
    throw Failure("PoolMismatch", "cannot map " + segment.path + ": " + reason(), {{"path", segment.path}});
  auto* header = static_cast<SegmentHeader*>(map);
  header->magic.store(0);
  random_bytes(segment_uuid, 16);
  header->format = kPoolFormat;
  header->layout_crc = layout_crc();
  std::memcpy(header->pool_uuid, pool_uuid, 16);
  std::memcpy(header->segment_uuid, segment_uuid, 16);
  std::memcpy(header->boot_id, boot_id, 16);
  header->file_bytes = place.file_bytes;
  header->header_offset = place.header_offset;
  header->data_offset = place.data_offset;
  header->slab_bytes = geometry.slab_bytes;
  header->unit_bytes = geometry.unit_bytes;
  header->segment_index = role.number;
  header->first_slab = place.first_slab;
  header->slab_count = place.slab_count;
  header->medium = static_cast<uint32_t>(role.medium);
  header->namespace_limit = geometry.namespace_limit;
  header->checksum_policy = static_cast<uint32_t>(geometry.checksum);
  header->process_limit = geometry.process_limit;
  header->eviction_policy = geometry.gate ? kPolicyGate : 0;
  header->cooling_ns = geometry.cooling_ns;
  header->slot_count = geometry.slot_count;
  header->segment_count = role.count;
  std::memset(header->index_path, 0, sizeof header->index_path);
  std::memcpy(header->index_path, role.folder.data(),
              std::min(role.folder.size(), sizeof header->index_path - 1));
  MARU_POINT("create.segment_header_before_magic");
  header->magic.store(kSegmentMagic);
  munmap(map, map_bytes);
}

void write_namespace_marks(const OpenSegment& segment, const SegmentGeometry& place) {
  struct stat st{};
  fstat(segment.fd.get(), &st);
  if (!segment.device && posix_fallocate(segment.fd.get(), 0, static_cast<off_t>(place.header_offset)) != 0)
    no_space(segment.path, place.file_bytes);
  const size_t map_bytes = round_up(place.header_offset, header_map_bytes(st));
  void* map = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd.get(), 0);
  if (map == MAP_FAILED)
    throw Failure("PoolMismatch", "cannot map " + segment.path + ": " + reason(), {{"path", segment.path}});
  auto* marks = reinterpret_cast<NamespaceMark*>(static_cast<uint8_t*>(map) + sizeof(SegmentHeader));
  // A device holds anything.
  std::memset(static_cast<void*>(marks), 0, place.header_offset - sizeof(SegmentHeader));
  marks[0].in_use.store(1);
  munmap(map, map_bytes);
}

}  // namespace maru
