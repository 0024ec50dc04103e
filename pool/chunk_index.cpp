#include "chunk_index.h"

#include <sched.h>

#include "process_table.h"

namespace maru {

namespace {

constexpr int kSpinsBeforeYield = 100, kYieldsBeforeAsking = 20;
constexpr uint64_t kAskPauseNs = 50'000;

template <class Mine>
uint64_t count_sealed(const Pool& pool, const Key* keys, uint64_t count, const Mine& mine) {
  for (uint64_t i = 0; i < count && i < kBucketsAhead; i++) prefetch_bucket(pool, keys[i]);
  for (uint64_t i = 0; i < count; i++) {
    if (i + kBucketsAhead < count) prefetch_bucket(pool, keys[i + kBucketsAhead]);
    if (i + kSlotsAhead < count) prefetch_slot(pool, keys[i + kSlotsAhead], false);
    if (!is_sealed(pool, keys[i], mine)) return i;
  }
  return count;
}

template <class Mine>
bool is_written(const Pool& pool, Key key, const Mine& mine) {
  return probe_among(pool, key, mine, [&](uint64_t i) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    return slot_state(word) == SlotState::kReserved && key_equals(pool.hot[i], key) && mine.owns(pool.hot[i]);
  });
}

}  // namespace

uint64_t count_leading(const Pool& pool, const Key* keys, uint64_t count) {
  return count_sealed(pool, keys, count, Everybody{});
}

uint64_t count_leading(const Pool& pool, const Key* keys, uint64_t count, const NamespaceSet& mine) {
  return count_sealed(pool, keys, count, mine);
}

bool is_reserved(const Pool& pool, Key key) { return is_written(pool, key, Everybody{}); }

bool is_reserved(const Pool& pool, Key key, const NamespaceSet& mine) { return is_written(pool, key, mine); }

uint64_t find_parent(const Pool& pool, Key key) {
  uint64_t found = 0;
  probe(pool, key, [&](uint64_t i) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    if (!binds_key(word) || !key_equals(pool.hot[i], key)) return false;
    found = parent_word(i, slot_generation(word));
    return true;
  });
  return found;
}

bool lock_shard(Pool& pool, uint32_t shard) {
  Atomic<uint64_t>& owner = pool.shards[shard].owner;
  const uint64_t mine = (pool.me + 1) | pool.my_epoch << 8;
  uint64_t deadline = 0;
  for (int spin = 0;; spin++) {
    uint64_t seen = owner.load(std::memory_order_relaxed);
    if (seen == 0 && owner.compare_exchange_strong(seen, mine)) {
      MARU_POINT("lock.taken");
      return true;
    }
    if (spin < kSpinsBeforeYield) {
      cpu_relax();
      continue;
    }
    if (spin < kSpinsBeforeYield + kYieldsBeforeAsking) {
      sched_yield();
      continue;
    }
    if (deadline == 0) deadline = now_ns() + kLockWaitNs;
    // The holder may have died here. Nothing needs mending: the lock guards uniqueness only, and a slot it
    // half-claimed names it.
    if (seen != 0 && !process_is_alive(pool, static_cast<uint32_t>(seen & 255) - 1)) {
      if (owner.compare_exchange_strong(seen, mine)) {
        pool.count(Counter::kLockSteals);
        return true;
      }
      continue;
    }
    if (now_ns() >= deadline) return false;
    sleep_ns(kAskPauseNs);
  }
}

void unlock_shard(Pool& pool, uint32_t shard) {
  MARU_POINT("lock.before_unlock");
  pool.shards[shard].owner.store(0, std::memory_order_release);
}

}  // namespace maru
