// From token ids to chunk keys: key[i] = BLAKE3(key[i-1] || BLAKE3(tokens[i]))[:16].
//
// Promises: the same ids give the same keys whatever their width in memory, and equal prefixes under equal
// seeds give equal keys on every machine. The keys live on disk and on the wire; they may never change.
// Leaves to others: the seed (the digest of the namespace) and what is stored under a key.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maru {

inline constexpr size_t kChunkKeySize = 16;

// Width of one token id in memory; whether the buffer's type was signed makes no difference.
enum class TokenWidth { k32, k64 };

struct ChunkKeysResult {
  size_t key_count;        // Keys written; 0 if not ok.
  bool ok;                 // False: an id was negative, above 2^31 - 1 (k32) or above 2^32 - 1 (k64).
  size_t bad_token_index;  // The first such id, if not ok.
};

// Writes token_count / chunk_tokens keys of 16 bytes to `keys_out`. Tokens after the last whole chunk get no
// key, but are checked like all others. If the result is not ok, the content of `keys_out` means nothing.
// `chunk_tokens` is at least 1. `tokens` may lie at any alignment.
ChunkKeysResult chunk_keys(const void* tokens, TokenWidth width, size_t token_count, size_t chunk_tokens,
                           const uint8_t seed[kChunkKeySize], uint8_t* keys_out);

}  // namespace maru
