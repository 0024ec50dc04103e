#include "changes.h"

#include <algorithm>
#include <new>

#include "chunk_index.h"
#include "failure.h"

namespace maru {

namespace {

// Longer lines of ancestors, or circles in a damaged pool, are told in an order of their own.
constexpr size_t kChainMax = 1 << 16;
constexpr int kReadTries = 3;

template <class T>
T* zeroed(uint64_t count) {
  void* memory = std::calloc(count, sizeof(T));
  if (!memory) throw std::bad_alloc();
  return static_cast<T*>(memory);
}

}  // namespace

ChangeScan::ChangeScan(const Pool& pool)
    : slot_count_(pool.geometry.slot_count),
      generation_(zeroed<uint64_t>(slot_count_)),
      chunk_(zeroed<Told>(slot_count_)) {
  std::memcpy(pool_uuid_, pool.super->pool_uuid, sizeof pool_uuid_);
}

bool ChangeScan::look(const Pool& pool, uint64_t limit, std::vector<Change>* out) {
  refuse_another(pool);
  now_ns_ = now_ns();
  is_live_ = pool.is_live();
  for (; cursor_ < slot_count_; cursor_++) {
    const SlotHot& slot = pool.hot[cursor_];
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    const bool is_sealed = slot_state(word) == SlotState::kSealed;
    if (!is_sealed && generation_[cursor_] == 0) continue;
    if (is_sealed && is_live_ && is_told(cursor_, slot_generation(word)) &&
        is_current(pool, slot, cursor_, now_ns_))
      continue;
    if (!settle(pool, cursor_, limit, out)) return false;
  }
  cursor_ = 0;
  return true;
}

std::vector<Change> ChangeScan::told(const Pool& pool) const {
  refuse_another(pool);
  std::vector<Change> out;
  out.reserve(told_count_);
  std::vector<bool> is_out(slot_count_);
  std::vector<uint64_t> chain;
  for (uint64_t i = 0; i < slot_count_; i++) {
    for (uint64_t at = i; generation_[at] != 0 && !is_out[at];) {
      is_out[at] = true;
      chain.push_back(at);
      if (!parent_is_told(chunk_[at].parent)) break;
      at = parent_slot(chunk_[at].parent);
    }
    for (; !chain.empty(); chain.pop_back())
      out.push_back(change_of(pool, ChangeKind::kStored, chunk_[chain.back()]));
  }
  return out;
}

void ChangeScan::refuse_another(const Pool& pool) const {
  if (slot_count_ != pool.geometry.slot_count ||
      std::memcmp(pool_uuid_, pool.super->pool_uuid, sizeof pool_uuid_) != 0)
    throw Failure("PoolMismatch", pool.folder + " is another pool than the one that was looked at before",
                  {{"path", pool.folder}});
}

bool ChangeScan::is_told(uint64_t slot, uint64_t generation) const {
  return generation_[slot] == generation + 1 || (MARU_MUTANT("reuse_not_told") && generation_[slot] != 0);
}

bool ChangeScan::parent_is_told(uint64_t parent) const {
  if (parent == 0 || parent_slot(parent) >= slot_count_) return false;
  const uint64_t told = generation_[parent_slot(parent)];
  return told != 0 && static_cast<uint32_t>(told - 1) == parent_generation(parent);
}

// The key is gone from one slot: is it still told of another one?
bool ChangeScan::is_told_elsewhere(const Pool& pool, Key key) const {
  uint64_t bucket = home_bucket(pool, key);
  for (uint32_t n = 0; n < kBucketsProbed; n++, bucket = next_bucket(pool, bucket)) {
    const uint64_t end = std::min(slot_count_, (bucket + 1) * kBucketSlots);
    for (uint64_t i = bucket * kBucketSlots; i < end; i++)
      if (generation_[i] != 0 && chunk_[i].key == key) return !MARU_MUTANT("moved_key_told_as_gone");
  }
  return false;
}

bool ChangeScan::see(const Pool& pool, uint64_t i, Seen* seen) const {
  const SlotHot& slot = pool.hot[i];
  for (int n = 0; is_live_ && n < kReadTries; n++) {
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    if (slot_state(word) != SlotState::kSealed) return false;
    seen->generation = slot_generation(word);
    seen->chunk.key = {slot.key_lo.load(std::memory_order_relaxed),
                       slot.key_hi.load(std::memory_order_relaxed)};
    seen->chunk.parent = pool.cold[i].parent.load(std::memory_order_relaxed);
    seen->chunk.size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
    seen->chunk.namespace_id = slot.namespace_id.load(std::memory_order_relaxed);
    seen->chunk.flags = slot.flags.load(std::memory_order_relaxed);
    const bool counts = is_current(pool, slot, i, now_ns_);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (slot.word.load(std::memory_order_relaxed) == word) return counts;
  }
  return false;
}

// Tell what became of a slot, after what became of its ancestors: whoever reads along never hears of a child
// before its parent. False when there is no room for all of it; the next call begins with this slot again.
bool ChangeScan::settle(const Pool& pool, uint64_t slot, uint64_t limit, std::vector<Change>* out) {
  chain_.assign(1, slot);
  Seen seen;
  bool is_there = see(pool, slot, &seen);
  while (is_there && chain_.size() < kChainMax && seen.chunk.parent != 0 &&
         !parent_is_told(seen.chunk.parent)) {
    const uint64_t above = parent_slot(seen.chunk.parent);
    const uint32_t wanted = parent_generation(seen.chunk.parent);
    is_there =
        above < slot_count_ && see(pool, above, &seen) && static_cast<uint32_t>(seen.generation) == wanted;
    if (is_there) chain_.push_back(above);
  }
  for (; !chain_.empty(); chain_.pop_back())
    if (!tell(pool, chain_.back(), limit, out)) return false;
  return true;
}

bool ChangeScan::tell(const Pool& pool, uint64_t slot, uint64_t limit, std::vector<Change>* out) {
  if (out->size() + kChangesMin > limit) return false;
  Seen seen;
  const bool is_there = see(pool, slot, &seen);
  if (generation_[slot] != 0 && !(is_there && is_told(slot, seen.generation))) {
    generation_[slot] = 0;
    told_count_--;
    if (!is_told_elsewhere(pool, chunk_[slot].key))
      out->push_back(change_of(pool, ChangeKind::kRemoved, chunk_[slot]));
  }
  if (is_there && generation_[slot] == 0) {
    out->push_back(change_of(pool, ChangeKind::kStored, seen.chunk));
    generation_[slot] = seen.generation + 1;
    chunk_[slot] = seen.chunk;
    told_count_++;
  }
  return true;
}

Change ChangeScan::change_of(const Pool& pool, ChangeKind kind, const Told& chunk) const {
  Change change{};
  change.key = chunk.key;
  change.size_bytes = chunk.size_bytes;
  change.kind = kind;
  change.has_parent = kind == ChangeKind::kStored && parent_is_told(chunk.parent);
  change.is_brought = chunk.flags & kSlotBrought;
  if (change.has_parent) change.parent = chunk_[parent_slot(chunk.parent)].key;
  if (chunk.namespace_id < pool.geometry.namespace_limit)
    std::memcpy(change.namespace_digest, pool.namespaces[chunk.namespace_id].digest,
                sizeof change.namespace_digest);
  return change;
}

}  // namespace maru
