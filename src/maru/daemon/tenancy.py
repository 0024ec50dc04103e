"""Whose namespaces a request may touch: by who asks, as its key proved, never by what it says of itself.

Holds:      which namespaces are visible to which client, for what; registering them; a tenant's view of the figures.
Promises:   to a client of one tenant another's namespaces, keys and figures are what is not there at all. The same
            words answer a number that nobody has and a number that is somebody else's.
Leaves:     what a request means to `control`, who a client is to `server`, what it may to `maru.credentials`.

A client is None where nobody asks who somebody is (a daemon without keys): then everybody sees everything, and a
namespace's tenant is what the client says.

What remains visible is that a key cannot be stored: a pool has one place for a key, whoever stored it there. The answer
is then FULL, which a key may always get, since its two buckets of the index may be full; repeated for one key in an
empty pool it tells that somebody has it, and so does its timing. Who can make that use of it knows another tenant's key
already: keys of a tenant with a secret seed cannot be computed by others. Who can compute keys can also store under
them first. Clients of the other tenant then do not see that chunk, but processes of this host would: they ask for
keys, whosever they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from maru.credentials import DEFAULT_TENANT, TENANT_BYTES_MAX, Client, Level, PoolSecret, level_anywhere, level_for
from maru.daemon.sessions import Session
from maru.errors import BadMessage, Forbidden, NamespaceTableFull
from maru.pool import POLICIES, Namespace, Outcome, Pool, seeded_digest

ROWS_S = 1.0
"""How old what is known of the namespace table may be: so much later a namespace is seen that a process of this host
registered. A namespace keeps its tenant for ever."""
NO_NAMESPACE = 0
"""The number of what was stored under none. It is the default tenant's."""

Seed = Callable[[str, bytes], bytes]
"""(tenant, digest) to the digest that seeds that tenant's keys."""

_PUBLIC = (
    "uuid", "format", "folder", "size_bytes", "unit_bytes", "slab_bytes", "slab_count", "process_limit",
    "namespace_limit", "checksum", "medium", "copy_path", "created_unix_ns", "now_ns",
)  # fmt: skip
_PUBLIC_OF_SEGMENTS = ("uuid", "path", "medium", "state", "first_byte", "data_offset", "bytes", "numa_node")


def tenants_seed(pool: Pool, pool_secret: PoolSecret | None) -> Seed:
    """Seeds with the tenants' secrets: one that the pool's URL gives, as for any process of this host, else one made of
    the pool's. The default tenant's digests stay what they are unless the URL gives its secret.
    """

    def seed(tenant: str, digest: bytes) -> bytes:
        secret = tenant_secret(pool, pool_secret, tenant)
        return seeded_digest(secret, digest) if secret else digest

    return seed


def tenant_secret(pool: Pool, pool_secret: PoolSecret | None, tenant: str) -> bytes | None:
    """What seeds a tenant's keys (32 bytes), None for nothing; see tenants_seed."""
    secret = pool._secret_of(tenant)
    if secret is None and pool_secret is not None and tenant != DEFAULT_TENANT:
        secret = pool_secret.of(tenant)
    return secret


@dataclass(frozen=True)
class _Row:
    digest: bytes
    tenant: str
    ttl_s: float | None


