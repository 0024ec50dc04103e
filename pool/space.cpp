#include "space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

namespace maru {

namespace {

// tmpfs charges a container's memory limit page by page, and over the limit the kernel kills instead of
// refusing: stop well before it.
constexpr uint64_t kHeadroomKeptBytes = 64ull << 20;

// A medium that refused is not asked again for a while: asking costs system calls on somebody's store path.
constexpr uint64_t kAskAgainNs = kSecond;

bool read_number(const std::string& path, uint64_t* out) {
  std::ifstream in(path);
  return static_cast<bool>(in >> *out);
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

uint64_t memory_headroom_bytes() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    if (line.rfind("0::", 0) != 0) continue;
    const std::string folder = "/sys/fs/cgroup" + line.substr(3);
    uint64_t limit = 0, used = 0;
    if (!read_number(folder + "/memory.max", &limit) || !read_number(folder + "/memory.current", &used))
      break;
    return limit > used + kHeadroomKeptBytes ? limit - used - kHeadroomKeptBytes : 0;
  }
  return UINT64_MAX;
}

bool make_real(Pool& pool, uint64_t slab, uint64_t bytes) {
  SlabRow& row = pool.slabs[slab];
  const uint32_t segment = pool.segment_of_slab(slab);
  uint64_t mark = row.real_bytes.load(std::memory_order_acquire);
  const Geometry& g = pool.geometry;
  const SegmentGeometry& place = g.segments[segment];
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
