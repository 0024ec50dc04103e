// The extension module: creation and destruction of pools, errors, and what tests switch on. Everything else
// is bound in the python_*.cpp file beside its subject.
#include "crash_point.h"
#include "creation.h"
#include "layout_description.h"
#include "python_changes.h"
#include "python_hash.h"
#include "python_leaving.h"
#include "python_namespace.h"
#include "python_session.h"
#include "rebuild.h"
#include "segments.h"
#include "space.h"

namespace maru {

namespace {

// Text from shared memory and paths need not be UTF-8; an error about them must still be readable.
PyObject* readable(const std::string& text) {
  return PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
}

// Failures become the class of the same name in maru.errors, with their numbers as attributes.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Failure& failure) {
    PyObject* module = PyImport_ImportModule("maru.errors");
    PyObject* type = module ? PyObject_GetAttrString(module, failure.kind().c_str()) : nullptr;
    PyObject* fields = PyDict_New();
    PyObject* message = readable(failure.what());
    PyObject* arguments = message ? PyTuple_Pack(1, message) : nullptr;
    Py_XDECREF(message);
    PyObject* error = nullptr;
    if (type && fields && arguments) {
      for (const auto& [name, value] : failure.fields()) {
        PyObject* item = std::holds_alternative<int64_t>(value)
                             ? PyLong_FromLongLong(std::get<int64_t>(value))
                             : readable(std::get<std::string>(value));
        if (item) PyDict_SetItemString(fields, name.c_str(), item);
        Py_XDECREF(item);
      }
      error = PyObject_Call(type, arguments, fields);
    }
    if (error) PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_XDECREF(arguments);
    Py_XDECREF(fields);
    Py_XDECREF(type);
    Py_XDECREF(module);
  }
}

Medium medium_from(const std::string& name) {
  if (name == "shm") return Medium::kShm;
  if (name == "hugetlb") return Medium::kHugetlb;
  if (name == "file") return Medium::kFile;
  if (name == "devdax") return Medium::kDevdax;
  throw nb::value_error(("unknown medium " + name).c_str());
}

ChecksumPolicy checksum_from(const std::string& name) {
  if (name == "off") return ChecksumPolicy::kOff;
  if (name == "boundary") return ChecksumPolicy::kBoundary;
  if (name == "always") return ChecksumPolicy::kAlways;
  throw nb::value_error(("unknown checksum policy " + name).c_str());
}

std::vector<std::string> create(const std::string& folder, uint64_t size,
                                const std::vector<std::string>& segments, const std::string& medium,
                                uint64_t unit_bytes, uint64_t slab_bytes, uint64_t expected_chunk_bytes,
                                uint64_t slot_count, uint32_t process_limit, uint32_t namespace_limit,
                                const std::string& checksum, double cooling, bool gate, uint32_t data_mode,
                                uint32_t index_mode, const std::vector<uint64_t>& spare) {
  CreateOptions options;
  options.folder = folder;
  options.size_bytes = size;
  for (const std::string& path : segments) options.segments.push_back({path, medium_from(medium)});
  options.unit_bytes = unit_bytes;
  options.slab_bytes = slab_bytes;
  options.expected_chunk_bytes = expected_chunk_bytes;
  options.slot_count = slot_count;
  options.process_limit = process_limit;
  options.namespace_limit = namespace_limit;
  options.checksum = checksum_from(checksum);
  options.cooling_ns = seconds_to_ns(cooling, "cooling");
  options.gate = gate;
  options.data_mode = data_mode;
  options.index_mode = index_mode;
  options.spare_bytes = spare;
  MaybeRelease no_gil(true);
  return create_pool(options).notes;
}

nb::dict rebuild(const std::string& folder, const std::vector<std::string>& segments, uint32_t index_mode) {
  CreateOptions options;
  options.folder = folder;
  for (const std::string& path : segments) options.segments.push_back({path});
  options.index_mode = index_mode;
  Recovered recovered;
  {
    MaybeRelease no_gil(true);
    recovered = rebuild_pool(options);
  }
  nb::dict left_out, out;
  for (const auto& [why, count] : recovered.left_out) left_out[why.c_str()] = count;
  out["chunks"] = recovered.chunks;
  out["bytes"] = recovered.bytes;
  out["left_out"] = left_out;
  return out;
}

PointAction action_from(const std::string& name) {
  if (name == "kill") return PointAction::kKill;
  if (name == "stop") return PointAction::kStop;
  if (name == "delay") return PointAction::kDelay;
  if (name == "yield") return PointAction::kYield;
  throw nb::value_error("a crash point can kill, stop, delay or yield");
}

}  // namespace

