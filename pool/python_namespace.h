// A registered namespace, as Python holds it.
#pragma once

#include "python_session.h"

namespace maru {

class Namespace {
 public:
  Namespace(nb::object owner, uint32_t id);
  uint32_t id() const { return id_; }
  bool belongs_to(const Pool& pool) const;
  nb::bytes digest();
  uint64_t epoch();
  uint64_t bump();
  nb::object ttl();
  nb::bytes chunk_keys(nb::handle tokens, int64_t chunk_tokens);

 private:
  NamespaceRow& row();

  nb::object owner_;  // The pool handle.
  uint32_t id_;
  uint8_t pool_uuid_[16];  // A number means something in one pool only.
};

void bind_namespaces(nb::module_& m);
void bind_namespace_methods(nb::class_<Handle>& pool);

}  // namespace maru
