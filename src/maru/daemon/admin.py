"""What the admin API does: looks at pools, expires, removes, drains, keeps and prewarms.

Promises:   every change is logged, without content. Nothing is made by asking: a namespace that the pool does not know
            is refused, never registered. A prefix is removed from its tail up, so what remains of it is still a prefix.
Leaves:     who may ask to `access`, HTTP to `web`, and bodies to `admin_bodies`.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from maru.daemon import admin_bodies as bodies
from maru.daemon.answers import Refused
from maru.daemon.facts import Facts
from maru.daemon.keeps import KeptPrefixes
from maru.daemon.looks import Looks
from maru.daemon.prewarm import Prewarmer
from maru.daemon.promotions import Promotions
from maru.errors import NotAttached, ShareTooLarge
from maru.native import core
from maru.pool import Namespace, Pool

KEYS_MAX = 1 << 15
"""Keys of one request: a body of the largest size holds about as many."""

_audit = logging.getLogger("maru.audit")


class Admin:
    """One method a route: it takes what the path names, and the decoded body as `body`, and answers. May block."""

    def __init__(self, facts: Facts, looks: Looks, keeps: KeptPrefixes, prewarmer: Prewarmer) -> None:
        self._facts, self._looks, self._keeps, self._prewarmer = facts, looks, keeps, prewarmer
        self._promotions = Promotions(facts.rise)

    # ---- Looking --------------------------------------------------------------------------------------------------

    def daemon(self) -> bodies.Daemon:
        identity, (is_ready, why_not) = self._facts.identity, self._facts.is_ready()
        return bodies.Daemon(
            name=identity.name,
            version=identity.version,
            started_unix_s=identity.started_unix_s,
            is_ready=is_ready,
            why_not=why_not,
            leases=[bodies.Lease(**asdict(lease)) for lease in self._facts.leases()],
            peers=[bodies.Peer(one.name, one.url, list(one.pools), one.seen_ago_s) for one in self._facts.peers()],
        )

    def pools(self) -> bodies.Pools:
        lines = []
        for name, look in self._looks.all().items():
            if look.error:
                lines.append(bodies.PoolLine(name, error=look.error.message))
                continue
            stats = look.stats
            alive = sum(row["alive"] for row in stats["processes"])
            chunks = stats["chunks"]["sealed"]
            lines.append(
                bodies.PoolLine(name, None, stats["medium"], stats["size_bytes"], stats["used_bytes"], chunks, alive)
            )
        return bodies.Pools(lines)

    def pool(self, pool: str) -> bodies.PoolDetail:
        return bodies.PoolDetail(pool, self._stats(pool))

    def tenants(self, pool: str) -> bodies.Tenants:
        rows = sorted(self._stats(pool)["tenants"], key=lambda row: -row["used_bytes"])
        return bodies.Tenants([msgspec.convert(row, bodies.TenantLine) for row in rows])

    def namespaces(self, pool: str) -> bodies.Namespaces:
        rows = sorted(self._stats(pool)["namespaces"], key=lambda row: -row["bytes"])
        return bodies.Namespaces(
            [
                bodies.NamespaceLine(
                    digest=row["digest"],
                    tenant=row["tenant"],
                    epoch=row["epoch"],
                    ttl_s=row["ttl_ns"] / 1e9 if row["ttl_ns"] else None,
                    chunks=row["chunks"],
                    bytes=row["bytes"],
                )
                for row in rows
            ]
        )

    def processes(self, pool: str) -> bodies.Processes:
        stats = self._stats(pool)
        now_ns = stats["now_ns"]
        return bodies.Processes(
            [
                bodies.ProcessLine(
                    number=row["number"],
                    pid=row["pid"],
                    name=row["name"],
                    is_alive=row["alive"],
                    attached_s=max(0, now_ns - row["attached_ns"]) / 1e9,
                    pins=row["pins"],
                    key_pins=row["key_pins"],
                    oldest_key_pin_s=row["key_pin_ns"] / 1e9,
                )
                for row in stats["processes"]
            ],
            [
                bodies.PinLine(pin["slot"], pin["process"], pin["count"], pin["bytes"], pin["epochs_since_hit"])
                for pin in stats["oldest_pins"]
            ],
            [
                bodies.ReservationLine(
                    row["slot"], row["process"], row["bytes"], row["state"], (row["deadline_ns"] - now_ns) / 1e9
                )
                for row in stats["reservations"]
            ],
        )

    def keeps(self, pool: str) -> bodies.Keeps:
        self._pool(pool)
        self._keeps.end_late()
        return bodies.Keeps(self._keeps.all(pool))

    def promotions(self, pool: str) -> bodies.Promotions:
        return bodies.Promotions(self._promotions.all(self._pool(pool)))

    def prewarms(self) -> bodies.Prewarms:
        return bodies.Prewarms(self._prewarmer.engines, self._prewarmer.all())

    def prewarm(self, prewarm: str) -> bodies.Prewarm:
        found = self._prewarmer.one(prewarm)
        if found is None:
            raise Refused(404, "UnknownPrewarm", f"no prewarm {prewarm!r} is remembered")
        return found

    # ---- Changing -------------------------------------------------------------------------------------------------

    def set_share(self, pool: str, tenant: str, body: bodies.ShareBody) -> bodies.Tenants:
        try:
            self._pool(pool).set_share(tenant, body.share_bytes, body.limit_bytes, body.at_limit)
        except ValueError as error:
            raise Refused(400, "BadTenant", str(error)) from None
        except ShareTooLarge as error:
            raise Refused(409, "ShareTooLarge", error.message, error.hint) from None
        self._done("a tenant of pool %s was promised %d bytes, of %d", pool, body.share_bytes, body.limit_bytes)
        return self.tenants(pool)

    def expire(self, pool: str, body: bodies.ExpireBody) -> bodies.Expired:
        if (body.namespace is None) == (body.tenant is None):
            raise Refused(400, "BadBody", "name either `namespace` or `tenant`, and not both")
        served = self._pool(pool)
        rows = [
            row
            for row in served.stats()["namespaces"]
            if int(row["digest"], 16) and (row["digest"] == body.namespace or row["tenant"] == body.tenant)
        ]
        if not rows:
            raise Refused(404, "UnknownNamespace", f"pool {pool} has no such namespace")
        expired = []
        for row in rows:
            epoch = _registered(served, row).bump()
            expired.append(bodies.ExpiredLine(row["digest"], row["tenant"], epoch, row["chunks"]))
        self._done("expired %d namespaces of pool %s", len(expired), pool)
        return bodies.Expired(expired)

    def remove(self, pool: str, body: bodies.RemoveBody) -> bodies.Removed:
        served = self._pool(pool)
        keys = self._keys(served, body)
        counts = {"removed": 0, "pinned": 0, "absent": 0}
        gone = []
        for start in range(len(keys) - 16, -1, -16):
            key = keys[start : start + 16]
            # Whoever stores it again between the two calls makes it count as pinned; there is no third answer.
            fate = "removed" if served.remove(key) else "pinned" if served.exists(key) else "absent"
            counts[fate] += 1
            if fate != "pinned":
                gone.append(key)
        self._remove_below(served, body.namespace, b"".join(gone))
        self._done("removed %d chunks from pool %s, %d were pinned", counts["removed"], pool, counts["pinned"])
        return bodies.Removed(**counts)

    def _remove_below(self, pool: Pool, digest: str | None, keys: bytes) -> None:
        """Keys that came without a namespace are of one of the pool's, so each is asked for them."""
        take = self._facts.remove_below
        if take is None or not keys:
            return
        for row in pool.stats()["namespaces"]:
            if digest in (None, row["digest"]):
                take(keys, _registered(pool, row))

    def segment(self, pool: str, segment: str, body: bodies.SegmentBody) -> bodies.SegmentNow:
        served = self._pool(pool)
        number = _number(segment)
        if number >= len(served.stats()["segments"]):
            raise Refused(404, "UnknownSegment", f"pool {pool} has no segment {number}")
        Pool.set_segment(served.config.url, number, body.state)
        self._done("segment %d of pool %s is %s", number, pool, body.state)
        return bodies.SegmentNow(number, body.state)

    def keep(self, pool: str, body: bodies.KeepBody) -> bodies.Keep:
        served = self._pool(pool)
        kept = self._keeps.keep(pool, served, self._keys(served, body), body.seconds)
        self._done("keep %s holds %d chunks of pool %s for %g s", kept.id, kept.chunks, kept.pool, body.seconds)
        return kept

    def end_keep(self, pool: str, keep: str) -> bodies.Ended:
        self._pool(pool)
        if not self._keeps.end(pool, keep):
            raise Refused(404, "UnknownKeep", f"pool {pool} has no keep {keep!r}")
        self._done("keep %s of pool %s was ended", keep, pool)
        return bodies.Ended(keep)

    def promote(self, pool: str, body: bodies.PromoteBody) -> bodies.Promotion:
        served = self._pool(pool)
        row = next((row for row in served.stats()["namespaces"] if row["digest"] == body.namespace), None)
        if row is None:
            raise Refused(404, "UnknownNamespace", f"no namespace {body.namespace} in pool {pool}")
        named = bodies.Prefix(
            keys=body.keys,
            namespace=None if body.keys else body.namespace,
            token_ids=body.token_ids,
            chunk_tokens=body.chunk_tokens,
        )
        asked = self._promotions.ask(served, self._keys(served, named), _registered(served, row))
        self._done("promotion %s brings %d chunks up to pool %s", asked.id, asked.chunks - asked.were_here, pool)
        return asked

    def ask_prewarm(self, body: bodies.PrewarmBody) -> bodies.Prewarm:
        asked = self._prewarmer.ask(body)
        self._done("prewarm %s asks engine %s", asked.id, asked.engine)
        return asked

    # ---- Beneath ---------------------------------------------------------------------------------------------------

    def _done(self, told: str, *values: object) -> None:
        """A change was made: say so, and let the next look see it."""
        _audit.info(told, *values)
        self._looks.forget()

    def _pool(self, name: str) -> Pool:
        pool = self._facts.pools.get(name)
        if pool is None:
            raise Refused(404, "UnknownPool", f"this daemon serves no pool {name!r}", "GET /v1/pools lists them")
        if pool.destroyed:
            raise NotAttached(f"pool {name} was destroyed", path=pool.folder)
        return pool

    def _stats(self, name: str) -> dict[str, Any]:
        self._pool(name)
        look = self._looks.all().get(name)
        if look is None or look.error:
            raise (look and look.error) or NotAttached(f"pool {name} is not served any more")
        return look.stats

    def _keys(self, pool: Pool, prefix: bodies.Prefix) -> bytes:
        """Packed keys of a prefix. Raises Refused for one that is named in no way, in both, or has no whole chunk."""
        if prefix.keys is not None and prefix.namespace is None and prefix.token_ids is None:
            keys = bytes.fromhex(prefix.keys)
        elif prefix.keys is None and prefix.namespace is not None and prefix.token_ids is not None:
            if not any(row["digest"] == prefix.namespace for row in pool.stats()["namespaces"]):
                raise Refused(404, "UnknownNamespace", f"no namespace {prefix.namespace} in this pool")
            ids = array("I", prefix.token_ids)
            keys = core.chunk_keys(ids, prefix.chunk_tokens, bytes.fromhex(prefix.namespace))
        else:
            raise Refused(400, "BadBody", "name the prefix by `keys`, or by `namespace` and `token_ids`")
        if not keys:
            raise Refused(400, "BadBody", f"fewer than {prefix.chunk_tokens} tokens make no chunk")
        if len(keys) > 16 * KEYS_MAX:
            raise Refused(413, "TooManyKeys", f"a request names at most {KEYS_MAX} keys")
        return keys


def _registered(pool: Pool, row: Mapping[str, Any]) -> Namespace:
    """The namespace of a row of stats(). It is registered already, so it is found; its time to live stays as it is."""
    ttl_s = row["ttl_ns"] / 1e9 if row["ttl_ns"] else None
    return pool._register_namespace(bytes.fromhex(row["digest"]), row["tenant"], ttl_s)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise Refused(400, "BadNumber", f"{text!r} is not a segment's number")
    return int(text)
