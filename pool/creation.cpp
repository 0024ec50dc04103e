#include "creation.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "clock.h"
#include "crash_point.h"
#include "failure.h"
#include "index_file.h"
#include "layout_description.h"
#include "lock_file.h"
#include "words.h"

namespace maru {

namespace {

std::string reason() { return std::strerror(errno); }

void random_bytes(uint8_t* out, size_t size) {
  if (getrandom(out, size, 0) != static_cast<ssize_t>(size))
    throw Failure("PoolMismatch", "the system gives no random bytes: " + reason());
}

// Removes what a failed creation left, newest first: its files, and then the folder if nothing else is in it.
struct Undo {
  std::string folder;
  std::vector<std::string> paths;
  bool armed = true;
  ~Undo() {
    if (!armed) return;
    for (auto it = paths.rbegin(); it != paths.rend(); ++it) ::unlink(it->c_str());
    ::unlink((folder + "/" + kLockName).c_str());
    ::rmdir(folder.c_str());
  }
};

struct OpenSegment {
  std::string path;
  Descriptor fd;
  bool device = false;
  uint64_t device_bytes = 0;
};

// Refuse memory that belongs to another living pool, and files that are not ours at all.
void refuse_strangers(const OpenSegment& segment, const struct stat& st, const std::string& folder,
                      const uint8_t boot_id[16], CreateResult& result) {
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
    result.notes.push_back(segment.path + " belonged to the pool " + other +
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

void write_segment_header(const OpenSegment& segment, const SegmentGeometry& place, uint32_t number,
                          const Geometry& geometry, const CreateOptions& options, const uint8_t pool_uuid[16],
                          const uint8_t boot_id[16], uint8_t segment_uuid[16]) {
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
  header->segment_index = number;
  header->first_slab = place.first_slab;
  header->slab_count = place.slab_count;
  header->medium = static_cast<uint32_t>(options.segments[number].medium);
  header->namespace_limit = geometry.namespace_limit;
  header->checksum_policy = static_cast<uint32_t>(geometry.checksum);
  header->process_limit = geometry.process_limit;
  header->eviction_policy = geometry.gate ? kPolicyGate : 0;
  header->cooling_ns = geometry.cooling_ns;
  header->slot_count = geometry.slot_count;
  header->segment_count = static_cast<uint32_t>(options.segments.size());
  std::memset(header->index_path, 0, sizeof header->index_path);
  std::memcpy(header->index_path, options.folder.data(),
              std::min(options.folder.size(), sizeof header->index_path - 1));
  MARU_POINT("create.segment_header_before_magic");
  header->magic.store(kSegmentMagic);
  munmap(map, map_bytes);
}

// After the header: only then does a dead creator's file say whose it is, however much of it is real.
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

// Remove a file, or disown a device, if it says that it belongs to this pool: the path came out of shared
// memory.
void remove_segment(const std::string& path, const uint8_t pool_uuid[16]) {
  Descriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat st{};
  if (!fd || fstat(fd.get(), &st) != 0) return;
  if (!is_device(st) && st.st_size < static_cast<off_t>(sizeof(SegmentHeader))) return;
  const size_t map_bytes = header_map_bytes(st);
  void* map = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) return;
  auto* header = static_cast<SegmentHeader*>(map);
  if (header->magic.load() == kSegmentMagic && std::memcmp(header->pool_uuid, pool_uuid, 16) == 0) {
    if (is_device(st))
      header->magic.store(0);
    else
      ::unlink(path.c_str());
  }
  munmap(map, map_bytes);
}

// Segments without a path of their own lie in the pool's folder, whatever the index (or what a dead creator
// left of it) says about them.
void remove_own_segments(const std::string& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored))
    if (entry.path().filename().string().rfind("segment-", 0) == 0) ::unlink(entry.path().c_str());
}

}  // namespace

void read_boot_id(uint8_t out[16]) {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string text;
  in >> text;
  std::memset(out, 0, 16);
  size_t nibble = 0;
  for (const char c : text) {
    if (!std::isxdigit(static_cast<unsigned char>(c)) || nibble >= 32) continue;
    const int value = c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
    out[nibble / 2] |= static_cast<uint8_t>(nibble % 2 ? value : value << 4);
    nibble++;
  }
}

