#include "statistics.h"

#include <algorithm>
#include <map>
#include <vector>

#include "chunk_index.h"
#include "copy.h"
#include "eviction.h"
#include "index_file.h"
#include "pins.h"
#include "process_table.h"
#include "space.h"

namespace maru {

namespace {

const char* medium_name(Medium medium) {
  switch (medium) {
    case Medium::kHugetlb:
      return "hugetlb";
    case Medium::kFile:
      return "file";
    case Medium::kDevdax:
      return "devdax";
    default:
      return "shm";
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  return out + "\"";
}

// A JSON object or array under construction.
class Json {
 public:
  explicit Json(char open) : text_(1, open), close_(open == '{' ? '}' : ']') {}
  Json& number(const char* name, uint64_t value) { return raw(name, std::to_string(value)); }
  Json& string(const char* name, const std::string& value) { return raw(name, quoted(value)); }
  Json& flag(const char* name, bool value) { return raw(name, value ? "true" : "false"); }
  Json& raw(const char* name, const std::string& value) {
    if (text_.size() > 1) text_ += ", ";
    if (name) text_ += quoted(name) + ": ";
    text_ += value;
    return *this;
  }
  std::string done() const { return text_ + close_; }

 private:
  std::string text_;
  char close_;
};

std::string uuid_text(const uint8_t uuid[16]) {
  std::string out;
  char two[3];
  for (int i = 0; i < 16; i++) {
    std::snprintf(two, sizeof two, "%02x", uuid[i]);
    out += two;
  }
  return out;
}

// One pinned chunk, or one reservation that is not sealed yet, for people who ask what is stuck and who holds
// it. How long a pin is held is written nowhere; how long ago the chunk was asked for last is its stamp's
// age.
struct Hold {
  uint64_t slot, bytes, rank;
  uint64_t age;    // Of a pin: eviction epochs since the chunk was asked for.
  uint64_t count;  // Pins, or parts.
  uint32_t process;
  bool is_revoked = false;
};

constexpr size_t kHoldsShown = 16;

// Keep the kHoldsShown of the highest rank, highest first.
void keep_highest(std::vector<Hold>& holds, const Hold& hold) {
  if (holds.size() == kHoldsShown && holds.back().rank >= hold.rank) return;
  const auto place = std::upper_bound(holds.begin(), holds.end(), hold,
                                      [](const Hold& a, const Hold& b) { return a.rank > b.rank; });
  holds.insert(place, hold);
  if (holds.size() > kHoldsShown) holds.pop_back();
}

void note_pin(const Pool& pool, uint32_t process, uint64_t i, uint64_t count, std::vector<Hold>& oldest) {
  const SlotHot& slot = pool.hot[i];
  if (slot_state(slot.word.load(std::memory_order_relaxed)) == SlotState::kFree) return;  // Just looked at.
  const uint32_t stamp = slot.stamp.load(std::memory_order_relaxed);
  const uint64_t age = (eviction_epoch(pool) - stamp_epoch(stamp)) & kStampEpochMask;
  const uint64_t attached_s = pool.processes[process].attached_ns.load() / kSecond;
  const uint64_t since_s = now_ns() / kSecond - std::min(attached_s, now_ns() / kSecond);
  // Among chunks of one age the process that came first goes first.
  const uint64_t rank = age << 40 | std::min<uint64_t>(since_s, (1ull << 40) - 1);
  keep_highest(oldest, {i, slot.size_bytes.load(std::memory_order_relaxed), rank, age, count, process});
}

std::string pins_json(const Pool& pool, const std::vector<Hold>& oldest) {
  Json list('[');
  for (const Hold& hold : oldest) {
    Json one('{');
    one.number("slot", hold.slot).number("process", hold.process).number("count", hold.count);
    one.number("pid", pool.processes[hold.process].pid.load()).number("bytes", hold.bytes);
    list.raw(nullptr, one.number("epochs_since_hit", hold.age).done());
  }
  return list.done();
}

// Reservations, the one whose deadline is or was first at the head; what was taken over is among them.
std::string reservations_json(const Pool& pool) {
  std::vector<Hold> first;
  for (uint64_t i = 0; i < pool.geometry.slot_count; i++) {
    const uint64_t word = pool.hot[i].word.load(std::memory_order_acquire);
    if (slot_state(word) != SlotState::kReserved && slot_state(word) != SlotState::kRevoked) continue;
    const uint64_t deadline = pool.cold[i].deadline_ns.load(std::memory_order_relaxed);
    keep_highest(first, {i, pool.hot[i].size_bytes.load(std::memory_order_relaxed), ~deadline, 0,
                         parts_total(pool.cold[i].parts.load()), slot_process(word),
                         slot_state(word) == SlotState::kRevoked});
  }
  Json list('[');
  for (const Hold& hold : first) {
    const bool named = hold.process < pool.geometry.process_limit;
    Json one('{');
    one.number("slot", hold.slot).number("process", hold.process);
    one.number("pid", named ? pool.processes[hold.process].pid.load() : 0).number("bytes", hold.bytes);
    one.string("state", hold.is_revoked ? "revoked" : "reserved");
    one.flag("alive", named && process_is_alive(pool, hold.process)).number("parts", hold.count);
    list.raw(nullptr, one.number("deadline_ns", ~hold.rank).done());
  }
  return list.done();
}

// Fills `oldest` on the way, since both need a walk over the pin columns.
std::string processes_json(const Pool& pool, std::vector<Hold>& oldest) {
  Json list('[');
  for (uint32_t p = 0; p < pool.geometry.process_limit; p++) {
    const ProcessRow& row = pool.processes[p];
    if (row.attached.load() == 0) continue;
    uint64_t pins = 0;
    for (uint64_t i = 0; i < pool.geometry.slot_count; i++) {
      const uint64_t count = pin_counter(pool, p, i).load(std::memory_order_relaxed);
      if (count == 0) continue;
      pins += count;
      note_pin(pool, p, i, count, oldest);
    }
    Json one('{');
    one.number("number", p)
        .number("pid", row.pid.load())
        .string("name", std::string(row.name, strnlen(row.name, sizeof row.name)));
    one.flag("alive", process_is_alive(pool, p))
        .number("pins", pins)
        .number("revoked_bytes", row.revoked_bytes.load());
    one.number("attached_ns", row.attached_ns.load());
    one.number("key_pins", row.key_pins.load()).number("key_pin_ns", row.key_pin_ns.load());
    one.number("lease_ns", row.lease_ns.load());
    list.raw(nullptr, one.done());
  }
  return list.done();
}

std::string policy_json(uint32_t flags) {
  Json list('[');
  for (const auto& [flag, name] :
       {std::pair{kNamespaceWiped, "zeroed"}, std::pair{kNamespaceHeld, "memory-only"},
        std::pair{kNamespaceSealed, "encrypted-only"}, std::pair{kNamespaceUncached, "uncached"},
        std::pair{kNamespaceUnshared, "no-share"}})
    if (flags & flag) list.raw(nullptr, quoted(name));
  return list.done();
}

std::string tenants_json(const Pool& pool) {
  Json list('[');
  for (uint32_t number = 1; number < pool.geometry.tenant_limit; number++) {
    const TenantRow& row = pool.tenants[number];
    if (row.word.load(std::memory_order_acquire) == 0) continue;
    Json one('{');
    one.string("name", std::string(row.name, strnlen(row.name, sizeof row.name)));
    one.number("used_bytes", row.used_bytes.load()).number("share_bytes", row.share_bytes.load());
    one.number("limit_bytes", row.limit_bytes.load());
    one.string("at_limit", row.flags.load() & kTenantRefused ? "refuse" : "evict");
    one.number("made_way", row.made_way.load()).number("made_own_way", row.made_own_way.load());
    list.raw(nullptr, one.number("refused", row.refused.load()).done());
  }
  return list.done();
}

}  // namespace

std::string statistics_json(const Pool& pool, uint64_t populated_bytes, bool ready) {
  const Geometry& g = pool.geometry;
  uint64_t states[7] = {}, stale = 0, chunk_bytes = 0, used_units = 0, leaves = 0;
  std::map<uint32_t, std::pair<uint64_t, uint64_t>> per_namespace;
  for (uint64_t i = 0; i < g.slot_count; i++) {
    const SlotHot& slot = pool.hot[i];
    const uint64_t word = slot.word.load(std::memory_order_acquire);
    const auto state = static_cast<uint64_t>(slot_state(word));
    if (state > 6) continue;
    states[state]++;
    if (slot_state(word) == SlotState::kFree) continue;
    used_units += pool.units_for(slot.size_bytes.load(std::memory_order_relaxed));
    if (slot_state(word) != SlotState::kSealed) continue;
    chunk_bytes += slot.size_bytes.load(std::memory_order_relaxed);
    if (!is_current(pool, slot, i)) stale++;
    if (slot.children.load(std::memory_order_relaxed) == 0) leaves++;
    auto& [chunks, bytes] = per_namespace[slot.namespace_id.load(std::memory_order_relaxed)];
    chunks++;
    bytes += slot.size_bytes.load(std::memory_order_relaxed);
  }
  Json chunks('{');
  const char* names[] = {"free_slots", "reserved",  "sealed",     "evicting",
                         "revoked",    "releasing", "quarantined"};
  for (int s = 0; s < 7; s++) chunks.number(names[s], states[s]);
  chunks.number("stale", stale).number("leaves", leaves).number("slots", g.slot_count);

  Json counters('{');
  for (uint32_t c = 0; c < static_cast<uint32_t>(Counter::kCount); c++) {
    uint64_t sum = 0;
    for (uint32_t p = 0; p < g.process_limit; p++)
      sum += pool.counters[p].value[c].load(std::memory_order_relaxed);
    counters.number(kCounterNames[c], sum);
  }

  uint64_t size_bytes = 0;
  Json segments('[');
  for (uint32_t s = 0; s < pool.maps.size(); s++) {
    Json one('{');
    const char* states_of[] = {"ABSENT", "ONLINE", "DRAINING", "LOST", "AWAITED"};
    const SegmentRow& row = pool.segments[s];
    const auto state = static_cast<uint64_t>(segment_state(row.word.load()));
    const std::string path(row.path, strnlen(row.path, sizeof row.path));
    one.string("path", path.empty() ? "" : segment_path(pool.folder, path));
    one.string("medium", medium_name(static_cast<Medium>(row.medium)));
    one.string("state", states_of[state < std::size(states_of) ? state : 0]);
    one.string("uuid", uuid_text(pool.segments[s].segment_uuid));
    if (state != static_cast<uint64_t>(SegmentState::kAwaited)) size_bytes += pool.maps[s].byte_count;
    one.number("first_byte", pool.maps[s].first_byte);
    one.number("data_offset", pool.geometry.segments[s].data_offset);
    one.number("bytes", pool.maps[s].byte_count).raw("numa_node", std::to_string(pool.segments[s].numa_node));
    segments.raw(nullptr, one.done());
  }

  std::map<uint64_t, std::pair<uint64_t, uint64_t>> per_size;
  for (uint32_t slab = 0; slab < g.slab_count; slab++) {
    const uint64_t word = pool.slabs[slab].word.load(), units = slab_chunk_units(word);
    if (slab_state(word) == SlabState::kFree || units == 0 || units > g.units_per_slab) continue;
    per_size[units].first++;
    const int32_t hint = pool.slabs[slab].free_hint.load();
    per_size[units].second += hint > 0 ? static_cast<uint64_t>(hint) : 0;
  }
  Json classes('[');
  for (const auto& [units, figures] : per_size) {
    Json one('{');
    one.number("chunk_bytes", units * g.unit_bytes)
        .number("slabs", figures.first)
        .number("free_chunks", figures.second);
    classes.raw(nullptr, one.done());
  }

  Json namespaces('[');
  for (uint32_t id = 0; id < g.namespace_limit; id++) {
    const NamespaceRow& row = pool.namespaces[id];
    if (row.word.load() == 0) continue;
    Json one('{');
    one.number("id", id)
        .string("digest", uuid_text(row.digest))
        .string("tenant", std::string(row.tenant, strnlen(row.tenant, sizeof row.tenant)));
    one.number("epoch", row.epoch.load()).number("ttl_ns", row.ttl_ns.load());
    one.number("chunks", per_namespace[id].first).number("bytes", per_namespace[id].second);
    one.raw("policy", policy_json(row.flags.load()));
    namespaces.raw(nullptr, one.done());
  }

  Json eviction('{');
  eviction.number("slots_looked_at", pool.evictor->looked_at.load())
      .number("victims", pool.evictor->victims.load());
  eviction.number("references", pool.super->references.load());

  Json out('{');
  out.string("folder", pool.folder)
      .string("uuid", uuid_text(pool.super->pool_uuid))
      .number("format", pool.super->format);
  out.number("size_bytes", size_bytes)
      .number("real_bytes", real_bytes_total(pool))
      .number("used_bytes", used_units * g.unit_bytes);
  out.number("chunk_bytes", chunk_bytes).number("index_bytes", g.index_bytes);
  out.number("unit_bytes", g.unit_bytes)
      .number("slab_bytes", g.slab_bytes)
      .number("slab_count", g.slab_count);
  out.number("process_limit", g.process_limit).number("namespace_limit", g.namespace_limit);
  const char* policies[] = {"off", "boundary", "always"};
  out.string("checksum", policies[static_cast<uint32_t>(g.checksum) % 3])
      .string("medium", medium_name(pool.maps[0].medium));
  out.string("copy_path", stream_copy_path()).flag("ready", ready).number("populated_bytes", populated_bytes);
  out.number("created_unix_ns", pool.super->created_unix_ns)
      .number("sweep_count", pool.super->sweep_count.load());
  out.number("now_ns", now_ns());
  out.raw("chunks", chunks.done()).raw("counters", counters.done()).raw("segments", segments.done());
  std::vector<Hold> oldest;
  out.raw("classes", classes.done())
      .raw("namespaces", namespaces.done())
      .raw("tenants", tenants_json(pool))
      .raw("processes", processes_json(pool, oldest));
  out.raw("oldest_pins", pins_json(pool, oldest)).raw("reservations", reservations_json(pool));
  out.raw("eviction", eviction.done());
  return out.done();
}

}  // namespace maru
