// A pool whose index was lost, made whole from what its segments say about themselves.
//
// Every sealed chunk is described in its segment by an extent header, which its sealer wrote before the word
// said SEALED and whoever freed the extent cleared before it could be used again. So a scan finds what was
// readable: the headers whose own check is right, whose namespace is still at the epoch that they were stored
// in, and, where there is a checksum, whose bytes still have it. Nothing else comes back: not what has a time
// of its own to expire, since the time is in the index only, nor who continued whom, so that until they are
// stored again chunks leave by age alone.
//
//   Who may: one process, with the creation lock held and nobody attached. If it dies, the index has no
//   magic: it is no index, and the next one starts afresh. The segments are only read.
#pragma once

#include <map>
#include <string>

#include "creation.h"

namespace maru {

struct Recovered {
  uint64_t chunks = 0;
  uint64_t bytes = 0;
  std::map<std::string, uint64_t> left_out;  // Why, and how many.
};

// Make the index of the pool in `options.folder` anew from `options.segments`; everything else of the options
// is read from the segments. Raises PoolExists (it has an index), PoolBusy (a process has the lost one
// mapped), PoolMismatch (a segment is missing, foreign, of an earlier boot or out of order), NoSpace.
Recovered rebuild_pool(CreateOptions options);

}  // namespace maru