CreateResult create_pool(const CreateOptions& options) {
  CreateResult result;
  const uint32_t mode = options.group_access ? 0660 : 0600;
  const std::string index_path = options.folder + "/" + kIndexName;
  const Descriptor creating = lock_for_creation(options.folder, mode);
  MARU_POINT("create.locked");

  uint8_t boot_id[16];
  read_boot_id(boot_id);
  auto old = std::make_unique<Superblock>();
  // A pool whose destroyer died half-way is no pool any more.
  if (index_is_complete(index_path, old.get()) &&
      old->state.load() == static_cast<uint64_t>(PoolState::kLive)) {
    if (std::memcmp(old->boot_id, boot_id, 16) == 0)
      throw Failure("PoolExists", "a pool already exists at " + options.folder, {{"path", options.folder}});
    result.notes.push_back("the pool at " + options.folder +
                           " was made before this boot; its content is lost: re-initialised");
  }

  // Open every segment first, so that nothing is written when one of them cannot be had.
  std::vector<OpenSegment> segments;
  std::vector<uint64_t> device_bytes;
  Undo undo{options.folder, {}};
  for (const SegmentSpec& spec : options.segments) {
    OpenSegment segment;
    segment.path = segment_path(options.folder, spec.path);
    const bool existed = ::access(segment.path.c_str(), F_OK) == 0;
    segment.fd = Descriptor(::open(segment.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT, mode));
    if (!segment.fd) {
      if (errno == ENOSPC) no_space(options.folder, 0);
      throw Failure("PoolMismatch", "cannot open the segment " + segment.path + ": " + reason(),
                    {{"path", segment.path}});
    }
    if (!existed) undo.paths.push_back(segment.path);
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
    refuse_strangers(segment, st, options.folder, boot_id, result);
    device_bytes.push_back(segment.device_bytes);
    segments.push_back(std::move(segment));
  }
  const Geometry geometry = plan_geometry(options, device_bytes);

  NewIndex index(options.folder, geometry, mode);
  undo.paths.push_back(index_path);
  auto* base = index.base();
  auto* super = index.super();
  random_bytes(super->pool_uuid, 16);
  std::memcpy(super->boot_id, boot_id, 16);

  auto* rows = reinterpret_cast<SegmentRow*>(base + geometry.offset_segments);
  for (uint32_t i = 0; i < segments.size(); i++) {
    const OpenSegment& segment = segments[i];
    const SegmentGeometry& place = geometry.segments[i];
    if (!segment.device) {
      if (ftruncate(segment.fd.get(), 0) != 0 ||
          ftruncate(segment.fd.get(), static_cast<off_t>(place.file_bytes)) != 0 ||
          posix_fallocate(segment.fd.get(), 0, sizeof(SegmentHeader)) != 0)
        no_space(segment.path, place.file_bytes);
      (void)::fchmod(segment.fd.get(), mode);
    }
    MARU_POINT("create.segment_sized");
    SegmentRow& row = rows[i];
    write_segment_header(segment, place, i, geometry, options, super->pool_uuid, boot_id, row.segment_uuid);
    write_namespace_marks(segment, place);
    index.describe_segment(i, options.segments[i], numa_node_of(segment.path, segment.device));
  }
  reinterpret_cast<NamespaceRow*>(base + geometry.offset_namespaces)->word.store(1);  // Row 0: the default.

  index.publish(options.segments[0].medium);
  undo.armed = false;
  return result;
}

