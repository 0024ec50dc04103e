// A pool's files before anybody is attached: the index in the making, and what is known of a segment's file.
//
// Shared by making a pool (creation) and by making its index anew (rebuild). An index without its magic is
// none: whoever dies before publish() leaves nothing that somebody could attach to.
#pragma once

#include <sys/stat.h>

#include <string>

#include "geometry.h"
#include "lock_file.h"

namespace maru {

// The creation lock of the folder, made if need be. Raises PoolBusy after 5 s.
Descriptor lock_for_creation(const std::string& folder, uint32_t mode);

// Is there a whole index here? A creator that died before storing the magic leaves none.
bool index_is_complete(const std::string& path, Superblock* out);

std::string segment_path(const std::string& folder, const std::string& name);
bool is_device(const struct stat& st);

// A segment header's page can be mapped alone, except where pages are huge.
size_t header_map_bytes(const struct stat& st);

// A device DAX's size: st_size is 0 there, sysfs knows. Raises PoolMismatch.
uint64_t device_size(const struct stat& st, const std::string& path);
int numa_node_of(const std::string& path, bool device);

[[noreturn]] void no_space(const std::string& path, uint64_t wanted_bytes);

// Fill a segment's row but for its uuid and its word, which makes it count. Raises BadUrl for a path that is
// too long.
void describe_row(SegmentRow& row, const SegmentGeometry& place, const SegmentSpec& spec, int numa_node);

// An index file of zeros, all of it real, mapped. Replaces whatever index was there. Raises NoSpace,
// PoolMismatch.
class NewIndex {
 public:
  NewIndex(const std::string& folder, const Geometry& geometry, uint32_t mode);
  ~NewIndex();
  NewIndex(const NewIndex&) = delete;
  NewIndex& operator=(const NewIndex&) = delete;

  uint8_t* base() const { return base_; }
  Superblock* super() const { return reinterpret_cast<Superblock*>(base_); }

  // Fill the row of segment `number`, whose uuid is there already. Raises BadUrl for a path that is too long.
  void describe_segment(uint32_t number, const SegmentSpec& spec, int numa_node);

  // The row of a segment that is added later: its slabs are planned, nothing else.
  void describe_spare(uint32_t number);

  // The namespace that is there from the start, and whose it is.
  void name_default();

  // Write down the geometry, and the magic last: from then on it is a pool.
  void publish(Medium medium);

 private:
  const Geometry& geometry_;
  uint8_t* base_ = nullptr;
};

}  // namespace maru
