#include "segments.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "failure.h"
#include "index_file.h"
#include "layout_description.h"
#include "segment_file.h"

namespace maru {

namespace {

// The index of a pool, mapped as far as the rows and slabs of its segments need; nobody attaches by it.
class OpenIndex {
 public:
  explicit OpenIndex(const std::string& folder) {
    const std::string path = folder + "/" + kIndexName;
    if (!index_is_complete(path, super.get()))
      throw Failure("PoolNotFound", "no pool at " + folder, {{"path", folder}});
    const Descriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    struct stat st{};
    if (!fd || fstat(fd.get(), &st) != 0 || super->format != kPoolFormat ||
        super->layout_crc != layout_crc() ||
        !geometry_problem(*super, static_cast<uint64_t>(st.st_size), &geometry).empty())
      throw Failure("PoolMismatch", path + ": not an index that this version can change", {{"path", path}});
    data_mode = st.st_mode & 0777;
    void* map = mmap(nullptr, geometry.index_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (map == MAP_FAILED)
      throw Failure("PoolMismatch", "cannot map " + path + ": " + reason(), {{"path", path}});
    base = static_cast<uint8_t*>(map);
    const std::string first(rows()[0].path, strnlen(rows()[0].path, sizeof rows()[0].path));
    if (::stat(segment_path(folder, first).c_str(), &st) == 0 && S_ISREG(st.st_mode))
      data_mode = st.st_mode & 0777;
  }
  ~OpenIndex() {
    if (base) munmap(base, geometry.index_bytes);
  }
  OpenIndex(const OpenIndex&) = delete;

  SegmentRow* rows() const { return reinterpret_cast<SegmentRow*>(base + geometry.offset_segments); }
  SlabRow* slabs() const { return reinterpret_cast<SlabRow*>(base + geometry.offset_slabs); }

  std::unique_ptr<Superblock> super = std::make_unique<Superblock>();
  Geometry geometry;
  uint32_t data_mode = 0600;  // As the first segment's, if that is a file.
  uint8_t* base = nullptr;
};

uint32_t first_awaited(const OpenIndex& index, const std::string& folder) {
  for (uint32_t n = 0; n < kSegmentLimit; n++) {
    const SegmentState state = segment_state(index.rows()[n].word.load());
    if (state == SegmentState::kAwaited) return n;
    if (state == SegmentState::kAbsent) break;
  }
  throw Failure(
      "PoolMismatch",
      folder +
          " awaits no segment (any more): how many may be added, and of what size, is said when the pool "
          "is created: spare=SIZE[,SIZE...]",
      {{"path", folder}});
}

// A pool's own file says whose it is, so nothing else would keep it from being emptied and taken once more.
void refuse_own_segments(const OpenIndex& index, const std::string& folder, const OpenSegment& added) {
  struct stat wanted{};
  fstat(added.fd.get(), &wanted);
  for (uint32_t n = 0; n < kSegmentLimit; n++) {
    const SegmentRow& row = index.rows()[n];
    const SegmentState state = segment_state(row.word.load());
    if (state == SegmentState::kAbsent) break;
    if (state == SegmentState::kAwaited) continue;
    struct stat st{};
    const std::string path = segment_path(folder, std::string(row.path, strnlen(row.path, sizeof row.path)));
    if (::stat(path.c_str(), &st) != 0) continue;
    if (is_device(st) ? is_device(wanted) && st.st_rdev == wanted.st_rdev
                      : st.st_dev == wanted.st_dev && st.st_ino == wanted.st_ino)
      throw Failure("PoolMismatch", added.path + " is segment " + std::to_string(n) + " of this pool already",
                    {{"path", added.path}});
  }
}

}  // namespace

void set_segment_state(const std::string& folder, uint32_t number, SegmentState state) {
  const OpenIndex index(folder);
  Atomic<uint64_t>& word = index.rows()[std::min(number, kSegmentLimit - 1)].word;
  uint64_t seen = word.load();
  bool done = false;
  while (!done) {
    const SegmentState now = segment_state(seen);
    if (number >= kSegmentLimit || (now != SegmentState::kOnline && now != SegmentState::kDraining)) break;
    done = word.compare_exchange_strong(seen, segment_word(state, segment_generation(seen) + 1));
  }
  if (!done)
    throw Failure(
        "PoolMismatch",
        folder + " has no segment " + std::to_string(number) + ", or it is lost already or not there yet",
        {{"path", folder}});
}

uint32_t add_segment(const std::string& folder, const SegmentSpec& spec, CreateResult* result) {
  const LockFile lock_file(folder + "/" + kLockName, false, 0);
  const Descriptor adding = lock_file.lock(kLockByteAdding, now_ns() + kAttachDeadlineNs);
  if (!adding)
    throw Failure("PoolBusy", "somebody has been adding a segment to " + folder + " for more than 5 s",
                  {{"path", folder}});
  const OpenIndex index(folder);
  const Geometry& g = index.geometry;
  const uint32_t number = first_awaited(index, folder);
  SegmentRow& row = index.rows()[number];
  SegmentGeometry place{row.first_slab, row.slab_count, row.header_offset, row.data_offset, row.file_bytes};
  if (place.slab_count == 0 || place.first_slab + uint64_t{place.slab_count} > g.slab_count)
    throw Failure("PoolMismatch", folder + ": torn segment table; destroy the pool and create it again",
                  {{"path", folder}});

  uint8_t boot_id[16];
  read_boot_id(boot_id);
  bool existed = true;
  const OpenSegment segment = open_segment(folder, spec, index.data_mode, boot_id, &existed, &result->notes);
  refuse_own_segments(index, folder, segment);
  try {
    if (segment.device) {
      if (segment.device_bytes < place.data_offset + place.slab_count * g.slab_bytes)
        throw Failure("BadSize",
                      segment.path + " has " + std::to_string(segment.device_bytes) +
                          " bytes; this pool awaits " +
                          std::to_string(place.data_offset + place.slab_count * g.slab_bytes),
                      {{"wanted_bytes", static_cast<int64_t>(segment.device_bytes)}});
      place.file_bytes = segment.device_bytes;
    } else {
      size_file(segment, place, index.data_mode);
    }
    MARU_POINT("segment.sized");
    write_segment_header(segment, place, {number, number + 1, spec.medium, folder}, g, index.super->pool_uuid,
                         boot_id, row.segment_uuid);
    write_namespace_marks(segment, place);
    MARU_POINT("segment.header_written");
    describe_row(row, place, spec, numa_node_of(segment.path, segment.device));
  } catch (...) {
    if (!existed) ::unlink(segment.path.c_str());
    throw;
  }
  if (segment.device)  // A device's bytes are all there from the start.
    for (uint32_t s = 0; s < place.slab_count; s++)
      index.slabs()[place.first_slab + s].real_bytes.store(g.slab_bytes);
  MARU_POINT("segment.described");
  row.word.store(segment_word(SegmentState::kOnline, segment_generation(row.word.load()) + 1));
  MARU_POINT("segment.online");
  return number;
}

uint32_t lose_cut_off_segments(Pool& pool) {
  uint32_t lost = 0;
  for (uint32_t s = 0; s < pool.maps.size(); s++) {
    const Pool::SegmentMap& map = pool.maps[s];
    struct stat st{};
    // Devices have no size here. A file that was unlinked or replaced is still whole under its mapping.
    if (map.medium == Medium::kDevdax || !pool.segment_is_there(s) || ::stat(map.path.c_str(), &st) != 0 ||
        st.st_dev != map.device || st.st_ino != map.inode ||
        static_cast<uint64_t>(st.st_size) >= pool.geometry.segments[s].file_bytes)
      continue;
    uint64_t word = pool.segments[s].word.load();
    const uint64_t gone = segment_word(SegmentState::kLost, segment_generation(word) + 1);
    while (segment_state(word) != SegmentState::kLost)
      if (pool.segments[s].word.compare_exchange_strong(word, gone)) lost++;
  }
  return lost;
}

}  // namespace maru