std::vector<std::string> attached_processes(const std::string& folder) {
  std::vector<std::string> out;
  auto super = std::make_unique<Superblock>();
  Geometry geometry;
  const std::string index_path = folder + "/" + kIndexName;
  const LockFile lock_file(folder + "/" + kLockName, false, 0);
  const bool readable = index_is_complete(index_path, super.get()) &&
                        geometry_problem(*super, super->index_bytes, &geometry).empty();
  Descriptor fd(::open(index_path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  for (uint32_t p = 0; p < kProcessLimitMax; p++) {
    if (!lock_file.is_held(kLockByteProcess + p)) continue;
    auto row = std::make_unique<ProcessRow>();
    const auto at = static_cast<off_t>(geometry.offset_processes + p * sizeof(ProcessRow));
    if (readable && p < geometry.process_limit &&
        pread(fd.get(), static_cast<void*>(row.get()), sizeof(ProcessRow), at) == sizeof(ProcessRow))
      out.push_back(std::to_string(row->pid.load()) + " (" +
                    std::string(row->name, strnlen(row->name, sizeof row->name)) + ")");
    else
      out.push_back("process number " + std::to_string(p));
  }
  return out;
}

void set_segment_state(const std::string& folder, uint32_t number, SegmentState state) {
  const std::string path = folder + "/" + kIndexName;
  auto super = std::make_unique<Superblock>();
  Geometry geometry;
  if (!index_is_complete(path, super.get()))
    throw Failure("PoolNotFound", "no pool at " + folder, {{"path", folder}});
  Descriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd || super->format != kPoolFormat || super->layout_crc != layout_crc() ||
      !geometry_problem(*super, super->index_bytes, &geometry).empty())
    throw Failure("PoolMismatch", path + ": not an index that this version can change", {{"path", path}});
  const size_t map_bytes = round_up(sizeof(SegmentRow) * kSegmentLimit, 4096);
  void* map = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(),
                   static_cast<off_t>(geometry.offset_segments));
  if (map == MAP_FAILED)
    throw Failure("PoolMismatch", "cannot map " + path + ": " + reason(), {{"path", path}});
  Atomic<uint64_t>& word = static_cast<SegmentRow*>(map)[std::min(number, kSegmentLimit - 1)].word;
  uint64_t seen = word.load();
  bool done = false;
  while (!done) {
    const SegmentState now = segment_state(seen);
    if (number >= kSegmentLimit || now == SegmentState::kAbsent || now == SegmentState::kLost) break;
    done = word.compare_exchange_strong(seen, segment_word(state, segment_generation(seen) + 1));
  }
  munmap(map, map_bytes);
  if (!done)
    throw Failure("PoolMismatch",
                  folder + " has no segment " + std::to_string(number) + ", or it is lost already",
                  {{"path", folder}});
}

void destroy_pool(const std::string& folder, bool force) {
  const LockFile lock_file(folder + "/" + kLockName, false, 0);
  Descriptor creating = lock_file.lock(kLockByteCreate, now_ns() + kAttachDeadlineNs);
  if (!creating && !force)
    throw Failure("PoolBusy", "somebody has been creating or attaching " + folder + " for more than 5 s",
                  {{"path", folder}});
  const std::vector<std::string> living = attached_processes(folder);
  if (!living.empty() && !force) {
    std::string names;
    for (const std::string& name : living) names += (names.empty() ? "" : ", ") + name;
    throw Failure("PoolBusy", "in use by " + std::to_string(living.size()) + " process(es): " + names,
                  {{"path", folder}, {"processes", names}});
  }
  const std::string index_path = folder + "/" + kIndexName;
  auto super = std::make_unique<Superblock>();
  std::vector<std::string> segment_files;
  if (index_is_complete(index_path, super.get())) {
    Descriptor fd(::open(index_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    Geometry geometry;
    if (fd && super->format == kPoolFormat &&
        geometry_problem(*super, super->index_bytes, &geometry).empty()) {
      for (uint32_t i = 0; i < kSegmentLimit; i++) {
        auto row = std::make_unique<SegmentRow>();
        const auto at = static_cast<off_t>(geometry.offset_segments + i * sizeof(SegmentRow));
        if (pread(fd.get(), static_cast<void*>(row.get()), sizeof(SegmentRow), at) != sizeof(SegmentRow))
          break;
        if (segment_state(row->word.load()) == SegmentState::kAbsent) break;
        segment_files.push_back(
            segment_path(folder, std::string(row->path, strnlen(row->path, sizeof row->path))));
      }
      const uint64_t gone = static_cast<uint64_t>(PoolState::kDestroyed);
      (void)!pwrite(fd.get(), &gone, sizeof gone, offsetof(Superblock, state));
    }
  }
  // Whoever is stopped here for long may find another pool in this place when it wakes: `force` goes past a
  // lock that is held for too long. Segments name their pool; everything else is ours while the lock file is.
  MARU_POINT("destroy.marked");
  for (const std::string& path : segment_files) {
    remove_segment(path, super->pool_uuid);
    MARU_POINT("destroy.segment_gone");
  }
  if (!lock_file.is_current()) return;
  remove_own_segments(folder);
  ::unlink(index_path.c_str());
  ::unlink((folder + "/" + kLockName).c_str());
  ::rmdir(folder.c_str());
}

}  // namespace maru
