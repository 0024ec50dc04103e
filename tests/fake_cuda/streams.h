// The fake driver's state: memory, streams, events and the copies on them. See driver.cpp for what it is for.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

enum : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kAlreadyRegistered = 712,
  kNotRegistered = 713,
};

constexpr uintptr_t kPage = 4096;
constexpr size_t kRegistrationBytesEnd = 1ull << 39;  // From here on drivers of the R580 line fail.
constexpr size_t kDescriptorsMax = 1024;
constexpr unsigned kIoMemory = 4, kReadOnly = 8;
constexpr int kOrderStream = 1;

struct Op {
  enum Kind { kCopy, kRecord, kWait, kFill, kMove };
  explicit Op(Kind what) : kind(what) {}
  Kind kind;
  uintptr_t to = 0, from = 0;
  size_t bytes = 0;
  bool to_host = false;
  int value = 0;  // What a fill writes.
  uint64_t event = 0, sequence = 0;
  uint64_t batch = 0;  // Neighbours of one batch may change places; 0: keeps its place.
  std::string early;   // Bytes that were read when the copy was asked for.
  bool is_early = false;
  int64_t remote = -1;  // Its number at the device in another process.
};

struct Event {
  uint64_t recorded = 0, done = 0;
};

struct Attributes {  // The beginning of CUmemcpyAttributes.
  int order;
};

struct Script {
  long nth;  // Which call from now on fails, once; 0: every one does.
  int code;
};

std::recursive_mutex the_lock;
std::map<uint64_t, std::deque<Op>> streams;  // 0 is the legacy default stream.
std::map<uint64_t, Event> events;
std::map<uintptr_t, size_t> registered, pinned, device_memory;
std::map<std::string, long> calls;
std::map<std::string, Script> scripts;
const std::map<std::string, long> kSettings = {{"driver", 13050}, {"devices", 1}, {"register_supported", 1}};
std::map<std::string, long> settings = kSettings;
std::set<std::string> missing;  // Functions that this driver does not have.
std::set<std::string> repeats;  // Scripts that stay.
std::string violations;
uint64_t next_handle = 0x1000, next_sequence = 1, next_batch = 1;
int retained = 0, broken = 0;
bool is_late = false;
thread_local std::vector<uintptr_t> contexts;

void wrong(const std::string& what) { violations += what + "\n"; }

bool is_sticky(int code) { return code == 700 || code == 709 || code == 718 || code == 719; }

// What every call begins with: it is counted, refused when the context is broken or a test wants it to fail.
int enter(const char* name, bool needs_context) {
  calls[name]++;
  if (broken) {
    wrong(std::string(name) + " was called after the context broke");
    return broken;
  }
  const auto script = scripts.find(name);
  if (script != scripts.end() && (script->second.nth == 0 || --script->second.nth == 0)) {
    const Script due = script->second;
    if (due.nth == 0 && !repeats.count(name)) scripts.erase(script);
    if (is_sticky(due.code)) broken = due.code;
    return due.code;
  }
  return needs_context && (contexts.empty() || contexts.back() == 0) ? kInvalidContext : kSuccess;
}

#define ENTER(name, needs_context)                       \
  std::lock_guard<std::recursive_mutex> guard(the_lock); \
  if (const int code = enter(name, needs_context)) return code

const std::pair<const uintptr_t, size_t>* holder(const std::map<uintptr_t, size_t>& ranges, uintptr_t at) {
  auto next = ranges.upper_bound(at);
  if (next == ranges.begin()) return nullptr;
  --next;
  return at < next->first + next->second ? &*next : nullptr;
}

bool overlaps(const std::map<uintptr_t, size_t>& ranges, uintptr_t at, size_t bytes) {
  const auto next = ranges.lower_bound(at);
  return holder(ranges, at) || (next != ranges.end() && next->first < at + bytes);
}

// Is all of [at, at + bytes) mapped, and writable?
void look_at_mapping(uintptr_t at, size_t bytes, bool* is_mapped, bool* is_writable) {
  *is_mapped = *is_writable = false;
  FILE* maps = fopen("/proc/self/maps", "r");
  char line[512], mode[8];
  unsigned long from, to;
  uintptr_t covered = at;
  bool writable = true;
  while (maps && fgets(line, sizeof line, maps)) {
    if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || to <= covered) continue;
    if (from > covered || mode[0] != 'r') break;
    writable = writable && mode[1] == 'w';
    covered = to;
    if (covered >= at + bytes) break;
  }
  if (maps) fclose(maps);
  *is_mapped = covered >= at + bytes;
  *is_writable = *is_mapped && writable;
}

// ---- copies
// -------------------------------------------------------------------------------------------------

