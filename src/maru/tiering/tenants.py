"""Whose a namespace is, by its number in the pool: what is stored below is sealed with that tenant's key."""

from __future__ import annotations

from maru.pool import Pool


class Tenants:
    """Of one pool. A namespace keeps its tenant for ever, so it is looked up once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[int, str] = {}

    def of(self, namespace_id: int) -> str:
        if namespace_id not in self._known:
            self._known = {int(row["id"]): str(row["tenant"]) for row in self._pool.stats()["namespaces"]}
        return self._known.get(namespace_id, "")
