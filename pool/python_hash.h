// Hashes, chunk keys and the streaming copy for Python: called once by the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace maru {
void bind_hashes(nanobind::module_& m);

// Packed keys of a token buffer; checks types, sizes and token ids. Shared with Namespace.chunk_keys.
nanobind::bytes chunk_keys_of(nanobind::object tokens, int64_t chunk_tokens, nanobind::object seed);
}  // namespace maru
