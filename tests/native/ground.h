// What the drivers of this folder stand on: a small pool, chunks whose bytes follow from their key, and dice
// that fall the same way for the same seed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "creation.h"
#include "pool.h"

namespace maru {

// SplitMix64 (Steele, Lea and Flood, 2014).
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t roll() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t limit) { return roll() % limit; }
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

inline Key key_of(uint64_t number, uint64_t family = 0) {
  Dice dice(number * 1'000'003 + family);
  const uint64_t lo = dice.roll();
  return {lo, dice.roll()};
}

inline uint64_t content_word(Key key, uint64_t index) {
  return (key.lo + index * 0x9e3779b97f4a7c15ull) ^ key.hi;
}

// Bytes `from` to `from + bytes` of the content, in plain stores, which sanitizers see.
inline void write_content(uint8_t* at, uint64_t from, uint64_t bytes, Key key) {
  for (uint64_t n = from; n < from + bytes; n++)
    at[n - from] = static_cast<uint8_t>(content_word(key, n / 8) >> (n % 8 * 8));
}

// Offset of the first byte that is not what `key` demands; `bytes` when all are right.
inline uint64_t first_wrong(const uint8_t* at, uint64_t bytes, Key key) {
  for (uint64_t n = 0; n + 8 <= bytes; n += 8) {
    uint64_t word;
    std::memcpy(&word, at + n, 8);
    if (word == content_word(key, n / 8)) continue;
    while (at[n] == static_cast<uint8_t>(content_word(key, n / 8) >> (n % 8 * 8))) n++;
    return n;
  }
  for (uint64_t n = bytes / 8 * 8; n < bytes; n++)
    if (at[n] != static_cast<uint8_t>(content_word(key, n / 8) >> (n % 8 * 8))) return n;
  return bytes;
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::_Exit(1);
}

}  // namespace maru
