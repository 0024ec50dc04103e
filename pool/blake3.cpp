// BLAKE3's tree: chunks, parents and roots, and the choice of a path for this CPU.
// Leaves to blake3_compress.h: the compression function itself.
#include "blake3.h"

#include <algorithm>
#include <cstring>

#include "blake3_compress.h"

namespace maru {
namespace {

constexpr size_t kChunkSize = 1024;
constexpr size_t kRunChunks = kBlake3RunSize / kChunkSize;
constexpr size_t kLaneCountMax = 16;

constexpr uint32_t kParent = 1 << 2;
constexpr uint32_t kKeyedHash = 1 << 4;

// The path of that name, or the best one if `name` is null; null if this CPU has none of that name.
const Blake3Path* find_path(const char* name) {
  const auto wanted = [name](const Blake3Path& path) { return !name || std::strcmp(name, path.name) == 0; };
#if defined(__x86_64__)
  if (wanted(kPath_avx512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
    return &kPath_avx512;
  if (wanted(kPath_avx2) && __builtin_cpu_supports("avx2")) return &kPath_avx2;
#endif
  return wanted(kPath_portable) ? &kPath_portable : nullptr;
}

const Blake3Path& best_path() {
  static const Blake3Path& path = *find_path(nullptr);
  return path;
}

// ---- The tree.

// Collects jobs of one kind and runs them a full set of lanes at a time.
class LaneBatch {
 public:
  LaneBatch(const Blake3Path& path, size_t block_count, BlockFlags flags)
      : path_(path), block_count_(block_count), flags_(flags) {}

  void add(const uint8_t* input, uint64_t counter, uint8_t* out) {
    jobs_[job_count_++] = {input, counter, out};
    if (job_count_ == path_.lane_count) flush();
  }

  void flush() {
    if (job_count_ <= kWordJobsMax) {
      for (size_t i = 0; i < job_count_; ++i) run_by_words(jobs_[i]);
    } else {
      // Idle lanes repeat the first job: they write the same bytes to the same place.
      std::fill(jobs_ + job_count_, jobs_ + path_.lane_count, jobs_[0]);
      path_.hash_lanes(jobs_, block_count_, flags_);
    }
    job_count_ = 0;
  }

 private:
  // One pass over the lanes, full or not, takes longer than two inputs one after the other.
  static constexpr size_t kWordJobsMax = 2;

  void run_by_words(const LaneJob& job) const {
    uint32_t state[16];
    std::memcpy(state, kIv, sizeof kIv);
    for (size_t block = 0; block < block_count_; ++block) {
      const uint32_t flags =
          flags_.every | (block == 0 ? flags_.first : 0) | (block + 1 == block_count_ ? flags_.last : 0);
      compress(state, job.input + block * kBlockSize, job.counter, kBlockSize, flags, state);
    }
    std::memcpy(job.out, state, kBlake3DigestSize);
  }

  const Blake3Path& path_;
  const size_t block_count_;
  const BlockFlags flags_;
  size_t job_count_ = 0;
  LaneJob jobs_[kLaneCountMax];
};

// The last compression of a chunk or parent, not done yet: only its user knows if it is the root.
struct Node {
  uint32_t cv[8];
  uint8_t block[kBlockSize];
  uint64_t counter;
  uint32_t block_size;
  uint32_t flags;

  void chaining_value(uint8_t* out) const {
    uint32_t state[16];
    compress(cv, block, counter, block_size, flags, state);
    std::memcpy(out, state, kBlake3DigestSize);
  }

  void root_output(uint8_t* out, size_t out_size) const {
    uint32_t state[16];
    for (uint64_t index = 0; out_size > 0; ++index) {
      compress(cv, block, index, block_size, flags | kRoot, state);
      const size_t size = std::min(out_size, sizeof state);
      std::memcpy(out, state, size);
      out += size;
      out_size -= size;
    }
  }
};

// A chunk of 0 to 1024 bytes.
Node chunk_node(const uint8_t* data, size_t size, uint64_t counter) {
  Node node{};
  uint32_t state[16];
  std::memcpy(state, kIv, sizeof kIv);
  node.flags = kChunkStart;
  for (; size > kBlockSize; size -= kBlockSize, data += kBlockSize) {
    compress(state, data, counter, kBlockSize, node.flags, state);
    node.flags = 0;
  }
  std::memcpy(node.cv, state, sizeof node.cv);
  if (size > 0) std::memcpy(node.block, data, size);
  node.counter = counter;
  node.block_size = static_cast<uint32_t>(size);
  node.flags |= kChunkEnd;
  return node;
}

Node parent_node(const uint8_t* left, const uint8_t* right) {
  Node node{};
  std::memcpy(node.cv, kIv, sizeof kIv);
  std::memcpy(node.block, left, kBlake3DigestSize);
  std::memcpy(node.block + kBlake3DigestSize, right, kBlake3DigestSize);
  node.block_size = kBlockSize;
  node.flags = kParent;
  return node;
}

// Hashes `group` equal runs that lie back to back, each from chunk `first_chunk` on, up to the level below
// its top: what is left of run g begins at cvs + g * (chunks of a run) * 32. Returns how many chaining values
// are left of each: 2, or 1 if a run is a single chunk. The top is left because it may be the root.
//
// Joining neighbours level by level, an odd last one moving up as it is, gives the tree of the specification
// (left subtrees are the largest complete ones).
size_t hash_runs(const Blake3Path& path, const uint8_t* data, size_t run_size, size_t group,
                 uint64_t first_chunk, uint8_t* cvs) {
  const size_t chunk_count = (run_size + kChunkSize - 1) / kChunkSize;
  const size_t full_count = run_size / kChunkSize;
  const auto cv = [=](size_t run, size_t i) { return cvs + (run * chunk_count + i) * kBlake3DigestSize; };

  LaneBatch chunks(path, kChunkSize / kBlockSize, {0, kChunkStart, kChunkEnd});
  for (size_t run = 0; run < group; ++run, data += run_size) {
    for (size_t i = 0; i < full_count; ++i) chunks.add(data + i * kChunkSize, first_chunk + i, cv(run, i));
    if (full_count < chunk_count)
      chunk_node(data + full_count * kChunkSize, run_size % kChunkSize, first_chunk + full_count)
          .chaining_value(cv(run, full_count));
  }
  chunks.flush();

  size_t count = chunk_count;
  for (; count > 2; count = (count + 1) / 2) {
    // In place: a parent is written over values that this or an earlier job has read.
    LaneBatch parents(path, 1, {kParent, 0, 0});
    for (size_t run = 0; run < group; ++run)
      for (size_t i = 0; i < count / 2; ++i) parents.add(cv(run, 2 * i), 0, cv(run, i));
    parents.flush();
    if (count % 2 == 1)
      for (size_t run = 0; run < group; ++run)
        std::memcpy(cv(run, count / 2), cv(run, count - 1), kBlake3DigestSize);
  }
  return count;
}

void hash_one(const Blake3Path& path, const uint8_t* data, size_t size, uint8_t* out, size_t out_size) {
  Blake3Runs runs(path);
  for (; size > kBlake3RunSize; size -= kBlake3RunSize, data += kBlake3RunSize) runs.append_run(data);
  runs.finish(data, size, out, out_size);
}

void hash_equal_inputs(const Blake3Path& path, const uint8_t* inputs, size_t input_size, size_t count,
                       uint8_t* out) {
  if (input_size > 0 && input_size <= kChunkSize && input_size % kBlockSize == 0) {
    LaneBatch batch(path, input_size / kBlockSize, {0, kChunkStart, kChunkEnd | kRoot});
    for (size_t i = 0; i < count; ++i) batch.add(inputs + i * input_size, 0, out + i * kBlake3DigestSize);
    batch.flush();
  } else if (input_size > kChunkSize && input_size <= kBlake3RunSize) {
    const size_t chunk_count = (input_size + kChunkSize - 1) / kChunkSize;
    uint8_t cvs[kRunChunks * kBlake3DigestSize];
    for (size_t done = 0; done < count;) {
      const size_t group = std::min(count - done, kRunChunks / chunk_count);
      hash_runs(path, inputs + done * input_size, input_size, group, 0, cvs);
      LaneBatch roots(path, 1, {kParent | kRoot, 0, 0});
      for (size_t i = 0; i < group; ++i)
        roots.add(cvs + i * chunk_count * kBlake3DigestSize, 0, out + (done + i) * kBlake3DigestSize);
      roots.flush();
      done += group;
    }
  } else {
    for (size_t i = 0; i < count; ++i)
      hash_one(path, inputs + i * input_size, input_size, out + i * kBlake3DigestSize, kBlake3DigestSize);
  }
}

}  // namespace

Blake3Runs::Blake3Runs() : path_(best_path()) {}

void Blake3Runs::append_run(const uint8_t* run) {
  uint8_t cvs[kRunChunks * kBlake3DigestSize];
  hash_runs(path_, run, kBlake3RunSize, 1, run_count_ * kRunChunks, cvs);
  uint8_t* top = waiting_[depth_++];
  parent_node(cvs, cvs + kBlake3DigestSize).chaining_value(top);
  // As in a binary counter, every carry joins two complete subtrees. More bytes follow: none is the root.
  for (uint64_t carries = ++run_count_; carries % 2 == 0; carries /= 2, --depth_)
    parent_node(waiting_[depth_ - 2], waiting_[depth_ - 1]).chaining_value(waiting_[depth_ - 2]);
}

void Blake3Runs::finish(const uint8_t* tail, size_t tail_size, uint8_t* out, size_t out_size) {
  Node node;
  if (tail_size <= kChunkSize) {
    node = chunk_node(tail, tail_size, run_count_ * kRunChunks);
  } else {
    uint8_t cvs[kRunChunks * kBlake3DigestSize];
    hash_runs(path_, tail, tail_size, 1, run_count_ * kRunChunks, cvs);
    node = parent_node(cvs, cvs + kBlake3DigestSize);
  }
  while (depth_ > 0) {
    uint8_t right[kBlake3DigestSize];
    node.chaining_value(right);
    node = parent_node(waiting_[--depth_], right);
  }
  node.root_output(out, out_size);
}

void blake3(const void* data, size_t size, uint8_t* out, size_t out_size) {
  hash_one(best_path(), static_cast<const uint8_t*>(data), size, out, out_size);
}

void blake3_keyed(const uint8_t key[32], const void* data, size_t size, uint8_t* out, size_t out_size) {
  Node node{};
  std::memcpy(node.cv, key, sizeof node.cv);
  if (size > 0) std::memcpy(node.block, data, size);
  node.block_size = static_cast<uint32_t>(size);
  node.flags = kChunkStart | kChunkEnd | kKeyedHash;
  node.root_output(out, out_size);
}

void blake3_equal_inputs(const uint8_t* inputs, size_t input_size, size_t count, uint8_t* out32) {
  hash_equal_inputs(best_path(), inputs, input_size, count, out32);
}

void blake3_chain(const uint8_t seed[16], const uint8_t* digests, size_t count, uint8_t* keys_out) {
  chain(seed, digests, count, keys_out);
}

bool blake3_equal_inputs_with(const char* path, const uint8_t* inputs, size_t input_size, size_t count,
                              uint8_t* out32) {
  const Blake3Path* found = find_path(path);
  if (found) hash_equal_inputs(*found, inputs, input_size, count, out32);
  return found;
}

}  // namespace maru
