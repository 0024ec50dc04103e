#include "pins.h"

#include "eviction.h"
#include "tally.h"
#include "xxh3.h"

namespace maru {

namespace {

bool bytes_are_intact(Pool& pool, const PinnedExtent& chunk) {
  return !is_hashed(pool, chunk) ||
         has_hash(pool, chunk, xxh3_64(pool.readable_at(chunk.extent), chunk.size_bytes));
}

uint32_t namespace_of(const Pool& pool, const PinnedExtent& chunk) {
  return pool.hot[chunk.slot].namespace_id.load(std::memory_order_relaxed);
}

// Hits of several namespaces in one call: each run of one by itself.
void tally_runs(Pool& pool, const PinnedExtent* chunks, uint64_t count) {
  for (uint64_t i = 0, end = 0; i < count; i = end) {
    const uint32_t id = namespace_of(pool, chunks[i]);
    uint64_t bytes = 0;
    for (; end < count && namespace_of(pool, chunks[end]) == id; end++) bytes += chunks[end].size_bytes;
    tally(pool, TallyKind::kHit, id, end - i, bytes);
  }
}

// Pin the leading run of `keys` as far as `is_good` agrees with each chunk.
// `Tallied`: an audit log wants to know. Two operations a chunk then, since almost always all are of one
// namespace.
template <bool Tallied, class IsGood, class Mine = Everybody>
uint64_t pin_while(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out, IsGood is_good,
                   const Mine& mine = Mine()) {
  const uint32_t epoch = count_references(pool, keys, count);
  uint64_t bytes = 0, n = 0;
  uint32_t any = 0, every = UINT32_MAX;  // Bits of any, and of every, namespace's number.
  for (uint64_t i = 0; i < count && i < kBucketsAhead; i++) prefetch_bucket(pool, keys[i]);
  for (; n < count; n++) {
    if (n + kBucketsAhead < count) prefetch_bucket(pool, keys[n + kBucketsAhead]);
    if (n + kSlotsAhead < count) prefetch_slot(pool, keys[n + kSlotsAhead], true);
    if (!pin_key(pool, keys[n], epoch, &out[n], mine)) break;
    if (!is_good(out[n])) {
      unpin(pool, out[n].slot);
      break;
    }
    bytes += out[n].size_bytes;
    if constexpr (Tallied) {
      const uint32_t id = namespace_of(pool, out[n]);
      any |= id;
      every &= id;
    }
  }
  remember_missing(pool, keys + n, count - n);
  pool.count(Counter::kLookupKeys, count);
  pool.count(Counter::kHitKeys, n);
  pool.count(Counter::kPinned, n);
  pool.count(Counter::kPinnedBytes, bytes);
  if constexpr (Tallied) {
    if (n && any == every)
      tally(pool, TallyKind::kHit, any, n, bytes);
    else
      tally_runs(pool, out, n);
  }
  return n;
}

template <class IsGood, class Mine = Everybody>
uint64_t pin_counted(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out, IsGood is_good,
                     const Mine& mine = Mine()) {
  return pool.tally ? pin_while<true>(pool, keys, count, out, is_good, mine)
                    : pin_while<false>(pool, keys, count, out, is_good, mine);
}

}  // namespace

bool is_hashed(const Pool& pool, const PinnedExtent& chunk) {
  return pool.geometry.checksum == ChecksumPolicy::kAlways &&
         (pool.hot[chunk.slot].flags.load(std::memory_order_relaxed) & kSlotChecksummed);
}

bool has_hash(Pool& pool, const PinnedExtent& chunk, uint64_t hash) {
  SlotHot& slot = pool.hot[chunk.slot];
  if (hash == pool.cold[chunk.slot].checksum.load(std::memory_order_relaxed)) return true;
  // We hold a pin: the word may have left SEALED, for another state of the same life, but not that life.
  uint64_t word = slot.word.load();
  const uint64_t absent = slot_word(SlotState::kQuarantined, kNobody, slot_generation(word));
  if (slot_state(word) == SlotState::kSealed && slot.word.compare_exchange_strong(word, absent)) {
    clear_tag(pool, chunk.slot);
    pool.count(Counter::kQuarantined);
  }
  return false;
}

bool pin_one(Pool& pool, Key key, PinnedExtent* out) {
  pool.count(Counter::kLookupKeys);
  if (!pin_key(pool, key, count_references(pool, &key, 1), out)) {
    remember_missing(pool, &key, 1);
    return false;
  }
  if (!bytes_are_intact(pool, *out)) {
    unpin(pool, out->slot);
    return false;
  }
  pool.count(Counter::kHitKeys);
  pool.count(Counter::kPinned);
  pool.count(Counter::kPinnedBytes, out->size_bytes);
  tally_runs(pool, out, pool.tally ? 1 : 0);
  return true;
}

bool pin_in_passing(Pool& pool, uint64_t i, uint64_t generation, PinnedExtent* out) {
  if (i >= pool.geometry.slot_count) return false;
  SlotHot& slot = pool.hot[i];
  const uint64_t word = slot_word(SlotState::kSealed, kNobody, generation);
  if (slot.word.load(std::memory_order_acquire) != word || !pin_again(pool, i)) return false;
  MARU_POINT("leaving.pinned");
  *out = {i, slot.extent.load(std::memory_order_relaxed), slot.size_bytes.load(std::memory_order_relaxed)};
  const bool usable = is_readable(pool, slot, i) && pool.extent_is_sane(out->extent, out->size_bytes);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (slot.word.load() == word && usable && bytes_are_intact(pool, *out)) return true;
  unpin(pool, i);
  return false;
}

uint64_t pin_leading(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out) {
  return pin_counted(pool, keys, count, out,
                     [&](const PinnedExtent& chunk) { return bytes_are_intact(pool, chunk); });
}

uint64_t pin_leading(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out,
                     const NamespaceSet& mine) {
  return pin_counted(
      pool, keys, count, out, [&](const PinnedExtent& chunk) { return bytes_are_intact(pool, chunk); }, mine);
}

uint64_t pin_leading_unverified(Pool& pool, const Key* keys, uint64_t count, PinnedExtent* out) {
  return pin_counted(pool, keys, count, out, [](const PinnedExtent&) { return true; });
}

}  // namespace maru
