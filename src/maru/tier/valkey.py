"""Valkey or Redis below the pool: one value an object, in the memory of another host.

    PREFIX{NAMESPACE/KEY}          microseconds since 1970 when it was stored (u64, the server's clock), then the object
    PREFIX{NAMESPACE/KEY}:RANDOM   one that is being stored; goes by itself when its writer died

Holds:      the coroutines of a ValkeyTier, on redis-py, for one server or a cluster of them.
Promises:   an object appears whole and with its time to live, by one SET or one RENAME; neither side holds it twice: it
            is sent from where it lies, above WHOLE_BYTES in pieces, and read in parts of PART_BYTES; an object that is
            replaced while it is read is noticed; commands are not sent twice, since an APPEND may have been done
            although its answer was lost; what is to be overwritten is so where it lies in the server's memory, in the
            same moment as it goes. What the server frees by itself, it does not overwrite: what has run out, what it
            evicts, and an old value's memory that it had moved.
Leaves:     what goes when memory is full to the server: give it maxmemory and an allkeys policy, or it refuses; what is
            large, both ways, to `valkey_bulk`'s threads.

A cluster is the lesser part: everything goes in pieces of PIECE_BYTES by one event loop, and redis-py 8.1 was seen not
to close all its connections to one after a call was cancelled.
The braces keep both names of an object on one server of a cluster.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from maru.errors import BadKey, BadUrl, MissingPackage, NoSuchObject, TierFailed, TierFull
from maru.tier.contract import PIECE_BYTES, Capabilities, Listed, Tier, check_folder, is_overwritten, split_name
from maru.tier.valkey_bulk import Bulk, Line

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from maru.tier.opening import TierConfig

OBJECT_BYTES_MAX = (512 << 20) - 8
"""The server's limit for one value, less our stamp."""
WHOLE_BYTES = 32 << 20
"""Up to here an object is sent by one command; the server keeps what came of it until the rest is there."""
PART_BYTES = 4 * PIECE_BYTES
"""What is read at once, and the most that load() gives at a time."""
CONNECTIONS = 16
CONNECTIONS_MAX = 1024
CONNECT_S_MAX = 5.0
UNFINISHED_S_MIN = 60.0
NAMES_AT_ONCE = 500
MOVES_MAX = 3
DEFAULT_PREFIX = "maru:tier:"
PREFIX_CHARS_MAX = 100
_STAMP = struct.Struct("<Q")
_SAID_CHARS_MAX = 200
_OVERWRITE = f"""
local size, zeros = redis.call('STRLEN', KEYS[1]), string.rep('\\0', {PIECE_BYTES})
for at = 0, size - 1, #zeros do
  redis.call('SETRANGE', KEYS[1], at, string.sub(zeros, 1, math.min(#zeros, size - at)))
end
return redis.call('UNLINK', KEYS[1])
"""
"""SETRANGE changes a value of this size where it lies; the zeros need not travel."""


