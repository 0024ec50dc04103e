// Python face of blake3, xxh3, chunk_keys and copy: buffers in, bytes and ints out, the GIL let go for long
// work. Bad arguments are refused here; the functions below see sizes that fit.
#include "python_hash.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>
#include <vector>

#include "blake3.h"
#include "chunk_keys.h"
#include "coherence.h"
#include "copy.h"
#include "python_gil.h"
#include "xxh3.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace maru {
namespace {

// A C-contiguous buffer of a Python object, held for as long as this lives.
class Buffer {
 public:
  explicit Buffer(nb::handle object, int flags = PyBUF_SIMPLE) {
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nb::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }
  const Py_buffer& view() const { return view_; }

 private:
  Py_buffer view_;
};

nb::bytes new_bytes(size_t size) {
  PyObject* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
  if (!bytes) throw nb::python_error();
  return nb::steal<nb::bytes>(bytes);
}

// The content of bytes that nobody else has seen yet.
uint8_t* fresh_content(nb::bytes& bytes) {
  return reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(bytes.ptr()));
}

[[noreturn]] void refuse_path(const std::string& path) {
  throw nb::value_error(("this CPU or build has no path named '" + path + "'").c_str());
}

TokenWidth token_width(const Py_buffer& view) {
  const char* format = view.format ? view.format : "B";
  const char* type = *format == '<' || *format == '=' || *format == '@' ? format + 1 : format;
  if (std::strlen(type) == 1 && std::strchr("iIlLqQnN", *type)) {
    if (view.itemsize == 4) return TokenWidth::k32;
    if (view.itemsize == 8) return TokenWidth::k64;
  }
  throw nb::type_error(
      ("tokens must be int32, uint32, int64 or uint64 in this machine's byte order, not items of "
       "buffer format '" +
       std::string(format) + "'")
          .c_str());
}

}  // namespace

nb::bytes chunk_keys_of(nb::object tokens, int64_t chunk_tokens, nb::object seed) {
  if (chunk_tokens < 1)
    throw nb::value_error(
        ("chunk_tokens is " + std::to_string(chunk_tokens) + ", must be at least 1").c_str());
  const Buffer seed_buffer(seed);
  if (seed_buffer.size() != kChunkKeySize)
    throw nb::value_error(("seed is " + std::to_string(seed_buffer.size()) + " bytes, must be 16").c_str());
  const Buffer token_buffer(tokens, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT);
  const TokenWidth width = token_width(token_buffer.view());
  if (token_buffer.view().ndim != 1)
    throw nb::value_error(
        ("tokens has " + std::to_string(token_buffer.view().ndim) + " dimensions, must have 1").c_str());

  const size_t token_count = token_buffer.size() / static_cast<size_t>(token_buffer.view().itemsize);
  nb::bytes keys = new_bytes(token_count / static_cast<size_t>(chunk_tokens) * kChunkKeySize);
  uint8_t* keys_out = fresh_content(keys);
  ChunkKeysResult result;
  {
    const MaybeRelease pause(token_buffer.size() >= kReleaseGilBytes);
    result = chunk_keys(token_buffer.data(), width, token_count, static_cast<size_t>(chunk_tokens),
                        seed_buffer.data(), keys_out);
  }
  if (!result.ok)
    throw nb::value_error(
        ("the token id at index " + std::to_string(result.bad_token_index) + " is " +
         (width == TokenWidth::k32 ? "negative or above 2**31 - 1" : "negative or above 2**32 - 1"))
            .c_str());
  return keys;
}

