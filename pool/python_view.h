// Reading from Python: views that hold a pin as long as they, or anything made from them, live.
#pragma once

#include "chunk_index.h"
#include "python_session.h"

namespace maru {

// A read-only memoryview of a chunk that is pinned already; takes over that pin.
nb::object make_view(const SessionRef& session, const PinnedExtent& chunk);

// The leading run of a batch of keys, pinned until exit.
class PinnedPrefix {
 public:
  // `mine`: chunks of other namespaces are absent; null: there are none such.
  PinnedPrefix(SessionRef session, const PackedKeys& keys, const NamespaceSet* mine = nullptr);
  ~PinnedPrefix() { release(); }
  PinnedPrefix(const PinnedPrefix&) = delete;

  uint64_t count() const { return count_; }
  uint64_t byte_count() const;
  nb::list views() const;                                // Built on access; each view takes a pin of its own.
  nb::list spans(uint64_t first, uint64_t count) const;  // The same, chunks that lie side by side as one.
  nb::bytes extents() const;
  nb::bytes stamps() const;  // n x (u64 offset in the data range, u64 size).
  void release();

 private:
  void need_open() const;

  SessionRef session_;
  std::vector<PinnedExtent> chunks_;
  uint64_t count_ = 0;  // Still told after release, as are the bytes.
  uint64_t byte_count_ = 0;
  bool open_ = true;
};

}  // namespace maru
