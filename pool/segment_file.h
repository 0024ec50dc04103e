// A data segment's file or device on its way into a pool: opened, refused when it is somebody else's, sized,
// and given the header that says whose it is. Leaves to others: the row in the index that makes it count.
#pragma once

#include <string>
#include <vector>

#include "geometry.h"
#include "lock_file.h"

namespace maru {

struct OpenSegment {
  std::string path;
  Descriptor fd;
  bool device = false;
  uint64_t device_bytes = 0;
};

// What a segment's header says besides sizes.
struct SegmentRole {
  uint32_t number;
  uint32_t count;  // Of the pool's segments.
  Medium medium;
  const std::string& folder;  // The pool's.
};

void random_bytes(uint8_t* out, size_t size);

// Open it, or make an empty file (`existed` says which). Nothing is written to what is there. Raises
// PoolMismatch (of another living pool, or not a segment at all), NoSpace. What is replaced is told in
// `notes`.
OpenSegment open_segment(const std::string& folder, const SegmentSpec& spec, uint32_t mode,
                         const uint8_t boot_id[16], bool* existed, std::vector<std::string>* notes);

// Empty a file and give it its size. Raises NoSpace.
void size_file(const OpenSegment& segment, const SegmentGeometry& place, uint32_t mode);

void write_segment_header(const OpenSegment& segment, const SegmentGeometry& place, const SegmentRole& role,
                          const Geometry& geometry, const uint8_t pool_uuid[16], const uint8_t boot_id[16],
                          uint8_t segment_uuid[16]);

// After the header: only then does a dead creator's file say whose it is, however much of it is real.
void write_namespace_marks(const OpenSegment& segment, const SegmentGeometry& place);

}  // namespace maru
