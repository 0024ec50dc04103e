#include "reading.h"

#include <algorithm>
#include <string>
#include <vector>

#include "copy.h"
#include "failure.h"
#include "pins.h"
#include "team.h"
#include "xxh3.h"

namespace maru {

namespace {

// What one thread takes at a time of a chunk that needs no hash. Hashing goes through a chunk from one end.
constexpr uint64_t kPieceBytes = 8ull << 20;

struct Piece {
  uint64_t chunk;
  uint64_t from;
  uint64_t size;
};

class Reader {
 public:
  Reader(Pool& pool, const ReadTarget* targets) : pool_(pool), targets_(targets) {}
  ~Reader() {
    for (const PinnedExtent& chunk : chunks_) unpin(pool_, chunk.slot);
  }
  Reader(const Reader&) = delete;

  void pin(const Key* keys, uint64_t count) {
    chunks_.resize(count);
    chunks_.resize(pin_leading_unverified(pool_, keys, count, chunks_.data()));
    MARU_POINT("read.pinned");
    for (uint64_t n = 0; n < chunks_.size(); n++)
      if (targets_[n].size != chunks_[n].size_bytes) refuse_target(n);
  }

  // How many leading chunks came out intact.
  uint64_t copy() {
    uint64_t bytes = 0;
    std::vector<Piece> pieces;
    for (uint64_t n = 0; n < chunks_.size(); n++) {
      const uint64_t size = chunks_[n].size_bytes, step = is_hashed(pool_, chunks_[n]) ? size : kPieceBytes;
      for (uint64_t from = 0; from < size; from += step)
        pieces.push_back({n, from, std::min(step, size - from)});
      bytes += size;
    }
    Atomic<uint64_t> intact{chunks_.size()};
    work_together(team_for(bytes, pool_.copy_threads), pieces.size(), [&](uint64_t n) {
      if (copy_piece(pieces[n])) return;
      uint64_t first = intact.load();
      while (pieces[n].chunk < first && !intact.compare_exchange_weak(first, pieces[n].chunk)) {
      }
    });
    return intact.load();
  }

 private:
  bool copy_piece(const Piece& piece) {
    const PinnedExtent& chunk = chunks_[piece.chunk];
    const uint8_t* source = pool_.readable_at(chunk.extent) + piece.from;
    uint8_t* target = static_cast<uint8_t*>(targets_[piece.chunk].bytes) + piece.from;
    if (is_hashed(pool_, chunk)) return has_hash(pool_, chunk, xxh3_64_copying(target, source, piece.size));
    stream_copy(target, source, piece.size);
    return true;
  }

  [[noreturn]] void refuse_target(uint64_t n) {
    throw Failure("BadSize",
                  "chunk " + std::to_string(n) + " has " + std::to_string(chunks_[n].size_bytes) +
                      " bytes, its buffer " + std::to_string(targets_[n].size) + "; give each its own size",
                  {{"wanted_bytes", static_cast<int64_t>(targets_[n].size)}});
  }

  Pool& pool_;
  const ReadTarget* targets_;
  std::vector<PinnedExtent> chunks_;
};

}  // namespace

uint64_t read_leading(Pool& pool, const Key* keys, uint64_t count, const ReadTarget* targets) {
  if (!pool.is_live()) return 0;
  Reader reader(pool, targets);
  reader.pin(keys, count);
  return reader.copy();
}

}  // namespace maru
