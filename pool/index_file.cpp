#include "index_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "clock.h"
#include "crash_point.h"
#include "creation.h"
#include "failure.h"
#include "layout_description.h"
#include "words.h"

namespace maru {

Descriptor lock_for_creation(const std::string& folder, uint32_t mode) {
  const uint64_t deadline = now_ns() + kAttachDeadlineNs;
  while (true) {
    // Made anew each time: a destroyer may have removed the file that we opened.
    const LockFile lock_file(folder + "/" + kLockName, true, mode);
    Descriptor creating = lock_file.lock(kLockByteCreate, deadline);
    if (creating) return creating;
    if (now_ns() >= deadline)
      throw Failure("PoolBusy", "somebody has been creating or attaching " + folder + " for more than 5 s",
                    {{"path", folder}});
  }
}

bool index_is_complete(const std::string& path, Superblock* out) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  return fd && pread(fd.get(), static_cast<void*>(out), sizeof(Superblock), 0) == sizeof(Superblock) &&
         out->magic.load() == kIndexMagic;
}

std::string segment_path(const std::string& folder, const std::string& name) {
  return name.find('/') == std::string::npos ? folder + "/" + name : name;
}

bool is_device(const struct stat& st) { return S_ISCHR(st.st_mode); }

size_t header_map_bytes(const struct stat& st) {
  const bool huge = is_device(st) || static_cast<uint64_t>(st.st_blksize) == kHugePageBytes;
  return huge ? kHugePageBytes : sizeof(SegmentHeader);
}

uint64_t device_size(const struct stat& st, const std::string& path) {
  std::ifstream in("/sys/dev/char/" + std::to_string(major(st.st_rdev)) + ":" +
                   std::to_string(minor(st.st_rdev)) + "/size");
  uint64_t bytes = 0;
  if (!(in >> bytes) || bytes == 0)
    throw Failure("PoolMismatch", path + " is a character device without a size in sysfs; is it /dev/daxX.Y?",
                  {{"path", path}});
  return bytes;
}

// Not `target_node`: that is the node which the device would become as ordinary memory, and which no GPU and
// no CPU is on.
int numa_node_of(const std::string& path, bool device) {
  if (!device) return -1;
  const std::string name = path.substr(path.rfind('/') + 1);
  std::ifstream in("/sys/bus/dax/devices/" + name + "/numa_node");
  int node = -1;
  in >> node;
  return node;
}

void no_space(const std::string& path, uint64_t wanted_bytes) {
  struct statfs fs{};
  const bool known = statfs(path.c_str(), &fs) == 0;
  const auto free_bytes = known ? static_cast<int64_t>(fs.f_bavail) * fs.f_bsize : -1;
  throw Failure(
      "NoSpace", "no space for " + std::to_string(wanted_bytes) + " bytes at " + path,
      {{"path", path}, {"wanted_bytes", static_cast<int64_t>(wanted_bytes)}, {"free_bytes", free_bytes}});
}

NewIndex::NewIndex(const std::string& folder, const Geometry& geometry, uint32_t mode) : geometry_(geometry) {
  const std::string path = folder + "/" + kIndexName;
  const auto refused = [&](const char* what, int error) {
    ::unlink(path.c_str());
    if (error == ENOSPC || error == ENOMEM) no_space(folder, geometry.index_bytes);
    throw Failure("PoolMismatch", std::string("cannot ") + what + " " + path + ": " + std::strerror(error),
                  {{"path", path}});
  };
  ::unlink(path.c_str());
  Descriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT | O_EXCL, mode));
  if (!fd) refused("create", errno);
  (void)::fchmod(fd.get(), mode);
  MARU_POINT("create.index_made");
  // The whole index is made real now: later nobody can be refused a page of it and die of SIGBUS.
  if (const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(geometry.index_bytes)); error != 0)
    refused("allocate", error);
  void* map = mmap(nullptr, geometry.index_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) refused("map", errno);
  base_ = static_cast<uint8_t*>(map);
}

NewIndex::~NewIndex() { munmap(base_, geometry_.index_bytes); }

