"""A registry of daemons in Valkey or Redis: each writes itself down for a while, and reads who else did.

    maru:daemon:NAME   what a daemon says of itself, as JSON; goes by itself TTL_S after its last word
    maru:daemons       the set of names that were ever written, from which those that are gone are taken out

Promises:   two round trips a look, each with a deadline; no more than PEERS_MAX entries are read, of ENTRY_BYTES_MAX
            each. A registry that fails is said once, in the log, and tried again.
Leaves:     what is shown of an entry to `peers`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from maru.config import redact
from maru.daemon.peers import DEADLINE_S, LOOK_S, PEERS_MAX, Peer, peer_of
from maru.errors import BadUrl, MissingPackage

TTL_S = int(3 * LOOK_S)
ENTRY_BYTES_MAX = 4096
KEY = "maru:daemon:"
NAMES = "maru:daemons"
_log = logging.getLogger("maru.daemon")


class Registry:
    """One daemon's page in it. Used by one thread at a time."""

    def __init__(self, url: str, name: str, web_url: str, rpc_url: str, pools: Sequence[str]) -> None:
        """`url`: redis://[:PASSWORD@]HOST[:PORT][/N], rediss:// or unix://. Nothing is sent yet.

        Raises BadUrl, MissingPackage.
        """
        try:
            import redis
        except ModuleNotFoundError as error:
            raise MissingPackage(
                "a registry of daemons needs redis-py: pip install 'maru-kvcache[registry]'"
            ) from error
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._name, self._shown = name, redact(url)
        told = {"name": name, "url": web_url or rpc_url, "rpc": rpc_url, "pools": list(pools)}
        self._entry = json.dumps(told).encode()
        try:
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S, retry=None, protocol=2
            )
            line = self._redis.connection_pool
            line.connection_class(**line.connection_kwargs)  # Else it is refused as late as when it is first used.
        except (ValueError, TypeError):
            raise BadUrl(f"{self._shown} is no registry: write redis://HOST:PORT") from None  # Which quotes it
        self._is_failing = False

    def look(self) -> list[Peer]:
        """Write ourselves down again, and read who else is there."""
        try:
            found = self._round()
        except self._failures as error:
            if not self._is_failing:
                self._is_failing = True
                _log.warning("the registry at %s is no help now: %s", self._shown, type(error).__name__)
            return []
        self._is_failing = False
        return found

    def close(self) -> None:
        """Take our entry out, if the registry listens; else it goes by itself."""
        try:
            with self._redis.pipeline(transaction=False) as line:
                line.delete(KEY + self._name)
                line.srem(NAMES, self._name)
                line.execute()
            self._redis.close()
        except self._failures:
            return  # It goes by itself.

    def _round(self) -> list[Peer]:
        with self._redis.pipeline(transaction=False) as line:
            line.set(KEY + self._name, self._entry, ex=TTL_S)
            line.sadd(NAMES, self._name)
            line.srandmember(NAMES, PEERS_MAX + 1)
            names = [name for name in line.execute()[2] if name != self._name.encode()][:PEERS_MAX]
        if not names:
            return []
        with self._redis.pipeline(transaction=False) as line:
            for name in names:
                line.getrange(KEY.encode() + name, 0, ENTRY_BYTES_MAX - 1)
            entries = line.execute(raise_on_error=False)
        gone = [name for name, entry in zip(names, entries, strict=True) if entry == b""]
        if gone:
            self._redis.srem(NAMES, *gone)
        return [peer for entry in entries if isinstance(entry, bytes) and (peer := _read(entry)) is not None]


def _read(entry: bytes) -> Peer | None:
    """None for what is no entry of ours: others may write there too."""
    try:
        told = json.loads(entry)
    except (ValueError, RecursionError):
        return None
    return peer_of(told.get("name"), told.get("url"), told.get("pools")) if isinstance(told, dict) else None
