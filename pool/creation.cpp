#include "creation.h"

#include <fcntl.h>
#include <sys/mman.h>
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
#include "segment_file.h"
#include "words.h"

namespace maru {

namespace {

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

// Files in which ladders tell about themselves (tiering/told.py).
constexpr const char* kLadderPrefix = "ladder-";

// Segments without a path of their own lie in the pool's folder, whatever the index (or what a dead creator
// left of it) says about them.
void remove_own_files(const std::string& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("segment-", 0) == 0 || name.rfind(kLadderPrefix, 0) == 0) ::unlink(entry.path().c_str());
  }
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
  const std::string index_path = options.folder + "/" + kIndexName;
  const Descriptor creating = lock_for_creation(options.folder, options.index_mode);
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
    bool existed = true;
    OpenSegment segment =
        open_segment(options.folder, spec, options.data_mode, boot_id, &existed, &result.notes);
    if (!existed) undo.paths.push_back(segment.path);
    device_bytes.push_back(segment.device_bytes);
    segments.push_back(std::move(segment));
  }
  const Geometry geometry = plan_geometry(options, device_bytes);

  NewIndex index(options.folder, geometry, options.index_mode);
  undo.paths.push_back(index_path);
  auto* base = index.base();
  auto* super = index.super();
  random_bytes(super->pool_uuid, 16);
  std::memcpy(super->boot_id, boot_id, 16);

  auto* rows = reinterpret_cast<SegmentRow*>(base + geometry.offset_segments);
  for (uint32_t i = 0; i < segments.size(); i++) {
    const OpenSegment& segment = segments[i];
    const SegmentGeometry& place = geometry.segments[i];
    if (!segment.device) size_file(segment, place, options.data_mode);
    MARU_POINT("create.segment_sized");
    SegmentRow& row = rows[i];
    const auto count = static_cast<uint32_t>(options.segments.size());
    write_segment_header(segment, place, {i, count, options.segments[i].medium, options.folder}, geometry,
                         super->pool_uuid, boot_id, row.segment_uuid);
    write_namespace_marks(segment, place);
    index.describe_segment(i, options.segments[i], numa_node_of(segment.path, segment.device));
  }
  for (uint32_t i = 0; i < options.spare_bytes.size(); i++)
    index.describe_spare(static_cast<uint32_t>(segments.size()) + i);
  index.name_default();

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
        if (segment_state(row->word.load()) == SegmentState::kAwaited) continue;
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
  remove_own_files(folder);
  ::unlink(index_path.c_str());
  ::unlink((folder + "/" + kLockName).c_str());
  ::rmdir(folder.c_str());
}

}  // namespace maru