namespace {

// Runs `copy(dst, src, size)` on two buffers of equal size that do not overlap.
template <class Copy>
void copy_buffers(nb::object dst, nb::object src, Copy copy) {
  const Buffer to(dst, PyBUF_WRITABLE);
  const Buffer from(src);
  if (to.size() != from.size())
    throw nb::value_error(("dst is " + std::to_string(to.size()) + " bytes, src is " +
                           std::to_string(from.size()) + ": sizes must be equal")
                              .c_str());
  const auto to_begin = reinterpret_cast<uintptr_t>(to.data());
  const auto from_begin = reinterpret_cast<uintptr_t>(from.data());
  if (to_begin < from_begin + from.size() && from_begin < to_begin + to.size())
    throw nb::value_error("dst and src overlap");
  const MaybeRelease pause(to.size() >= kReleaseGilBytes);
  copy(to.data(), from.data(), to.size());
}

void bind_functions(nb::module_& m) {
  m.def(
      "blake3",
      [](nb::object data, int64_t size) {
        if (size < 0)
          throw nb::value_error(("size is " + std::to_string(size) + ", must not be negative").c_str());
        const Buffer buffer(data);
        nb::bytes out = new_bytes(static_cast<size_t>(size));
        uint8_t* content = fresh_content(out);
        const MaybeRelease pause(buffer.size() + static_cast<size_t>(size) >= kReleaseGilBytes);
        blake3(buffer.data(), buffer.size(), content, static_cast<size_t>(size));
        return out;
      },
      "data"_a, "size"_a = 32, nb::sig("def blake3(data: object, size: int = 32) -> bytes"),
      "The first `size` bytes of BLAKE3's output for the bytes of `data`, a C-contiguous buffer.\n\n"
      "Raises ValueError if `size` is negative, TypeError if `data` has no buffer.");
  m.def(
      "blake3_keyed",
      [](nb::object key, nb::object data, int64_t size) {
        const Buffer secret(key), buffer(data);
        if (size < 0)
          throw nb::value_error(("size is " + std::to_string(size) + ", must not be negative").c_str());
        if (secret.size() != 32) throw nb::value_error("a key of BLAKE3 is 32 bytes");
        if (buffer.size() > kBlake3KeyedMax) throw nb::value_error("at most 64 bytes are hashed with a key");
        nb::bytes out = new_bytes(static_cast<size_t>(size));
        blake3_keyed(secret.data(), buffer.data(), buffer.size(), fresh_content(out),
                     static_cast<size_t>(size));
        return out;
      },
      "key"_a, "data"_a, "size"_a = 32,
      nb::sig("def blake3_keyed(key: object, data: object, size: int = 32) -> bytes"),
      "The first `size` bytes of BLAKE3's keyed hash: `key` of 32 bytes, `data` of at most 64.\n\n"
      "Raises ValueError for other sizes, TypeError for what has no buffer.");
  m.def(
      "xxh3_64",
      [](nb::object data, uint64_t seed) {
        const Buffer buffer(data);
        const MaybeRelease pause(buffer.size() >= kReleaseGilBytes);
        return xxh3_64(buffer.data(), buffer.size(), seed);
      },
      "data"_a, "seed"_a = 0, nb::sig("def xxh3_64(data: object, seed: int = 0) -> int"),
      "XXH3-64 of the bytes of `data`, a C-contiguous buffer; `seed` is 0 to 2**64 - 1.\n\n"
      "A checksum against damage, not against malice. Raises TypeError if `data` has no buffer.");
  m.def("chunk_keys", &chunk_keys_of, "tokens"_a, "chunk_tokens"_a, "seed"_a,
        nb::sig("def chunk_keys(tokens: object, chunk_tokens: int, seed: bytes) -> bytes"),
        "Packed keys (n x 16 bytes) of the n whole chunks of `chunk_tokens` tokens each.\n\n"
        "key[i] = BLAKE3(key[i-1] + BLAKE3(tokens[i]))[:16], where key[-1] is `seed` (16 bytes, the digest "
        "of the\n"
        "namespace) and ids are hashed as little-endian u32. `tokens` is a one-dimensional C-contiguous "
        "buffer of\n"
        "int32, uint32, int64 or uint64; equal ids give equal keys whatever the type. Tokens after the last "
        "whole\n"
        "chunk get no key, but are checked.\n\n"
        "Raises ValueError naming the index of the first id that is negative, above 2**31 - 1 (32-bit types) "
        "or\n"
        "above 2**32 - 1 (64-bit types); ValueError for `chunk_tokens` below 1 or a seed that is not 16 "
        "bytes;\n"
        "TypeError for any other item type.");
  m.def(
      "stream_copy", [](nb::object dst, nb::object src) { copy_buffers(dst, src, stream_copy); }, "dst"_a,
      "src"_a, nb::sig("def stream_copy(dst: object, src: object) -> None"),
      "Copy the bytes of `src` into the writable buffer `dst`, past the caches if they are many.\n\n"
      "When it returns, a following release store (the seal) publishes the bytes to other processes.\n"
      "Raises ValueError if the sizes differ or the buffers overlap, BufferError if `dst` is read-only.");
  m.def(
      "xxh3_64_copying",
      [](nb::object dst, nb::object src) {
        uint64_t hash = 0;
        copy_buffers(dst, src, [&hash](void* to, const void* from, size_t size) {
          hash = xxh3_64_copying(to, from, size);
        });
        return hash;
      },
      "dst"_a, "src"_a, nb::sig("def xxh3_64_copying(dst: object, src: object) -> int"),
      "As `stream_copy`, and returns XXH3-64 of the bytes: one pass over `src` for both.");
  m.def(
      "_copy_pieces",
      [](nb::object targets, nb::object sources, uint64_t size) {
        const Buffer to(targets), from(sources);
        const auto* target_list = reinterpret_cast<const uint64_t*>(to.data());
        const auto* source_list = reinterpret_cast<const uint64_t*>(from.data());
        const auto lies_well = [](const uint64_t* list) {
          return reinterpret_cast<uintptr_t>(list) % alignof(uint64_t) == 0;
        };
        if (to.size() != from.size() || to.size() % sizeof(uint64_t) != 0 || !lies_well(target_list) ||
            !lies_well(source_list))
          throw nb::value_error("targets and sources must be equally many aligned addresses of 8 bytes");
        const nb::gil_scoped_release no_gil;
        copy_pieces(target_list, source_list, to.size() / sizeof(uint64_t), size);
      },
      "targets"_a, "sources"_a, "size"_a,
      nb::sig("def _copy_pieces(targets: object, sources: object, size: int) -> None"),
      "Copy n pieces of `size` bytes from `sources` to `targets`: two buffers of n native 64-bit "
      "addresses.\n\n"
      "Without the GIL, as stream_copy. The addresses are the caller's to answer for: memory that is mapped, "
      "lives\n"
      "until this returns, and does not overlap. Raises ValueError for lists of different lengths.");
  m.def(
      "_follow_chain",
      [](nb::object memory, uint64_t hops) {
        const Buffer lines(memory);
        const uint64_t count = lines.size() / 64;
        if (count == 0) throw nb::value_error("a chain needs at least one line of 64 bytes");
        const nb::gil_scoped_release no_gil;
        return follow_chain(lines.data(), count, hops);
      },
      "memory"_a, "hops"_a, nb::sig("def _follow_chain(memory: object, hops: int) -> int"),
      "Follow a chain of 64-byte lines, each beginning with the number of the next (u32): `hops` loads that "
      "wait\n"
      "for each other. For measuring latency. Raises ValueError for less than a line.");
  m.def(
      "flush_lines",
      [](nb::object memory) {
        const Buffer buffer(memory);
        nb::gil_scoped_release no_gil;
        flush_lines(buffer.data(), buffer.size());
      },
      "memory"_a, nb::sig("def flush_lines(memory: object) -> None"),
      "Take these bytes out of every cache of this host, written back: for memory that another host maps too "
      "and no hardware\n"
      "keeps coherent. By the writer before it tells of them, by the reader after it was told.");
  m.def("flush_path", &flush_path,
        "How `flush_lines` does it here: 'clflushopt', 'clflush', 'dc civac', or 'none'.");
  m.def("stream_copy_path", &stream_copy_path,
        "What `stream_copy` uses for large copies here: 'avx512-nt', 'avx2-nt', 'sse2-nt' or 'memcpy'.");
}

void bind_test_hooks(nb::module_& m) {
  m.def(
      "hash_paths",
      [] {
        std::vector<std::string> found;
        for (const char* path : {"avx512", "avx2", "portable"})
          if (blake3_equal_inputs_with(path, nullptr, 0, 0, nullptr)) found.push_back(path);
        return found;
      },
      "For tests: the ways of hashing that this CPU has, fastest first.");
  m.def(
      "stream_copy_paths",
      [] {
        std::vector<std::string> found;
        for (const char* path : {"avx512-nt", "avx2-nt", "sse2-nt", "memcpy"})
          if (stream_copy_with(path, nullptr, nullptr, 0)) found.push_back(path);
        return found;
      },
      "For tests: the ways of copying that this CPU has, fastest first.");
  m.def(
      "blake3_equal_inputs_with",
      [](const std::string& path, nb::object inputs, int64_t input_size) {
        const Buffer buffer(inputs);
        if (input_size < 1 || buffer.size() % static_cast<size_t>(input_size) != 0)
          throw nb::value_error("input_size must be at least 1 and divide the size of inputs");
        const size_t count = buffer.size() / static_cast<size_t>(input_size);
        nb::bytes out = new_bytes(count * kBlake3DigestSize);
        if (!blake3_equal_inputs_with(path.c_str(), buffer.data(), static_cast<size_t>(input_size), count,
                                      fresh_content(out)))
          refuse_path(path);
        return out;
      },
      "path"_a, "inputs"_a, "input_size"_a,
      nb::sig("def blake3_equal_inputs_with(path: str, inputs: object, input_size: int) -> bytes"),
      "For tests: digests (n x 32 bytes) of n inputs that lie back to back, by the named path.\n\n"
      "Raises ValueError if this CPU lacks the path or `input_size` does not divide the buffer.");
  m.def(
      "xxh3_64_with",
      [](const std::string& path, nb::object data, uint64_t seed) {
        const Buffer buffer(data);
        uint64_t hash;
        if (!xxh3_64_with(path.c_str(), buffer.data(), buffer.size(), seed, &hash)) refuse_path(path);
        return hash;
      },
      "path"_a, "data"_a, "seed"_a = 0,
      nb::sig("def xxh3_64_with(path: str, data: object, seed: int = 0) -> int"),
      "For tests: `xxh3_64` by the named path. Raises ValueError if this CPU lacks it.");
  m.def(
      "xxh3_64_copying_with",
      [](const std::string& path, nb::object dst, nb::object src) {
        uint64_t hash = 0;
        copy_buffers(dst, src, [&](void* to, const void* from, size_t size) {
          if (!xxh3_64_copying_with(path.c_str(), to, from, size, &hash)) refuse_path(path);
        });
        return hash;
      },
      "path"_a, "dst"_a, "src"_a,
      nb::sig("def xxh3_64_copying_with(path: str, dst: object, src: object) -> int"),
      "For tests: `xxh3_64_copying` of at least 1024 bytes by the named path. Raises ValueError if this CPU "
      "lacks "
      "it.");
  m.def(
      "stream_copy_with",
      [](const std::string& path, nb::object dst, nb::object src) {
        copy_buffers(dst, src, [&](void* to, const void* from, size_t size) {
          if (!stream_copy_with(path.c_str(), to, from, size)) refuse_path(path);
        });
      },
      "path"_a, "dst"_a, "src"_a,
      nb::sig("def stream_copy_with(path: str, dst: object, src: object) -> None"),
      "For tests: `stream_copy` by the named path, whatever the size. Raises ValueError if this CPU lacks "
      "it.");
}

}  // namespace

void bind_hashes(nb::module_& m) {
  bind_functions(m);
  bind_test_hooks(m);
}

}  // namespace maru
