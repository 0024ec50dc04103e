#include "leaving.h"

#include <algorithm>
#include <new>

#include "chunk_index.h"
#include "eviction.h"
#include "failure.h"

namespace maru {

namespace {

uint64_t* zeroed(uint64_t count) {
  void* memory = std::calloc(count, sizeof(uint64_t));
  if (!memory) throw std::bad_alloc();
  return static_cast<uint64_t*>(memory);
}

}  // namespace

LeavingScan::LeavingScan(const Pool& pool)
    : slot_count_(pool.geometry.slot_count), kept_(zeroed(slot_count_)), seen_(zeroed(slot_count_)) {
  std::memcpy(pool_uuid_, pool.super->pool_uuid, sizeof pool_uuid_);
}

std::vector<Leaving> LeavingScan::look(Pool& pool, uint64_t ahead_bytes, uint64_t limit) {
  if (slot_count_ != pool.geometry.slot_count ||
      std::memcmp(pool_uuid_, pool.super->pool_uuid, sizeof pool_uuid_) != 0)
    throw Failure("PoolMismatch", pool.folder + " is another pool than the one that was looked at before",
                  {{"path", pool.folder}});
  const uint64_t now = now_ns();
  std::vector<Place> places;
  see(pool, now, &places);
  // The coldest first, whether something continues it or not: a cold prefix leaves from its tail up, but all
  // of it leaves.
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.rank > b.rank; });
  std::vector<Leaving> out;
  uint64_t bytes = 0;
  for (const Place& place : places) {
    if (bytes >= ahead_bytes || out.size() >= limit) break;
    bytes += place.size_bytes;
    if (kept_[place.slot] == place.generation + 1) continue;
    Leaving leaving{};
    if (describe(pool, place, now, &leaving)) out.push_back(leaving);
  }
  return out;
}

void LeavingScan::keep(uint64_t slot, uint64_t generation) {
  if (slot < slot_count_) kept_[slot] = generation + 1;
}

// Walk all slots: what counts, how cold it is, and what has gone since the last walk.
void LeavingScan::see(Pool& pool, uint64_t now, std::vector<Place>* places) {
  residents_.bytes = residents_.bytes_kept = 0;
  const bool is_live = pool.is_live();
  for (uint64_t i = 0; i < slot_count_; i++) {
    const SlotHot& slot = pool.hot[i];
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    const uint64_t name = slot_generation(word) + 1;
    const bool is_sealed = is_live && slot_state(word) == SlotState::kSealed;
    // An evictor on its way may still give it back.
    if (slot_state(word) == SlotState::kEvicting && seen_[i] == name) continue;
    if (seen_[i] != 0 && !(is_sealed && seen_[i] == name)) {
      residents_.chunks_lost += kept_[i] != seen_[i];
      seen_[i] = 0;
    }
    if (!is_sealed) continue;
    if (!is_current(pool, slot, i, now)) {
      seen_[i] = 0;  // It ran out, or was invalidated: that is no loss.
      continue;
    }
    seen_[i] = name;
    const uint64_t size = slot.size_bytes.load(std::memory_order_relaxed);
    if (!pool.extent_is_sane(slot.extent.load(std::memory_order_relaxed), size)) continue;
    residents_.bytes += size;
    if (kept_[i] == name) residents_.bytes_kept += size;
    places->push_back({i, name - 1, size, leaving_rank(pool, i)});
  }
}

bool LeavingScan::describe(const Pool& pool, const Place& place, uint64_t now, Leaving* out) const {
  const SlotHot& slot = pool.hot[place.slot];
  const uint64_t word = slot.word.load(std::memory_order_acquire);
  if (slot_state(word) != SlotState::kSealed || slot_generation(word) != place.generation) return false;
  const auto& cold = pool.cold[place.slot];
  out->key = {slot.key_lo.load(std::memory_order_relaxed), slot.key_hi.load(std::memory_order_relaxed)};
  out->size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
  out->slot = place.slot;
  out->generation = place.generation;
  out->namespace_id = slot.namespace_id.load(std::memory_order_relaxed);
  out->namespace_epoch = slot.namespace_epoch.load(std::memory_order_relaxed);
  if (slot.flags.load(std::memory_order_relaxed) & kSlotExpires) {
    const uint64_t expiry = cold.expiry_ns.load(std::memory_order_relaxed);
    if (expiry <= now) return false;
    out->expires_in_ns = expiry - now;
  }
  const uint64_t parent = cold.parent.load(std::memory_order_relaxed);
  if (parent != 0 && parent_slot(parent) < slot_count_) {
    const SlotHot& above = pool.hot[parent_slot(parent)];
    const uint64_t before = above.word.load(std::memory_order_acquire);
    out->parent = {above.key_lo.load(std::memory_order_relaxed),
                   above.key_hi.load(std::memory_order_relaxed)};
    std::atomic_thread_fence(std::memory_order_acquire);
    out->has_parent = slot_state(before) == SlotState::kSealed &&
                      static_cast<uint32_t>(slot_generation(before)) == parent_generation(parent) &&
                      above.word.load(std::memory_order_relaxed) == before;
    if (!out->has_parent) out->parent = {};
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  if (out->namespace_id >= pool.geometry.namespace_limit || slot.word.load(std::memory_order_relaxed) != word)
    return false;
  std::memcpy(out->namespace_digest, pool.namespaces[out->namespace_id].digest, sizeof out->namespace_digest);
  return true;
}

}  // namespace maru
