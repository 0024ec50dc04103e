// How many instructions the hot calls take, counted one by one.
//
//   instructions FOLDER      prints "COUNT NAME" for each call
//
// The driver forks; the child does each thing once to warm it, then once between two marks (stepping.h).
// AVX-512 is hidden from the core's dispatch; the C library is told the same through GLIBC_TUNABLES by
// whoever runs this.
#include <array>
#include <vector>

#include "attach.h"
#include "chunk_index.h"
#include "chunk_keys.h"
#include "copy.h"
#include "ground.h"
#include "pins.h"
#include "reservation.h"
#include "space.h"
#include "stepping.h"

namespace maru {

namespace {

constexpr uint64_t kChunks = 680, kChunkTokens = 256;
constexpr uint64_t kHashedChunks = 136;  // A fifth: a step takes microseconds, and each chunk the same steps.
constexpr uint64_t kChunkBytes = 4096, kSmallBytes = 1024;
constexpr uint64_t kRepeats = 8;  // Of a short call, so that one bucket's luck does not decide.

// The calls, over one pool with 680 chunks in chain order, all of its space real.
class Subject {
 public:
  explicit Subject(const std::string& folder) {
    CreateOptions options;
    options.folder = folder;
    options.segments = {{"segment-0", Medium::kShm}};
    options.size_bytes = 8 << 20;
    options.slot_count = 8192;
    options.process_limit = 8;
    create_pool(options);
    pool_ = attach_pool({folder, "instructions"});
    for (uint64_t slab = 0; slab < pool_->geometry.slab_count; slab++)
      if (!make_real(*pool_, slab, pool_->geometry.slab_bytes)) fail("no space for a pool of 8 MiB");
    tokens_.resize(kHashedChunks * kChunkTokens);
    for (size_t n = 0; n < tokens_.size(); n++) tokens_[n] = static_cast<uint32_t>(n) * 2654435761u >> 1;
    for (uint64_t n = 0; n < kChunks; n++) {
      keys_.push_back(key_of(n));
      store(keys_.back(), kChunkBytes, n == 0 ? 0 : find_parent(*pool_, keys_[n - 1]));
    }
    pinned_.resize(kChunks);
  }

  void derive_keys(uint64_t) {
    const uint8_t seed[kChunkKeySize] = {};
    const ChunkKeysResult result = chunk_keys(tokens_.data(), TokenWidth::k32, tokens_.size(), kChunkTokens,
                                              seed, reinterpret_cast<uint8_t*>(derived_.data()));
    if (result.key_count != kHashedChunks) fail("chunk_keys");
  }

  void look(uint64_t) {
    if (count_leading(*pool_, keys_.data(), kChunks) != kChunks) fail("lookup");
  }

  void pin_all(uint64_t) {
    if (pin_leading(*pool_, keys_.data(), kChunks, pinned_.data()) != kChunks) fail("pin");
    for (uint64_t n = 0; n < kChunks; n++)
      extents_[n] = {pool_->byte_of_extent(pinned_[n].extent), pinned_[n].size_bytes};
    for (const PinnedExtent& chunk : pinned_) unpin(*pool_, chunk.slot);
  }

  void get(uint64_t n) {
    PinnedExtent chunk;
    if (!pin_one(*pool_, keys_[n], &chunk)) fail("get");
    unpin(*pool_, chunk.slot);
  }

  void reserve_and_seal(uint64_t n) {
    if (seal_chunk(*pool_, reserve(key_of(n, 1), kSmallBytes, 0)) != Outcome::kStored) fail("seal");
  }

  void put(uint64_t n) { store(key_of(n, 2), kChunkBytes, 0); }

 private:
  Reservation reserve(Key key, uint64_t bytes, uint64_t parent) {
    ReserveRequest request;
    request.key = key;
    request.size_bytes = bytes;
    request.parent = parent;
    Reservation r;
    if (reserve_chunk(*pool_, request, &r) != Outcome::kReserved) fail("reserve");
    return r;
  }

  void store(Key key, uint64_t bytes, uint64_t parent) {
    const Reservation r = reserve(key, bytes, parent);
    stream_copy(pool_->writable_at(r.extent), bytes_.data(), bytes);
    if (seal_chunk(*pool_, r) != Outcome::kStored) fail("put");
  }

  std::unique_ptr<Pool> pool_;
  std::vector<uint32_t> tokens_;
  std::vector<Key> keys_;
  std::vector<PinnedExtent> pinned_;
  std::array<std::pair<uint64_t, uint64_t>, kChunks> extents_;
  std::array<Key, kHashedChunks> derived_;
  alignas(64) std::array<uint8_t, kChunkBytes> bytes_{};
};

// `run` is given a number that it was not given before.
struct Call {
  const char* name;
  void (Subject::*run)(uint64_t);
  uint64_t repeats;
};

constexpr std::array<Call, 6> kCalls = {{
    {"chunk_keys of 136 x 256 tokens", &Subject::derive_keys, 1},
    {"lookup of 680", &Subject::look, 1},
    {"pin, extents and release of 680", &Subject::pin_all, 1},
    {"get and release", &Subject::get, kRepeats},
    {"reserve and seal of 1 KiB", &Subject::reserve_and_seal, kRepeats},
    {"put of 4 KiB", &Subject::put, kRepeats},
}};

[[noreturn]] void be_counted(const std::string& folder) {
  hide_avx512();
  const auto subject = std::make_unique<Subject>(folder);
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) denied();
  mark();
  mark();
  for (const Call& call : kCalls) {
    for (uint64_t n = 0; n < call.repeats; n++) (subject.get()->*call.run)(n);
    mark();
    for (uint64_t n = call.repeats; n < 2 * call.repeats; n++) (subject.get()->*call.run)(n);
    mark();
  }
  _exit(0);
}

}  // namespace

}  // namespace maru

int main(int argc, char** argv) {
  std::vector<maru::Stretch> stretches;
  for (const maru::Call& call : maru::kCalls) stretches.push_back({call.name, call.repeats});
  return maru::count_stretches(argc, argv, maru::be_counted, stretches);
}