void bind_testing(nb::module_& m) {
  m.def(
      "memory_headroom", [](const std::string& root) { return memory_headroom_bytes(root); },
      nb::arg("root") = "",
      "Bytes that this process's memory limits still allow; 2**64 - 1 for no limit. `root` stands before "
      "/proc and /sys.");
  m.def(
      "crash_points",
      [] {
        nb::dict out;
        for (const PointInfo& point : crash_points()) out[point.name.c_str()] = point.hits;
        return out;
      },
      nb::sig("def crash_points() -> dict[str, int]"),
      "Names of all crash points and how often each was reached; empty in the product build.");
  m.def(
      "arm_crash_point",
      [](const std::string& name, const std::string& action, uint64_t after, double delay) {
        if (!arm_crash_point(name, action_from(action), after, seconds_to_ns(delay, "delay")))
          throw nb::key_error(("no crash point " + name + " in this build").c_str());
      },
      nb::arg("name"), nb::arg("action"), nb::arg("after") = 1, nb::arg("delay") = 0.0,
      "Kill, stop, delay or yield at the `after`-th time the point is reached.");
  m.def("disarm_crash_points", &disarm_crash_points, "Make every crash point harmless again.");
  m.def(
      "store_late",
      [](uintptr_t to, nb::bytes data) {
        store_late(reinterpret_cast<uint8_t*>(to), data.c_str(), data.size());
      },
      nb::arg("to"), nb::arg("data"),
      "Store `data` at address `to` like a caller whose streaming stores are late: at this thread's next "
      "fence.");
  m.def("land_late_stores", &land_late_stores, "Let this thread's late stores land now.");
  m.def("mutants", &mutants, "Names of the mutants of this build; empty in the product build.");
  m.def(
      "set_mutant",
      [](const std::string& name, bool on) {
        if (!set_mutant(name, on)) throw nb::key_error(("no mutant " + name + " in this build").c_str());
      },
      nb::arg("name"), nb::arg("on"), "Switch a mutant on or off.");
}

NB_MODULE(MARU_MODULE, m) {
  // Views and handles may outlive the interpreter's teardown on purpose: the kernel takes back what they
  // hold.
  nb::set_leak_warnings(false);
  m.doc() = "The native core of Maru: the shared-memory pool, its hashes and its copy.";
  nb::register_exception_translator(translate);
  nb::enum_<Outcome>(m, "Outcome", "What a call that changes the pool answers. None of these is an error.")
      .value("RESERVED", Outcome::kReserved, "Yours to write.")
      .value("STORED", Outcome::kStored, "Sealed: everyone can read it.")
      .value("EXISTS", Outcome::kExists, "Already there.")
      .value("IN_FLIGHT", Outcome::kInFlight, "Somebody is writing it now.")
      .value("FULL", Outcome::kFull, "What could make room is pinned, or wanted sooner than this.")
      .value("BUSY", Outcome::kBusy,
             "A lock was not free in time, or the pool is gone. A miss; try again later.")
      .value("LOST", Outcome::kLost, "Too late: the key was taken over, or its namespace invalidated.");
  m.def("create_pool", &create, nb::arg("folder"), nb::arg("size"), nb::arg("segments"), nb::arg("medium"),
        nb::arg("unit_bytes") = 0, nb::arg("slab_bytes") = 0, nb::arg("expected_chunk_bytes") = 0,
        nb::arg("slot_count") = 0, nb::arg("process_limit") = 128, nb::arg("namespace_limit") = 1024,
        nb::arg("checksum") = "boundary", nb::arg("cooling") = 30.0, nb::arg("gate") = true,
        nb::arg("data_mode") = 0600, nb::arg("index_mode") = 0600, nb::arg("spare") = std::vector<uint64_t>{},
        "Create a pool in an existing folder; returns notes for people. Raises PoolExists, PoolBusy, "
        "PoolMismatch, NoSpace, BadSize.");
  m.def("rebuild_pool", &rebuild, nb::arg("folder"), nb::arg("segments"), nb::arg("index_mode") = 0600,
        nb::sig("def rebuild_pool(folder: str, segments: list[str], index_mode: int = 384) -> dict[str, "
                "typing.Any]"),
        "Make the lost index of a pool anew from its segments. Raises PoolExists, PoolBusy, PoolMismatch, "
        "NoSpace.");
  m.def(
      "add_segment",
      [](const std::string& folder, const std::string& path, const std::string& medium) {
        CreateResult result;
        const SegmentSpec spec{path, medium_from(medium)};
        MaybeRelease no_gil(true);
        const uint32_t number = add_segment(folder, spec, &result);
        return std::make_pair(number, result.notes);
      },
      nb::arg("folder"), nb::arg("path"), nb::arg("medium"),
      "Give a pool's first awaited segment its memory; returns its number and notes for people. Raises "
      "PoolNotFound, "
      "PoolBusy,\n"
      "PoolMismatch, NoSpace, BadSize, BadUrl.");
  m.def(
      "set_segment_state",
      [](const std::string& folder, uint32_t number, const std::string& state) {
        if (state != "online" && state != "draining" && state != "lost")
          throw nb::value_error("a segment can be online, draining or lost");
        set_segment_state(folder, number,
                          state == "lost"       ? SegmentState::kLost
                          : state == "draining" ? SegmentState::kDraining
                                                : SegmentState::kOnline);
      },
      nb::arg("folder"), nb::arg("number"), nb::arg("state"),
      "Empty a segment, take it back, or give it up. Raises PoolNotFound, PoolMismatch.");
  m.def(
      "destroy_pool",
      [](const std::string& folder, bool force) {
        MaybeRelease no_gil(true);
        destroy_pool(folder, force);
      },
      nb::arg("folder"), nb::arg("force"),
      "Remove a pool's files. Raises PoolBusy (unless force), PoolNotFound.");
  m.def("attached_processes", &attached_processes, nb::arg("folder"),
        "Who holds a pool, by byte lock: 'pid (name)' each.");
  m.def("layout_description", &layout_description, "The byte layout of this build as JSON text.");
  m.def("layout_crc", &layout_crc, "CRC-32 of that text, as in every superblock.");
  bind_hashes(m);
  bind_namespaces(m);
  bind_views(m);
  bind_writing(m);
  bind_pool(m);
  bind_changes(m);
  bind_leaving(m);
  bind_testing(m);
}

}  // namespace maru
