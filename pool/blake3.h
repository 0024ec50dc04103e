// BLAKE3 in hash mode, and keyed for a single block, written from the published specification (no key
// derivation).
//
// Promises: the digests of the official test vectors on every CPU, whichever path is chosen at run time.
// Leaves to others: what is hashed and how digests become chunk keys (chunk_keys.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace maru {

inline constexpr size_t kBlake3DigestSize = 32;

// Bytes that Blake3Runs takes at a time: 64 BLAKE3 chunks, a complete subtree that keeps all lanes busy.
inline constexpr size_t kBlake3RunSize = 64 * 1024;

// One way of computing many compressions at a time: which vector instructions, how many lanes.
struct Blake3Path;

// Writes the first `out_size` bytes of BLAKE3's output for `size` bytes of data.
void blake3(const void* data, size_t size, uint8_t* out, size_t out_size = kBlake3DigestSize);

// The same with a key, of one block of data: who has not the key can neither make nor foresee the output.
inline constexpr size_t kBlake3KeyedMax = 64;
void blake3_keyed(const uint8_t key[32], const void* data, size_t size, uint8_t* out, size_t out_size);

// Hashes `count` inputs of `input_size` bytes each that lie back to back; writes `count` digests of 32 bytes.
// Inputs of whole 64-byte blocks up to 1 KiB run one per lane; longer ones share the lanes by their chunks.
void blake3_equal_inputs(const uint8_t* inputs, size_t input_size, size_t count, uint8_t* out32);

// keys_out[i] = first 16 bytes of BLAKE3(keys_out[i - 1] || digests[i]), where keys_out[-1] is `seed`.
// `digests` holds `count` x 32 bytes, `keys_out` takes `count` x 16 bytes and may not overlap `digests`.
void blake3_chain(const uint8_t seed[16], const uint8_t* digests, size_t count, uint8_t* keys_out);

// Hashes one long input whose bytes are at hand only piece by piece.
class Blake3Runs {
 public:
  Blake3Runs();
  explicit Blake3Runs(const Blake3Path& path) : path_(path) {}

  // Takes the next kBlake3RunSize bytes. More bytes must follow: the last run belongs to finish().
  void append_run(const uint8_t* run);

  // Takes the last 0 to kBlake3RunSize bytes (0 only if nothing was appended) and writes the output.
  void finish(const uint8_t* tail, size_t tail_size, uint8_t* out, size_t out_size);

 private:
  // 2^64 bytes are 2^48 runs, and a complete subtree of each height waits here at most once.
  static constexpr size_t kDepthMax = 49;

  const Blake3Path& path_;
  uint64_t run_count_ = 0;
  size_t depth_ = 0;
  uint8_t waiting_[kDepthMax][kBlake3DigestSize];  // Chaining values of complete subtrees, largest first.
};

// For tests, which prove that all paths agree: "avx512", "avx2" or "portable" by name.
// False, and nothing written, if this CPU or build lacks the path.
bool blake3_equal_inputs_with(const char* path, const uint8_t* inputs, size_t input_size, size_t count,
                              uint8_t* out32);

}  // namespace maru