int check_copy(uintptr_t host, uintptr_t device, size_t bytes) {
  const auto* memory = holder(device_memory, device);
  if (!memory || device + bytes > memory->first + memory->second) return kInvalidValue;
  const auto* piece = holder(registered, host);
  if (!piece) piece = holder(pinned, host);
  if (!piece && (overlaps(registered, host, bytes) || overlaps(pinned, host, bytes))) return kInvalidValue;
  if (piece && host + bytes > piece->first + piece->second) return kInvalidValue;
  if (!piece)
    wrong("a copy of memory that is not registered");  // A driver stages it, slowly and without a word.
  return kSuccess;
}

std::string ask_device(const std::string& head, const void* content, size_t bytes) {
  const char* path = getenv("FAKE_CUDA_DEVICE");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  const int line = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(line, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) abort();
  const uint32_t size = static_cast<uint32_t>(head.size());
  std::string message(reinterpret_cast<const char*>(&size), 4);
  message += head;
  message.append(static_cast<const char*>(content), bytes);
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t now = write(line, message.data() + sent, message.size() - sent);
    if (now <= 0) abort();
    sent += static_cast<size_t>(now);
  }
  shutdown(line, SHUT_WR);
  std::string reply;
  char part[4096];
  for (ssize_t got; (got = read(line, part, sizeof part)) > 0;) reply.append(part, static_cast<size_t>(got));
  close(line);
  return reply;
}

// True when it is done; a copy at a device in another process is asked for first and looked at later.
bool perform_copy(Op& op) {
  const uintptr_t host = op.to_host ? op.to : op.from;
  if (!holder(registered, host) && !holder(pinned, host)) {
    wrong("memory was taken from the device before its copy was done");
    return true;
  }
  const void* source =
      op.is_early ? static_cast<const void*>(op.early.data()) : reinterpret_cast<void*>(op.from);
  if (op.to_host && getenv("FAKE_CUDA_DEVICE") && holder(registered, host)) {
    if (op.remote < 0) {
      const std::string head =
          "{\"do\": \"queue\", \"offset\": " + std::to_string(op.to - registered.begin()->first) +
          ", \"bytes\": " + std::to_string(op.bytes) + "}";
      const std::string reply = ask_device(head, source, op.bytes);
      op.remote = atoll(reply.c_str() + reply.find("\"number\": ") + 10);
      return false;
    }
    std::string waiting = ask_device("{\"do\": \"list\", \"bytes\": 0}", "", 0);
    for (char& letter : waiting)
      if (letter == '[' || letter == ']' || letter == ',') letter = ' ';
    return (waiting + " ").find(" " + std::to_string(op.remote) + " ") == std::string::npos;
  }
  memcpy(reinterpret_cast<void*>(op.to), source, op.bytes);
  return true;
}

bool perform(Op& op) {
  switch (op.kind) {
    case Op::kCopy:
      return perform_copy(op);
    case Op::kFill:
      memset(reinterpret_cast<void*>(op.to), op.value, op.bytes);
      return true;
    case Op::kMove:
      memcpy(reinterpret_cast<void*>(op.to), reinterpret_cast<void*>(op.from), op.bytes);
      return true;
    case Op::kRecord:
      events[op.event].done = std::max(events[op.event].done, op.sequence);
      return true;
    default:
      return !events.count(op.event) || events[op.event].done >= op.sequence;
  }
}

// Perform up to `limit` of what may be performed now, in an order that the dice choose. Returns how many.
long run(std::mt19937_64& dice, long limit) {
  long done = 0;
  for (bool moved = true; moved && done < limit;) {
    moved = false;
    std::vector<uint64_t> order;
    for (const auto& [handle, queue] : streams)
      if (!queue.empty()) order.push_back(handle);
    std::shuffle(order.begin(), order.end(), dice);
    for (const uint64_t handle : order) {
      auto& queue = streams[handle];
      size_t neighbours = 1;
      while (queue[0].batch && neighbours < queue.size() && queue[neighbours].batch == queue[0].batch)
        neighbours++;
      // A device in another process is asked for all copies of a batch before it has landed the first.
      const size_t first = dice() % neighbours;
      for (size_t n = 0; n < neighbours && !moved; n++) {
        const size_t at = (first + n) % neighbours;
        if (!perform(queue[at])) continue;
        queue.erase(queue.begin() + static_cast<long>(at));
        moved = true;
      }
      if (!moved) continue;
      done++;
      break;
    }
  }
  return done;
}

void settle() {
  std::mt19937_64 dice(1);
  run(dice, 1L << 40);
}

int enqueue(uint64_t stream, Op op) {
  const uint64_t handle = stream == 1 ? 0 : stream;
  if (handle && !streams.count(handle)) return kInvalidHandle;
  streams[handle].push_back(std::move(op));
  if (!is_late) settle();
  return kSuccess;
}

Op copy_of(uintptr_t to, uintptr_t from, size_t bytes, bool to_host, int order, uint64_t batch) {
  Op op(Op::kCopy);
  op.to = to, op.from = from, op.bytes = bytes, op.to_host = to_host, op.batch = batch;
  if (order != kOrderStream) op.early.assign(reinterpret_cast<const char*>(from), bytes), op.is_early = true;
  return op;
}

}  // namespace
