// A CUDA driver made of ordinary memory: what maru.engine.device_copy calls, refused where a real driver
// refuses.
//
// Tests load it as libcuda.so.1 below the real cuda-bindings. Copies are queued on streams. They are
// performed at once, or, when `fake_late` was called, only by `fake_run`: streams out of order with one
// another, the pieces of one batch in any order, event waits honoured. With FAKE_CUDA_DEVICE a copy to the
// host is handed to a device in another process (maru.testing.late_device) and is done when that one has
// landed it.
//
// It is stricter than a driver where a driver forgives silently: `fake_violations` tells what was done wrong.
// Its rules come from published documentation and bug reports; it was never compared with a real driver.
#include <chrono>
#include <thread>

#include "streams.h"

namespace {

// ---- what cuda-bindings calls
// ---------------------------------------------------------------------------------

int cuInit(unsigned) {
  ENTER("cuInit", false);
  return kSuccess;
}
int cuDriverGetVersion(int* version) {
  ENTER("cuDriverGetVersion", false);
  *version = static_cast<int>(settings["driver"]);
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  ENTER("cuDeviceGetCount", false);
  *count = static_cast<int>(settings["devices"]);
  return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
  ENTER("cuDeviceGet", false);
  *device = ordinal;
  return ordinal >= 0 && ordinal < settings["devices"] ? kSuccess : kInvalidDevice;
}
int cuDeviceGetName(char* name, int size, int) {
  ENTER("cuDeviceGetName", false);
  snprintf(name, static_cast<size_t>(size), "Fake GPU");
  return kSuccess;
}
int cuDeviceTotalMem(size_t* bytes, int) {
  ENTER("cuDeviceTotalMem", false);
  *bytes = 8ull << 30;
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  ENTER("cuDeviceGetAttribute", false);
  *value = attribute == 99 ? static_cast<int>(settings["register_supported"]) : attribute == 134 ? 0 : 1;
  return kSuccess;
}
int cuDeviceGetPCIBusId(char* name, int size, int) {
  ENTER("cuDeviceGetPCIBusId", false);
  snprintf(name, static_cast<size_t>(size), "0000:01:00.0");
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
  ENTER("cuDevicePrimaryCtxRetain", false);
  retained++;
  *context = 0xc0 + static_cast<uintptr_t>(device);
  return kSuccess;
}
int cuDevicePrimaryCtxRelease(int) {
  ENTER("cuDevicePrimaryCtxRelease", false);
  retained--;
  return kSuccess;
}
int cuCtxGetCurrent(uintptr_t* context) {
  ENTER("cuCtxGetCurrent", false);
  *context = contexts.empty() ? 0 : contexts.back();
  return kSuccess;
}
int cuCtxPushCurrent(uintptr_t context) {
  ENTER("cuCtxPushCurrent", false);
  contexts.push_back(context);
  return kSuccess;
}
int cuCtxPopCurrent(uintptr_t* context) {
  ENTER("cuCtxPopCurrent", false);
  if (contexts.empty()) return kInvalidContext;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
int cuMemHostRegister(uintptr_t at, size_t bytes, unsigned flags) {
  ENTER("cuMemHostRegister", true);
  if (bytes >= kRegistrationBytesEnd) return kOutOfMemory;
  if (bytes == 0 || (flags & kIoMemory) || at % kPage) return kInvalidValue;
  if (overlaps(registered, at, bytes)) return kAlreadyRegistered;
  bool is_mapped = false, is_writable = false;
  look_at_mapping(at, bytes, &is_mapped, &is_writable);
  if (!is_mapped || (!is_writable && !(flags & kReadOnly))) return kInvalidValue;
  if (settings["register_max"] && bytes > static_cast<size_t>(settings["register_max"])) return kOutOfMemory;
  registered[at] = bytes;
  return kSuccess;
}
int cuMemHostUnregister(uintptr_t at) {
  ENTER("cuMemHostUnregister", true);
  return registered.erase(at) ? kSuccess : kNotRegistered;
}
int cuMemHostGetDevicePointer(uintptr_t* device, uintptr_t host, unsigned) {
  ENTER("cuMemHostGetDevicePointer", true);
  if (!holder(registered, host) && !holder(pinned, host)) return kInvalidValue;
  *device = host + static_cast<uintptr_t>(settings["pointer_shift"]);
  return kSuccess;
}
int cuMemHostAlloc(uintptr_t* host, size_t bytes, unsigned) {
  ENTER("cuMemHostAlloc", true);
  *host = reinterpret_cast<uintptr_t>(aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
  pinned[*host] = bytes;
  return kSuccess;
}
int cuMemFreeHost(uintptr_t host) {
  ENTER("cuMemFreeHost", true);
  if (!pinned.erase(host)) return kInvalidValue;
  free(reinterpret_cast<void*>(host));
  return kSuccess;
}
int cuMemAlloc(uintptr_t* device, size_t bytes) {
  ENTER("cuMemAlloc", true);
  *device = reinterpret_cast<uintptr_t>(aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
  device_memory[*device] = bytes;
  return kSuccess;
}
int cuMemFree(uintptr_t device) {
  ENTER("cuMemFree", true);
  if (!device_memory.erase(device)) return kInvalidValue;
  free(reinterpret_cast<void*>(device));
  return kSuccess;
}
int cuStreamCreate(uint64_t* stream, unsigned flags) {
  ENTER("cuStreamCreate", true);
  if (flags != 1) wrong("a stream that waits for the legacy default stream");
  streams[*stream = next_handle++];
  return kSuccess;
}
int cuStreamDestroy(uint64_t stream) {
  ENTER("cuStreamDestroy", true);
  return streams.erase(stream) ? kSuccess : kInvalidHandle;
}
int cuStreamWaitEvent(uint64_t stream, uint64_t event, unsigned) {
  ENTER("cuStreamWaitEvent", true);
  if (!events.count(event)) return kInvalidHandle;
  Op op(Op::kWait);
  op.event = event, op.sequence = events[event].recorded;
  return enqueue(stream, op);
}
int cuStreamSynchronize(uint64_t stream) {
  ENTER("cuStreamSynchronize", true);
  settle();
  return streams[stream == 1 ? 0 : stream].empty() ? kSuccess : kNotReady;
}
int cuEventCreate(uint64_t* event, unsigned) {
  ENTER("cuEventCreate", true);
  events[*event = next_handle++];
  return kSuccess;
}
int cuEventDestroy(uint64_t event) {
  ENTER("cuEventDestroy", true);
  return events.erase(event) ? kSuccess : kInvalidHandle;
}
int cuEventRecord(uint64_t event, uint64_t stream) {
  ENTER("cuEventRecord", true);
  if (!events.count(event)) return kInvalidHandle;
  Op op(Op::kRecord);
  op.event = event, op.sequence = events[event].recorded = next_sequence++;
  return enqueue(stream, op);
}
int cuEventQuery(uint64_t event) {
  ENTER("cuEventQuery", true);
  if (!events.count(event)) return kInvalidHandle;
  if (!is_late) settle();
  return events[event].done >= events[event].recorded ? kSuccess : kNotReady;
}
int cuMemcpyHtoDAsync(uintptr_t device, uintptr_t host, size_t bytes, uint64_t stream) {
  ENTER("cuMemcpyHtoDAsync", true);
  if (const int code = check_copy(host, device, bytes)) return code;
  return enqueue(stream, copy_of(device, host, bytes, false, kOrderStream, 0));
}
int cuMemcpyDtoHAsync(uintptr_t host, uintptr_t device, size_t bytes, uint64_t stream) {
  ENTER("cuMemcpyDtoHAsync", true);
  if (const int code = check_copy(host, device, bytes)) return code;
  return enqueue(stream, copy_of(host, device, bytes, true, kOrderStream, 0));
}
int batch(uintptr_t* to, uintptr_t* from, size_t* bytes, size_t count, Attributes* attributes, size_t* firsts,
          size_t attribute_count, uint64_t stream) {
  if (stream < 2) return kInvalidValue;  // The legacy default stream is not supported.
  if (count == 0 || attribute_count != 1 || firsts[0] != 0) return kInvalidValue;  // More are not known here.
  const int order = attributes->order;
  if (order < 1 || order > 3) return kInvalidValue;
  if (count > kDescriptorsMax) wrong("a batch of " + std::to_string(count) + " copies");
  for (size_t n = 0; n < count; n++) {
    const bool to_host = holder(device_memory, from[n]) != nullptr;
    if (const int code = check_copy(to_host ? to[n] : from[n], to_host ? from[n] : to[n], bytes[n]))
      return code;
  }
  const uint64_t number = next_batch++;
  const bool was_late = is_late;
  is_late = true;  // So that none is performed before all are queued.
  int code = kSuccess;
  for (size_t n = 0; n < count && !code; n++) {
    const bool to_host = holder(device_memory, from[n]) != nullptr;
    code = enqueue(stream, copy_of(to[n], from[n], bytes[n], to_host, order, number));
  }
  is_late = was_late;
  if (!is_late) settle();
  return code;
}
int cuMemcpyBatchAsync_13(uintptr_t* to, uintptr_t* from, size_t* bytes, size_t count, Attributes* attributes,
                          size_t* firsts, size_t attribute_count, uint64_t stream) {
  ENTER("cuMemcpyBatchAsync", true);
  return batch(to, from, bytes, count, attributes, firsts, attribute_count, stream);
}
int cuMemcpyBatchAsync_12(uintptr_t* to, uintptr_t* from, size_t* bytes, size_t count, Attributes* attributes,
                          size_t* firsts, size_t attribute_count, size_t* failed, uint64_t stream) {
  ENTER("cuMemcpyBatchAsync", true);
  if (failed) *failed = SIZE_MAX;
  return batch(to, from, bytes, count, attributes, firsts, attribute_count, stream);
}

#define NAMED(function) {#function, reinterpret_cast<void*>(function)}
const std::map<std::string, void*> kFunctions = {
    NAMED(cuInit),
    NAMED(cuDriverGetVersion),
    NAMED(cuDeviceGetCount),
    NAMED(cuDeviceGet),
    NAMED(cuDeviceGetName),
    NAMED(cuDeviceTotalMem),
    NAMED(cuDeviceGetAttribute),
    NAMED(cuDeviceGetPCIBusId),
    NAMED(cuDevicePrimaryCtxRetain),
    NAMED(cuDevicePrimaryCtxRelease),
    NAMED(cuCtxGetCurrent),
    NAMED(cuCtxPushCurrent),
    NAMED(cuCtxPopCurrent),
    NAMED(cuMemHostRegister),
    NAMED(cuMemHostUnregister),
    NAMED(cuMemHostGetDevicePointer),
    NAMED(cuMemHostAlloc),
    NAMED(cuMemFreeHost),
    NAMED(cuMemAlloc),
    NAMED(cuMemFree),
    NAMED(cuStreamCreate),
    NAMED(cuStreamDestroy),
    NAMED(cuStreamWaitEvent),
    NAMED(cuStreamSynchronize),
    NAMED(cuEventCreate),
    NAMED(cuEventDestroy),
    NAMED(cuEventRecord),
    NAMED(cuEventQuery),
    NAMED(cuMemcpyHtoDAsync),
    NAMED(cuMemcpyDtoHAsync),
};

}  // namespace

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                                   int* status);

namespace {

// cuMemcpyBatchAsync of 12.8 has an argument that 13.0 dropped; who asks says which one is meant.
void* find(const std::string& name, int version) {
  if (missing.count(name)) return nullptr;
  if (name == "cuMemcpyBatchAsync")
    return reinterpret_cast<void*>(version >= 13000 ? reinterpret_cast<void (*)()>(cuMemcpyBatchAsync_13)
                                                    : reinterpret_cast<void (*)()>(cuMemcpyBatchAsync_12));
  if (name == "cuGetProcAddress") return reinterpret_cast<void*>(cuGetProcAddress_v2);
  const auto found = kFunctions.find(name);
  return found == kFunctions.end() ? nullptr : found->second;
}

}  // namespace

extern "C" {

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t, int* status) {
  *function = find(name, version);
  if (status) *status = *function ? 0 : 1;
  return *function ? kSuccess : kNotFound;
}
int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

// ---- what tests call
// ------------------------------------------------------------------------------------------

// Back to a driver that nobody has used. What was allocated stays allocated: a test's mistake must not crash
// it.
void fake_reset() {
  std::lock_guard<std::recursive_mutex> guard(the_lock);
  streams.clear(), events.clear(), registered.clear(), pinned.clear(), device_memory.clear(), calls.clear();
  scripts.clear(), repeats.clear(), violations.clear();
  settings = kSettings;
  contexts.clear();
  retained = broken = 0;
  is_late = false;
}
void fake_late(int on) { is_late = on != 0; }
long fake_run(uint64_t seed, long limit) {
  std::lock_guard<std::recursive_mutex> guard(the_lock);
  std::mt19937_64 dice(seed);
  return run(dice, limit);
}
// The `nth` call of `name` from now on fails with `code`, once; with 0 every one does.
void fake_fail(const char* name, long nth, int code) {
  std::lock_guard<std::recursive_mutex> guard(the_lock);
  scripts[name] = {nth, code};
  if (nth == 0)
    repeats.insert(name);
  else
    repeats.erase(name);
}
void fake_set(const char* name, long value) { settings[name] = value; }
long fake_calls(const char* name) { return calls[name]; }
long fake_registered_bytes() {
  long sum = 0;
  for (const auto& [at, bytes] : registered) sum += static_cast<long>(bytes);
  return sum;
}
long fake_registrations() { return static_cast<long>(registered.size()); }
long fake_retained() { return retained; }
const char* fake_violations() { return violations.c_str(); }
// Kernels: what an engine computes on its own stream.
int fake_kernel_fill(uint64_t stream, uintptr_t device, int value, size_t bytes) {
  std::lock_guard<std::recursive_mutex> guard(the_lock);
  Op op(Op::kFill);
  op.to = device, op.value = value, op.bytes = bytes;
  return enqueue(stream, op);
}
int fake_kernel_copy(uint64_t stream, uintptr_t to, uintptr_t from, size_t bytes) {
  std::lock_guard<std::recursive_mutex> guard(the_lock);
  Op op(Op::kMove);
  op.to = to, op.from = from, op.bytes = bytes;
  return enqueue(stream, op);
}

}  // extern "C"

// A process that a test starts has no test to call these: its environment speaks instead.
const bool is_environment_read = [] {
  if (const char* names = getenv("FAKE_CUDA_MISSING")) missing.insert(names);
  if (getenv("FAKE_CUDA_DEVICES")) settings["devices"] = atol(getenv("FAKE_CUDA_DEVICES"));
  if (getenv("FAKE_CUDA_UNSUPPORTED")) settings["register_supported"] = 0;
  if (const char* script = getenv("FAKE_CUDA_FAIL")) {  // name:nth:code
    const std::string text = script;
    const size_t first = text.find(':'), second = text.find(':', first + 1);
    fake_fail(text.substr(0, first).c_str(), atol(text.c_str() + first + 1), atoi(text.c_str() + second + 1));
  }
  if (getenv(
          "FAKE_CUDA_SLOW")) {  // Copies take their time, in a thread: their process can be killed amid one.
    is_late = true;
    std::thread([] {
      for (uint64_t step = 0;; step++) {
        fake_run(step, 1);
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }).detach();
  }
  return true;
}();