class ValkeyTier(Tier):
    """One database, or one cluster. Made by open_tier()."""

    def __init__(self, config: TierConfig) -> None:
        """Raises BadUrl, MissingPackage. Nothing is sent yet."""
        try:
            import redis
            import redis.asyncio
        except ModuleNotFoundError as error:
            raise MissingPackage(
                f"{config.kind}:// needs redis-py: pip install 'maru-kvcache[tiers]'", package="redis"
            ) from error
        self.url, self.kind = config.shown, config.kind
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._no_room: type[Exception] = redis.exceptions.OutOfMemoryError
        prefix = config.options.get("prefix", DEFAULT_PREFIX)
        if not prefix.isascii() or len(prefix) > PREFIX_CHARS_MAX or set(prefix) & set("{}*?[]\\"):
            raise BadUrl(f"{config.shown!r}: a prefix is at most {PREFIX_CHARS_MAX} plain characters", hint="")
        self._prefix = prefix.encode()
        self._unfinished_ms = int(1000 * max(UNFINISHED_S_MIN, 2 * config.deadline_s))
        self._is_cluster = config.flag("cluster")
        settings = _settings_of(config, self._is_cluster)
        self._server: Any = _server_of(settings, self._is_cluster)
        connections = config.count("connections", CONNECTIONS, CONNECTIONS_MAX)
        self._turns = asyncio.Semaphore(connections)
        self._bulk = None if self._is_cluster else Bulk(connections, settings)
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(False, True, True, OBJECT_BYTES_MAX, overwrites=True)

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:
        key = self._key_of(name)
        views = [memoryview(frame).cast("B") for frame in frames]
        size = sum(map(len, views))
        if size > OBJECT_BYTES_MAX:
            raise TierFull(f"{self.url}: an object of {size} bytes is too large", place=self.url, wanted_bytes=size)
        ttl_ms = None if ttl_s is None else max(1, int(1000 * ttl_s))
        if is_overwritten(name):
            await self._overwrite([key])  # Else a SET or a RENAME would free one that lies there as it is.
        if self._bulk is not None and PIECE_BYTES < size <= WHOLE_BYTES:
            await self._talk(self._bulk, _put, key, views, _expiry(ttl_ms))
            return
        stamp = await self._stamp(key)
        if size <= PIECE_BYTES:
            await self._do("SET", key, b"".join([stamp, *views]), *_expiry(ttl_ms))
            return
        unfinished = b"%s:%s" % (key, secrets.token_hex(8).encode())
        try:
            await self._do("SET", unfinished, stamp, *_expiry(self._unfinished_ms))
            length = len(stamp)
            for piece in _pieces(views):
                length += len(piece)
                if await self._do("APPEND", unfinished, piece) != length:
                    raise TierFailed(f"{self.url}: what was being stored was lost on the way", place=self.url)
            last = ("PERSIST", unfinished) if ttl_ms is None else ("PEXPIRE", unfinished, ttl_ms)
            await self._all([last, ("RENAME", unfinished, key)], is_one_change=True)
        except Exception:
            with suppress(TierFailed):
                if is_overwritten(name):
                    await self._overwrite([unfinished])
                await self._do("UNLINK", unfinished)
            raise

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes | memoryview]:
        key, first, place = self._key_of(name), None, start
        part_bytes = PIECE_BYTES if self._bulk is None else PART_BYTES
        while True:
            wanted = part_bytes if size is None else min(part_bytes, start + size - place)
            stamp, length, piece = await self._part(key, place, max(wanted, 1))
            if first is None:
                if len(stamp) < _STAMP.size:
                    raise NoSuchObject(f"{self.url} has no {name}", place=self.url)
                first = (stamp, length)
            elif (stamp, length) != first:
                raise TierFailed(f"{self.url}: {name} was replaced or removed while it was read", place=self.url)
            end = length - _STAMP.size if size is None else min(start + size, length - _STAMP.size)
            if place >= end:
                return
            yield piece
            place += len(piece)
            if place >= end:
                return

    async def _part(self, key: bytes, place: int, wanted: int) -> Any:
        """The stamp, the length with it, and the bytes from `place` on, of one moment."""
        questions = [
            ("GETRANGE", key, 0, _STAMP.size - 1),
            ("STRLEN", key),
            ("GETRANGE", key, _STAMP.size + place, _STAMP.size + place + wanted - 1),
        ]
        if self._bulk is None:
            return await self._all(questions, is_one_change=True)
        return await self._talk(self._bulk, _at_one_moment, questions)

    async def contains(self, names: Sequence[str]) -> list[bool]:
        keys = [self._key_of(name) for name in names]
        found: list[bool] = []
        for at in range(0, len(keys), NAMES_AT_ONCE):
            found += map(bool, await self._all([("EXISTS", key) for key in keys[at : at + NAMES_AT_ONCE]]))
        return found

    async def remove(self, names: Sequence[str]) -> None:
        keys = [self._key_of(name) for name in names]
        await self._overwrite([key for key, name in zip(keys, names, strict=True) if is_overwritten(name)])
        for at in range(0, len(keys), NAMES_AT_ONCE):
            await self._all([("UNLINK", key) for key in keys[at : at + NAMES_AT_ONCE]])

    async def _overwrite(self, keys: Sequence[bytes]) -> None:
        """Zeros over what lies there, and it goes. One by one: a server does nothing else meanwhile."""
        for key in keys:
            await self._do("EVAL", _OVERWRITE, 1, key)

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        pattern = self._prefix + b"{%s*" % check_folder(folder).encode()
        self._still_open()
        batch: list[str] = []
        try:
            async for key in self._server.scan_iter(match=pattern, count=NAMES_AT_ONCE):
                name = self._name_of(key)
                if name is not None:
                    batch.append(name)
                if len(batch) == NAMES_AT_ONCE:
                    for one in await self._described(batch):
                        yield one
                    batch.clear()
        except self._failures as error:
            raise self._named(error) from None
        for one in await self._described(batch):
            yield one

    async def health(self) -> None:
        probe = self._prefix + b"health-" + secrets.token_hex(8).encode()
        await self._do("SET", probe, b"1", "PX", self._unfinished_ms)
        await self._do("UNLINK", probe)

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            with suppress(*self._failures, RuntimeError):  # What was broken off half-way may not let itself be closed.
                await self._server.aclose()
            if self._bulk is not None:
                await self._bulk.close()

    def _key_of(self, name: str) -> bytes:
        folder, key = split_name(name)
        return self._prefix + b"{%s/%s}" % (folder.encode(), key.encode())

    def _name_of(self, key: bytes) -> str | None:
        """None for what is not a whole object of ours."""
        inside = key[len(self._prefix) :]
        try:
            name = inside[1:-1].decode("ascii")
            split_name(name)
        except (UnicodeDecodeError, BadKey):
            return None
        return name if inside == b"{%s}" % name.encode() else None

    async def _stamp(self, key: bytes) -> bytes:
        """What time it is on the server that has the key."""
        target = {}
        if self._is_cluster:
            await self._server.initialize()
            target = {"target_nodes": self._server.get_node_from_key(key)}
        return _stamp_of(await self._do("TIME", **target))

    async def _do(self, *words: Any, **target: Any) -> Any:
        """One command's answer. Raises TierFull, TierFailed."""
        self._still_open()
        async with self._turns:
            try:
                return await _heeded(self._server.execute_command(*words, **target))
            except self._failures as error:
                raise self._named(error) from None

    async def _all(self, commands: Sequence[Sequence[Any]], is_one_change: bool = False) -> Any:
        """Answers of several, in one round trip; `is_one_change`: with nothing in between, for names of one object."""
        self._still_open()
        if not commands:
            return []
        async with self._turns:
            try:
                line = self._server.pipeline(transaction=is_one_change)
                for words in commands:
                    line.execute_command(*words)
                return await _heeded(line.execute())
            except self._failures as error:
                raise self._named(error) from None

    async def _talk(self, bulk: Bulk, conversation: Callable[..., Any], *args: Any) -> Any:
        """What a conversation comes to. Raises TierFull, TierFailed."""
        self._still_open()
        try:
            return await bulk.talk(conversation, *args)
        except self._failures as error:
            raise self._named(error) from None

    async def _described(self, names: Sequence[str]) -> Sequence[Listed]:
        questions = []
        for name in names:
            questions += [("STRLEN", self._key_of(name)), ("GETRANGE", self._key_of(name), 0, _STAMP.size - 1)]
        answers = await self._all(questions)
        return [
            Listed(name, length - _STAMP.size, _STAMP.unpack(stamp)[0] / 1e6)
            for name, length, stamp in zip(names, answers[::2], answers[1::2], strict=True)
            if length >= _STAMP.size
        ]

    def _still_open(self) -> None:
        if self._is_closed:
            raise TierFailed(f"{self.url} was closed", place=self.url)

    def _named(self, error: Exception) -> TierFailed:
        # A server that does not know AUTH, or HELLO, repeats what came with it: the password.
        told = str(error).partition("with args beginning with")[0]
        said = "".join(char for char in told if char.isprintable())[:_SAID_CHARS_MAX]
        kind = TierFull if isinstance(error, self._no_room) or str(error).startswith("OOM ") else TierFailed
        hint = "give the server more maxmemory, or an allkeys policy" if kind is TierFull else ""
        return kind(f"{self.url}: {type(error).__name__}: {said}", place=self.url, hint=hint)


