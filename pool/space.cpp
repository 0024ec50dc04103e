#include "space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <string>
#include <string_view>

namespace maru {

namespace {

// tmpfs charges a container's memory limit page by page, and over the limit the kernel kills instead of
// refusing: stop well before it.
constexpr uint64_t kHeadroomKeptBytes = 64ull << 20;

// A medium that refused is not asked again for a while: asking costs system calls on somebody's store path.
constexpr uint64_t kAskAgainNs = kSecond;

// What a small file says, as far as `room` goes. Into memory of the caller's stack: the housekeeper asks
// again and again, and a process that forks meanwhile had better not find an allocator's lock held.
std::string_view read_text(const std::string& path, char* text, size_t room) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  size_t length = 0;
  while (fd && length < room) {
    const ssize_t got = ::read(fd.get(), text + length, room - length);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    length += static_cast<size_t>(got);
  }
  return {text, length};
}

bool read_number(const std::string& path, uint64_t* out) {
  std::array<char, 32> room;
  const std::string_view text = read_text(path, room.data(), room.size());
  return std::from_chars(text.data(), text.data() + text.size(), *out).ec == std::errc();
}

// What one control group and every one above it leave, the headroom kept taken off. Inside a container the
// path may be the host's and what is mounted here its end: then only the levels that are there count.
uint64_t group_headroom(const std::string& mount, std::string path, const char* limit_file,
                        const char* used_file) {
  uint64_t least = UINT64_MAX;
  while (true) {
    uint64_t limit = 0, used = 0;
    std::string folder = mount;
    folder += path;
    folder += '/';
    if (read_number(folder + limit_file, &limit) && read_number(folder + used_file, &used))
      least = std::min(least, limit > used + kHeadroomKeptBytes ? limit - used - kHeadroomKeptBytes : 0);
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

Descriptor open_segment(const Pool& pool, uint32_t segment) {
  const Pool::SegmentMap& map = pool.maps[segment];
  Descriptor fd(::open(map.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat st{};
  if (!fd || fstat(fd.get(), &st) != 0 || st.st_dev != map.device || st.st_ino != map.inode)
    return Descriptor();
  return fd;
}

bool refuse(Pool& pool) {
  pool.super->space_refused_ns.store(now_ns());
  pool.count(Counter::kSpaceRefused);
  return false;
}

// A medium without fallocate (some network file systems) is written page by page instead.
bool allocate(int fd, uint64_t from, uint64_t bytes) {
  while (true) {
    if (fallocate(fd, 0, static_cast<off_t>(from), static_cast<off_t>(bytes)) == 0) return true;
    if (errno == EINTR) continue;
    return errno == EOPNOTSUPP &&
           posix_fallocate(fd, static_cast<off_t>(from), static_cast<off_t>(bytes)) == 0;
  }
}

}  // namespace

uint64_t memory_headroom_bytes(const std::string& root) {
  std::array<char, 8192> room;
  std::string_view groups = read_text(root + "/proc/self/cgroup", room.data(), room.size());
  uint64_t least = UINT64_MAX;
  while (!groups.empty()) {
    const std::string_view line = groups.substr(0, groups.find('\n'));
    groups.remove_prefix(std::min(groups.size(), line.size() + 1));
    // number:controllers:path, with neither number nor controllers where there is one hierarchy (version 2).
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string controllers(line.substr(first + 1, second - first - 1)), path(line.substr(second + 1));
    if (controllers.empty())
      least = std::min(least, group_headroom(root + "/sys/fs/cgroup", path, "memory.max", "memory.current"));
    else if (("," + controllers + ",").find(",memory,") != std::string::npos)
      least = std::min(least, group_headroom(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                             "memory.usage_in_bytes"));
  }
  return least;
}

bool make_real(Pool& pool, uint64_t slab, uint64_t bytes) {
  SlabRow& row = pool.slabs[slab];
  const uint32_t segment = pool.segment_of_slab(slab);
  uint64_t mark = row.real_bytes.load(std::memory_order_acquire);
  const Geometry& g = pool.geometry;
  const SegmentGeometry& place = g.segments[segment];
  if (!pool.segment_is_there(segment)) return false;
  if (pool.maps[segment].medium == Medium::kDevdax) return true;
  if (mark >= bytes) return true;
  const uint64_t refused = pool.super->space_refused_ns.load(std::memory_order_relaxed);
  if (refused != 0 && now_ns() < refused + kAskAgainNs) return false;
  const uint64_t from = mark, wanted = round_up(bytes, g.unit_bytes) - from;
  if (memory_headroom_bytes() < wanted) return refuse(pool);
  Descriptor fd = open_segment(pool, segment);
  if (!fd) return refuse(pool);
  const uint64_t local = slab - place.first_slab;
  MARU_POINT("space.before_fallocate");
  const uint64_t table_bytes = g.units_per_slab * sizeof(ExtentHeader);
  if (from == 0 && !allocate(fd.get(), place.header_offset + local * table_bytes, table_bytes))
    return refuse(pool);
  if (!allocate(fd.get(), place.data_offset + local * g.slab_bytes + from, wanted)) return refuse(pool);
  MARU_POINT("space.after_fallocate");
  while (mark < bytes && !row.real_bytes.compare_exchange_weak(mark, bytes)) {
  }
  return true;
}

uint64_t real_bytes_total(const Pool& pool) {
  uint64_t sum = 0;
  for (uint32_t s = 0; s < pool.geometry.slab_count; s++)
    sum += pool.slabs[s].real_bytes.load(std::memory_order_relaxed);
  return sum;
}

}  // namespace maru