class Tenancy:
    """Of one pool. Not thread-safe."""

    def __init__(self, pool: Pool, namespaces_max: int, clock: Callable[[], float], seed: Seed | None) -> None:
        """`namespaces_max`: of one tenant's, above which its clients register no new ones."""
        self._pool = pool
        self._namespaces_max = namespaces_max
        self._clock = clock
        self._seed = seed
        self._registered: dict[int, Namespace] = {}
        self._rows: dict[int, _Row] = {}
        self._rows_s = float("-inf")
        self._unshared: frozenset[int] = frozenset()
        """Namespaces that no client finds, whoever it is."""
        self._visible: dict[tuple[Client | None, Level], bytes] = {}

    def visible(self, client: Client | None, level: Level) -> bytes | None:
        """The namespaces in which a client may do so much, as a bitmap for the pool's calls; None: all."""
        if self._clock() - self._rows_s > ROWS_S:
            self._look()
        if client is None and not self._unshared:
            return None
        bits = self._visible.get((client, level))
        if bits is None:
            mine = self._of(client, level)
            number = sum(1 << one for one in mine)
            bits = self._visible[client, level] = number.to_bytes((number.bit_length() + 7) // 8, "little")
        return bits

    def may(self, client: Client | None, level: Level, number: int) -> bool:
        """May a client do so much in the namespace of this number?"""
        bits = self.visible(client, level)
        return bits is None or (number // 8 < len(bits) and bool(bits[number // 8] >> number % 8 & 1))

    def digests(self, client: Client | None) -> frozenset[bytes] | None:
        """Of the namespaces whose chunks a client may look for, as of now; None: all."""
        self._look()
        if client is None and not self._unshared:
            return None
        return frozenset(self._rows[number].digest for number in self._of(client, Level.LOOKUP))

    def need_anywhere(self, client: Client | None, level: Level) -> None:
        """Raises Forbidden when a client may do so much in no namespace at all."""
        if client is not None and level_anywhere(client.grants) < level:
            raise Forbidden(f"{client.name} may not {level.name.lower()} here")

    def account(self, client: Client | None, namespace: Namespace | None) -> Namespace | None:
        """The namespace on whose tenant's account memory is that has no name yet, for a client that registered
        `namespace` last. Raises Forbidden when it would be another tenant's.
        """
        if namespace is not None or client is None or client.tenant == DEFAULT_TENANT:
            return namespace
        for number, one in self._registered.items():
            if self._rows[number].tenant == client.tenant:
                return one
        raise Forbidden("memory is on the account of a tenant even before it has a name: register a namespace first")

    def may_pin(self, client: Client | None, sessions: Iterable[Session], size_bytes: int) -> int:
        """Bytes of a pool of `size_bytes` that a client's tenant may pin besides what it has pinned in all `sessions`,
        with all its keys.

        What is pinned cannot be evicted either: what was lent to a tenant must not stay with it that way.
        """
        shares = dict(self._pool._shares()) if client is not None else {}
        if client is None or not any(shares.values()):
            return size_bytes
        own = client.tenant
        pinned = sum(one.pinned_bytes for one in sessions if one.client is not None and one.client.tenant == own)
        return max(0, size_bytes - sum(share for tenant, share in shares.items() if tenant != own) - pinned)

    def may_reserve(self, client: Client | None, sessions: Iterable[Session], size_bytes: int) -> int:
        """Bytes that a client's tenant may reserve or draft besides what it has under way, in all its `sessions`.

        What is not sealed cannot be evicted. So nobody has more of it than its share and what was promised to nobody,
        less what others have beyond theirs: whoever comes late finds its whole share in what can be taken back.
        """
        shares = dict(self._pool._shares()) if client is not None else {}
        if client is None or not any(shares.values()):
            return size_bytes
        held = Counter[str]()
        for one in sessions:
            if one.client is not None:
                held[one.client.tenant] += one.reserved_bytes
        own = held.pop(client.tenant, 0)
        lent = sum(max(0, size - shares.get(tenant, 0)) for tenant, size in held.items())
        return shares.get(client.tenant, 0) + size_bytes - sum(shares.values()) - lent - own

    def register(
        self, client: Client | None, digest: bytes, tenant: str, ttl_s: float | None, policy: int = 0
    ) -> Namespace:
        """The namespace of a digest (16 bytes), which for a client with a key is seeded with its tenant's secret.

        Raises Forbidden (it names another tenant, or no grant covers it), NamespaceTableFull, BadMessage.
        """
        if client is not None:
            tenant = _tenant_of(client, tenant)
            digest = self._seed(tenant, digest) if self._seed else digest
            ttl_s = self._checked(client, digest, ttl_s)
            policy = policy if level_for(client.grants, digest) >= Level.WRITE else 0
        if policy & POLICIES["no-share"]:
            raise BadMessage("what is not to be shared is not for a daemon's clients: use the pool on its own host")
        if not 0 <= policy < 1 << len(POLICIES):
            raise BadMessage(f"{policy} is no set of rules for a namespace that this daemon knows")
        if len(tenant.encode()) > TENANT_BYTES_MAX:
            raise BadMessage(f"a tenant's name has at most {TENANT_BYTES_MAX} bytes")
        namespace = self._pool._register_namespace(digest, tenant, ttl_s, policy)
        self._look()
        if client is not None and self._rows[namespace.id].tenant != tenant:
            raise Forbidden("that namespace is not this client's")  # Registered here between our two looks.
        self._registered[namespace.id] = namespace
        return namespace

    def _checked(self, client: Client, digest: bytes, ttl_s: float | None) -> float | None:
        """The time to live to register with: who may not write changes nothing for those who do."""
        level = level_for(client.grants, digest)
        if level == 0:
            raise Forbidden("that namespace is not this client's")
        self._look()
        rows = [row for number, row in self._rows.items() if number != NO_NAMESPACE]
        row = next((one for one in rows if one.digest == digest), None)
        if row is None:
            own = sum(one.tenant == client.tenant for one in rows)
            if own >= self._namespaces_max:
                raise NamespaceTableFull(
                    f"this tenant has {own} namespaces, and its clients may register no more",
                    namespace_limit=self._namespaces_max,
                )
            return ttl_s
        if row.tenant != client.tenant:
            raise Forbidden("that namespace is not this client's")
        return ttl_s if level >= Level.WRITE else row.ttl_s

    def to_store(self, client: Client | None, number: int) -> Namespace | None:
        """What a chunk is stored under; None for number 0. Raises BadMessage, Forbidden."""
        namespace = self._registered.get(number)
        is_known = number == NO_NAMESPACE or namespace is not None
        if not is_known or not self.may(client, Level.LOOKUP, number):
            if number == NO_NAMESPACE:
                raise Forbidden("this client stores in namespaces of its tenant: register one, and name it")
            raise BadMessage(f"namespace {number} was not registered with this daemon")
        if not self.may(client, Level.WRITE, number):
            raise Forbidden(f"this client may not write in namespace {number}")
        return namespace

    def to_bump(self, client: Client | None, digest: bytes) -> Namespace | None:
        """The namespace of a digest, which a client may end; None: there is none for it. Raises Forbidden."""
        self._look()
        for number, row in self._rows.items():
            if number != NO_NAMESPACE and row.digest == digest and self.may(client, Level.LOOKUP, number):
                if not self.may(client, Level.WRITE, number):
                    raise Forbidden(f"this client may not write in namespace {number}")
                return self._pool._register_namespace(digest, row.tenant, row.ttl_s, 0)
        return None

    def parent(self, client: Client | None, key: bytes | None) -> bytes | None:
        """The key that a chunk continues, if that is one this client may know: else the chunk begins a prefix."""
        bits = self.visible(client, Level.LOOKUP)
        if key is None or bits is None or self._is_there(key, bits):
            return key
        return None

    def told(self, client: Client | None, key: bytes, outcome: Outcome) -> Outcome:
        """What a client is told of trying to store this key: another's chunk is not told of, see above."""
        if outcome not in (Outcome.EXISTS, Outcome.IN_FLIGHT):
            return outcome
        bits = self.visible(client, Level.LOOKUP)
        return outcome if bits is None or self._is_there(key, bits) else Outcome.FULL

    def _is_there(self, key: bytes, bits: bytes) -> bool:
        # In this order, so that a seal between the two is seen.
        return self._pool.being_written(key, namespaces=bits) or self._pool.exists(key, namespaces=bits)

    def figures(self, client: Client | None) -> dict[str, Any]:
        """The pool's figures; for a client of a tenant, its own namespaces and how the pool was made."""
        figures = self._pool.stats()
        if client is None:
            return figures
        own = [row for row in figures["namespaces"] if self.may(client, Level.LOOKUP, row["id"])]
        told = {name: figures[name] for name in _PUBLIC}
        told["segments"] = [{name: row[name] for name in _PUBLIC_OF_SEGMENTS} for row in figures["segments"]]
        told["namespaces"] = own
        told["tenants"] = [row for row in figures["tenants"] if row["name"] == client.tenant]
        told["chunk_bytes"] = sum(row["bytes"] for row in own)
        told["chunks"] = {"slots": figures["chunks"]["slots"], "sealed": sum(row["chunks"] for row in own)}
        return told

    def _of(self, client: Client | None, level: Level) -> list[int]:
        if client is None:
            return [number for number in self._rows if number not in self._unshared]
        if len(client.tenant.encode()) > TENANT_BYTES_MAX:
            return []
        return [
            number
            for number, row in self._rows.items()
            if number not in self._unshared
            and (row.tenant if number != NO_NAMESPACE else DEFAULT_TENANT) == client.tenant
            and level_for(client.grants, row.digest) >= level
        ]

    def _look(self) -> None:
        rows = self._pool._namespace_rows()
        self._rows = {
            number: _Row(digest, tenant.decode("utf-8", "surrogateescape"), ttl_ns / 1e9 or None)
            for number, digest, tenant, ttl_ns, _ in rows
        }
        self._unshared = frozenset(row[0] for row in rows if row[4] & POLICIES["no-share"])
        self._rows_s = self._clock()
        self._visible.clear()


def _tenant_of(client: Client, said: str) -> str:
    if said not in ("", client.tenant):
        raise Forbidden(f"this client's key is of tenant {client.tenant!r}: name that one, or none")
    return client.tenant
