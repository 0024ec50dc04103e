// How many instructions an answer takes to a caller who may know of some chunks only, by what the key is.
//
//   answers FOLDER      prints "COUNT QUESTION: KIND" for each question and kind of key
//
// Counted as in instructions.cpp. The caller may know of namespace 9 alone; all chunks are of namespace 0.
#include <array>
#include <vector>

#include "attach.h"
#include "chunk_index.h"
#include "creation.h"
#include "pins.h"
#include "reservation.h"
#include "stepping.h"

namespace maru {

namespace {

constexpr uint64_t kChunks = 64, kTogether = 16, kChunkBytes = 4096;
constexpr std::array<uint8_t, 2> kMine = {0, 2};  // Namespace 9.

enum class Kind : uint64_t { kNobodys, kAnothers, kWrittenByAnother };
constexpr std::array<const char*, 3> kKinds = {"nobody's", "another's", "written by another"};

Key key_of_kind(Kind kind, uint64_t number) { return key_of(number, static_cast<uint64_t>(kind)); }

class Subject {
 public:
  explicit Subject(const std::string& folder) {
    CreateOptions options;
    options.folder = folder;
    options.segments = {{"segment-0", Medium::kShm}};
    options.size_bytes = 8 << 20;
    options.slot_count = 8192;
    options.process_limit = 8;
    options.gate = false;  // It counts a sample of keys, chosen by what they are.
    create_pool(options);
    pool_ = attach_pool({folder, "answers"});
    for (uint64_t n = 0; n < kChunks; n++) {
      if (seal_chunk(*pool_, reserve(key_of_kind(Kind::kAnothers, n))) != Outcome::kStored) fail("seal");
      reserve(key_of_kind(Kind::kWrittenByAnother, n));
    }
  }

  // The only tags that match are the keys' own: 32 bits each.
  void lookup(const Key* keys, uint64_t count) {
    if (count_leading(*pool_, keys, count, mine_) != 0) fail("lookup");
  }
  void pin(const Key* keys, uint64_t count) {
    if (pin_leading(*pool_, keys, count, pinned_.data(), mine_) != 0) fail("pin");
  }
  void find_writer(const Key* keys, uint64_t count) {
    for (uint64_t n = 0; n < count; n++)
      if (is_reserved(*pool_, keys[n], mine_)) fail("find_writer");
  }
  void remove(const Key* keys, uint64_t count) {
    for (uint64_t n = 0; n < count; n++)
      if (remove_key(*pool_, keys[n], &mine_)) fail("remove");
  }

 private:
  Reservation reserve(Key key) {
    ReserveRequest request;
    request.key = key;
    request.size_bytes = kChunkBytes;
    Reservation r;
    if (reserve_chunk(*pool_, request, &r) != Outcome::kReserved) fail("reserve");
    return r;
  }

  std::unique_ptr<Pool> pool_;
  NamespaceSet mine_{kMine.data(), kMine.size()};
  std::array<PinnedExtent, kTogether> pinned_;
};

struct Question {
  const char* name;
  void (Subject::*ask)(const Key* keys, uint64_t count);
  uint64_t together;
};

constexpr std::array<Question, 5> kQuestions = {{
    {"lookup of 1", &Subject::lookup, 1},
    {"lookup of 16", &Subject::lookup, kTogether},
    {"pin of 16", &Subject::pin, kTogether},
    {"is it written, of 16", &Subject::find_writer, kTogether},
    {"removal of 16", &Subject::remove, kTogether},
}};

// Each list of keys is asked about once before it is counted.
[[noreturn]] void be_counted(const std::string& folder) {
  hide_avx512();
  const auto subject = std::make_unique<Subject>(folder);
  std::array<std::vector<Key>, kKinds.size()> keys;
  for (uint64_t kind = 0; kind < kKinds.size(); kind++)
    for (uint64_t n = 0; n < kChunks; n++) keys[kind].push_back(key_of_kind(static_cast<Kind>(kind), n));
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) denied();
  mark();
  mark();
  for (const Question& question : kQuestions)
    for (const std::vector<Key>& asked : keys)
      for (const bool counted : {false, true}) {
        if (counted) mark();
        for (uint64_t n = 0; n < kChunks; n += question.together)
          (subject.get()->*question.ask)(&asked[n], question.together);
        if (counted) mark();
      }
  _exit(0);
}

}  // namespace

}  // namespace maru

int main(int argc, char** argv) {
  std::vector<maru::Stretch> stretches;
  for (const maru::Question& question : maru::kQuestions)
    for (const char* kind : maru::kKinds) stretches.push_back({std::string(question.name) + ": " + kind, 1});
  return maru::count_stretches(argc, argv, maru::be_counted, stretches);
}
