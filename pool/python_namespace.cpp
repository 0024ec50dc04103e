#include "python_namespace.h"

#include "namespace_table.h"
#include "python_hash.h"
#include "shares.h"

namespace maru {

Namespace::Namespace(nb::object owner, uint32_t id) : owner_(std::move(owner)), id_(id) {
  std::memcpy(pool_uuid_, nb::cast<Handle&>(owner_).pool().super->pool_uuid, sizeof pool_uuid_);
}

bool Namespace::belongs_to(const Pool& pool) const {
  return id_ < pool.geometry.namespace_limit &&
         std::memcmp(pool_uuid_, pool.super->pool_uuid, sizeof pool_uuid_) == 0;
}

NamespaceRow& Namespace::row() { return nb::cast<Handle&>(owner_).pool().namespaces[id_]; }

nb::bytes Namespace::digest() { return nb::bytes(row().digest, 16); }

uint64_t Namespace::epoch() { return row().epoch.load(); }

uint64_t Namespace::bump() {
  Pool& pool = nb::cast<Handle&>(owner_).pool();
  refuse_readers(pool, "invalidates nothing");
  return bump_namespace(pool, id_);
}

nb::object Namespace::ttl() {
  const uint64_t ttl_ns = row().ttl_ns.load();
  return ttl_ns == 0 ? nb::none() : nb::object(nb::float_(static_cast<double>(ttl_ns) * 1e-9));
}

nb::bytes Namespace::chunk_keys(nb::handle tokens, int64_t chunk_tokens) {
  return chunk_keys_of(nb::borrow(tokens), chunk_tokens, digest());
}

void bind_namespaces(nb::module_& m) {
  nb::class_<Namespace>(
      m, "Namespace",
      "Everything that must match for bytes to be reusable, registered in a pool. Made by Pool.namespace().")
      .def_prop_ro("id", &Namespace::id, "Row in the pool's namespace table.")
      .def_prop_ro("digest", &Namespace::digest, "16 bytes: the seed of this namespace's key chains.")
      .def_prop_ro("epoch", &Namespace::epoch, "Chunks stored in an earlier epoch are a miss.")
      .def_prop_ro("ttl", &Namespace::ttl, nb::sig("def ttl(self) -> float | None"),
                   "Seconds a chunk lives from its store, or None.")
      .def("bump", &Namespace::bump,
           "Invalidate everything stored in this namespace so far, in O(1). Returns the new epoch. Raises "
           "ReadsOnly, "
           "NotAttached.")
      .def("chunk_keys", &Namespace::chunk_keys, nb::arg("token_ids"), nb::arg("chunk_tokens") = 256,
           nb::sig(
               "def chunk_keys(self, token_ids: typing_extensions.Buffer, chunk_tokens: int = 256) -> bytes"),
           "Packed keys, n x 16 bytes, of the complete chunks of a prompt.\n\n"
           "`token_ids` is a contiguous buffer of int32, uint32, int64 or uint64 (numpy, array.array, a "
           "torch tensor's\n"
           ".numpy()); all give the same keys. key[i] = BLAKE3(key[i-1] || BLAKE3(tokens[i] as little-endian "
           "u32))[:16],\n"
           "key[-1] = digest. An incomplete tail chunk gets no key. Raises ValueError for a token id below 0 "
           "or above\n"
           "2**32-1, TypeError for another item type.");
}

void bind_namespace_methods(nb::class_<Handle>& pool) {
  pool.def(
      "_register_namespace",
      [](nb::handle self, nb::bytes digest, const std::string& tenant, nb::handle ttl, uint32_t flags) {
        Handle& handle = nb::cast<Handle&>(self);
        if (digest.size() != 16) throw nb::value_error("a namespace digest is 16 bytes");
        const uint64_t ttl_ns = ttl.is_none() ? 0 : seconds_to_ns(nb::cast<double>(ttl), "ttl");
        const uint32_t id = register_namespace(handle.pool(), static_cast<const uint8_t*>(digest.data()),
                                               tenant, ttl_ns, flags);
        return Namespace(nb::borrow(self), id);
      },
      nb::arg("digest"), nb::arg("tenant"), nb::arg("ttl").none(), nb::arg("flags") = 0,
      nb::sig(
          "def _register_namespace(self, digest: bytes, tenant: str, ttl: float | None, flags: int = 0) -> "
          "Namespace"),
      "Find or register a namespace by its digest. `flags` are added to those that it has: 1 wiped, 2 held, "
      "4 "
      "sealed,\n"
      "8 uncached. Raises NamespaceTableFull, PoolBusy.");
  pool.def(
      "_policy_of",
      [](nb::handle self, nb::bytes digest) {
        if (digest.size() != 16) throw nb::value_error("a namespace digest is 16 bytes");
        const Pool& pool = nb::cast<Handle&>(self).pool();
        return policy_of(pool, static_cast<const uint8_t*>(digest.data()));
      },
      nb::arg("digest"), nb::sig("def _policy_of(self, digest: bytes) -> int"),
      "The flags of the namespace with this digest; 0 when there is none.");
  pool.def(
      "_shares",
      [](nb::handle self) {
        const Pool& pool = nb::cast<Handle&>(self).pool();
        nb::list out;
        for (uint32_t number = 1; number < pool.geometry.tenant_limit; number++) {
          const TenantRow& row = pool.tenants[number];
          if (row.word.load(std::memory_order_acquire) == 0) break;  // Filled from the first on.
          PyObject* name = PyUnicode_DecodeUTF8(
              row.name, static_cast<Py_ssize_t>(strnlen(row.name, sizeof row.name)), "surrogateescape");
          if (!name) throw nb::python_error();
          out.append(nb::make_tuple(nb::steal(name), row.share_bytes.load()));
        }
        return out;
      },
      nb::sig("def _shares(self) -> list[tuple[str, int]]"), "(name, bytes promised to it) of each tenant.");
  pool.def(
      "_set_share",
      [](nb::handle self, const std::string& tenant, nb::handle share, nb::handle limit, bool refuse) {
        Pool& pool = nb::cast<Handle&>(self).pool();
        refuse_readers(pool, "promises nobody anything");
        set_share(pool, tenant, nb::cast<uint64_t>(share), nb::cast<uint64_t>(limit), refuse);
      },
      nb::arg("tenant"), nb::arg("share_bytes"), nb::arg("limit_bytes"), nb::arg("refuse"),
      nb::sig("def _set_share(self, tenant: str, share_bytes: int, limit_bytes: int, refuse: bool) -> None"),
      "What Pool.set_share says. Raises ShareTooLarge, PoolBusy, NamespaceTableFull, "
      "ReadsOnly.");
}

}  // namespace maru