void describe_row(SegmentRow& row, const SegmentGeometry& place, const SegmentSpec& spec, int numa_node) {
  if (spec.path.size() >= sizeof row.path)
    throw Failure("BadUrl", "the path of a segment is too long: " + spec.path, {{"path", spec.path}});
  row.file_bytes = place.file_bytes;
  row.header_offset = place.header_offset;
  row.data_offset = place.data_offset;
  row.first_slab = place.first_slab;
  row.slab_count = place.slab_count;
  row.medium = static_cast<uint32_t>(spec.medium);
  row.numa_node = numa_node;
  row.page_bytes = spec.medium == Medium::kHugetlb || spec.medium == Medium::kDevdax ? kHugePageBytes : 4096;
  std::memset(row.path, 0, sizeof row.path);
  std::memcpy(row.path, spec.path.data(), spec.path.size());
}

void NewIndex::describe_spare(uint32_t number) {
  const SegmentGeometry& place = geometry_.segments[number];
  SegmentRow& row = reinterpret_cast<SegmentRow*>(base_ + geometry_.offset_segments)[number];
  describe_row(row, place, {"", Medium::kFile}, -1);
  row.word.store(segment_word(SegmentState::kAwaited, 1));
}

void NewIndex::describe_segment(uint32_t number, const SegmentSpec& spec, int numa_node) {
  const SegmentGeometry& place = geometry_.segments[number];
  SegmentRow& row = reinterpret_cast<SegmentRow*>(base_ + geometry_.offset_segments)[number];
  const bool device = spec.medium == Medium::kDevdax;
  describe_row(row, place, spec, numa_node);
  row.word.store(segment_word(SegmentState::kOnline, 1));
  auto* slabs = reinterpret_cast<SlabRow*>(base_ + geometry_.offset_slabs) + place.first_slab;
  if (device)  // A device's bytes are all there from the start.
    for (uint32_t s = 0; s < place.slab_count; s++) slabs[s].real_bytes.store(geometry_.slab_bytes);
}

void NewIndex::name_default() {
  auto* tenant = reinterpret_cast<TenantRow*>(base_ + geometry_.offset_tenants) + kDefaultTenant;
  std::memcpy(tenant->name, kDefaultTenantName, sizeof kDefaultTenantName);
  tenant->word.store(1);
  auto* row = reinterpret_cast<NamespaceRow*>(base_ + geometry_.offset_namespaces);
  row->tenant_number.store(kDefaultTenant);
  row->word.store(1);
}

void NewIndex::publish(Medium medium) {
  Superblock* super = this->super();
  const Geometry& geometry = geometry_;
  super->format = kPoolFormat;
  super->layout_crc = layout_crc();
  timespec wall;
  clock_gettime(CLOCK_REALTIME, &wall);
  super->created_unix_ns = static_cast<uint64_t>(wall.tv_sec) * kSecond + static_cast<uint64_t>(wall.tv_nsec);
  super->index_bytes = geometry.index_bytes;
  super->unit_bytes = geometry.unit_bytes;
  super->slab_bytes = geometry.slab_bytes;
  super->slot_count = geometry.slot_count;
  super->buckets_per_shard = geometry.buckets_per_shard;
  super->shard_count = geometry.shard_count;
  super->slab_count = geometry.slab_count;
  super->process_limit = geometry.process_limit;
  super->namespace_limit = geometry.namespace_limit;
  super->checksum_policy = static_cast<uint32_t>(geometry.checksum);
  super->medium = static_cast<uint32_t>(medium);
  super->cooling_ns = geometry.cooling_ns;
  super->revoked_limit_bytes = geometry.revoked_limit_bytes;
  super->offset_segments = geometry.offset_segments;
  super->offset_processes = geometry.offset_processes;
  super->offset_counters = geometry.offset_counters;
  super->offset_classes = geometry.offset_classes;
  super->offset_namespaces = geometry.offset_namespaces;
  super->offset_shards = geometry.offset_shards;
  super->offset_buckets = geometry.offset_buckets;
  super->offset_slots_hot = geometry.offset_slots_hot;
  super->offset_slots_cold = geometry.offset_slots_cold;
  super->offset_slabs = geometry.offset_slabs;
  super->offset_owners = geometry.offset_owners;
  super->offset_pins = geometry.offset_pins;
  super->offset_reuse = geometry.offset_reuse;
  super->offset_tenants = geometry.offset_tenants;
  super->tenant_limit = geometry.tenant_limit;
  super->reuse_entries = geometry.reuse_entries;
  super->eviction_policy = geometry.gate ? kPolicyGate : 0;
  super->state.store(static_cast<uint64_t>(PoolState::kLive));
  super->pool_epoch.store(1);
  MARU_POINT("create.before_magic");
  super->magic.store(kIndexMagic);  // From here on it is a pool.
  MARU_POINT("create.after_magic");
}

}  // namespace maru