def _settings_of(config: TierConfig, is_cluster: bool) -> dict[str, Any]:
    """As redis-py takes them. Raises BadUrl."""
    parts = urlsplit(config.url)
    _, _, number = config.place.rpartition("/")
    settings: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port or 6379,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "socket_timeout": config.deadline_s,
        "socket_connect_timeout": min(CONNECT_S_MAX, config.deadline_s),
    }
    if config.kind == "rediss":
        settings["ssl"] = True
        if "ca" in config.options:
            settings["ssl_ca_certs"] = config.options["ca"]
    if not is_cluster:
        settings["db"] = int(number)
    elif int(number):
        raise BadUrl(f"{config.shown!r}: a cluster has only database 0", hint="")
    return settings


def _server_of(settings: dict[str, Any], is_cluster: bool) -> Any:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    if not is_cluster:
        return Redis(retry=Retry(NoBackoff(), 0), **settings)
    # A cluster has to be asked again when it says that a key has moved. Lengths tell of an APPEND that was done twice.
    return RedisCluster(retry=Retry(NoBackoff(), MOVES_MAX), **settings)


async def _heeded(answer: Awaitable[Any]) -> Any:
    """The answer; cancelled, when we were meanwhile: redis-py swallows that while it connects, and would go on."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


def _stamp_of(time: Sequence[bytes]) -> bytes:
    seconds, microseconds = time
    return _STAMP.pack(int(seconds) * 1_000_000 + int(microseconds))


def _put(line: Line, key: bytes, views: Sequence[memoryview], expiry: Sequence[str | int]) -> None:
    """A whole object by one command."""
    [time] = line.ask([("TIME",)])
    line.ask([("SET", key, [_stamp_of(time), *views], *expiry)])


def _at_one_moment(line: Line, questions: Sequence[Sequence[Any]]) -> Any:
    """Answers to all of them, with nothing in between."""
    return line.ask([("MULTI",), *questions, ("EXEC",)])[-1]


def _expiry(ttl_ms: int | None) -> tuple[str | int, ...]:
    return () if ttl_ms is None else ("PX", ttl_ms)


def _pieces(views: Sequence[memoryview]) -> Iterator[bytes]:
    """The frames joined, in pieces of PIECE_BYTES: small ones together, large ones apart."""
    waiting, size = [], 0
    for view in views:
        while view:
            taken = view[: PIECE_BYTES - size]
            view = view[len(taken) :]
            waiting.append(taken)
            size += len(taken)
            if size == PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
