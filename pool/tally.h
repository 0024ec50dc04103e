// What this process stored, hit and removed, by namespace: counted only where somebody keeps an audit log.
//
// In memory of our own, since nobody else looks at it. Readers and writers add with relaxed operations;
// whoever writes the log takes the sums away. A reader between two additions of one call shows a part of it
// now and the rest next time; nothing is lost or counted twice.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "pool.h"

namespace maru {

inline constexpr uint32_t kTallyRows = 4096;  // Namespaces beyond are summed in the last row.

enum class TallyKind : uint32_t { kStored = 0, kHit = 1, kRemoved = 2, kCount = 3 };

struct TallyRow {
  struct Sums {
    Atomic<uint64_t> calls{0}, chunks{0}, bytes{0};
  };
  std::array<Sums, static_cast<size_t>(TallyKind::kCount)> of_kind;
};

struct Tally {
  explicit Tally(uint32_t namespace_limit) : rows(std::min(namespace_limit, kTallyRows - 1) + 1) {}
  std::vector<TallyRow> rows;

  void add(TallyKind kind, uint32_t namespace_id, uint64_t chunks, uint64_t bytes) {
    const uint64_t row = std::min<uint64_t>(namespace_id, rows.size() - 1);
    TallyRow::Sums& sums = rows[row].of_kind[static_cast<size_t>(kind)];
    sums.calls.fetch_add(1, std::memory_order_relaxed);
    sums.chunks.fetch_add(chunks, std::memory_order_relaxed);
    sums.bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
};

inline void tally(Pool& pool, TallyKind kind, uint32_t namespace_id, uint64_t chunks, uint64_t bytes) {
  if (pool.tally) pool.tally->add(kind, namespace_id, chunks, bytes);
}

struct TallyTaken {
  std::string digest;  // 16 bytes; empty for the row of all that found none.
  std::string tenant;
  TallyKind kind;
  uint64_t calls, chunks, bytes;
};

// Count from now on. Once, before anybody else uses this attachment.
void start_tally(Pool& pool);

// What was counted since the last time.
std::vector<TallyTaken> take_tally(Pool& pool);

}  // namespace maru
