"""An object store below the pool: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

Holds:      the coroutines of an ObjectStoreTier, on obstore. An object's path is PREFIX/NAMESPACE/KEY.
Promises:   an object appears whole: one request puts it, or one that ends an upload in parts; retries end with the
            tier's deadline; no more than HEADS_MAX questions are out at once; what the store answers is shown without
            addresses' secrets.
Leaves:     credentials to obstore, which reads them from the environment or asks the machine's identity service; what
            an interrupted upload in parts leaves behind, hidden, to a lifecycle rule of the bucket
            (AbortIncompleteMultipartUpload); times to live to such a rule too; what becomes of bytes that were
            replaced, to the store: objects that are to be overwritten are replaced by empty ones before they are
            deleted, which a bucket with versions keeps the old versions of.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from maru.config import redact
from maru.errors import BadKey, BadUrl, MissingPackage, NoSuchObject, TierFailed, TierFull
from maru.tier.contract import PIECE_BYTES, Capabilities, Listed, Tier, check_folder, is_overwritten, split_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from maru.tier.opening import TierConfig

PART_BYTES = 16 << 20
"""Objects above this go up in parts of it."""
PARTS_AT_ONCE = 4
HEADS_MAX = 32
RETRIES = 3
RETRIES_MAX = 100
CONNECT_S_MAX = 5.0
OBJECT_BYTES_MAX = PART_BYTES * 10_000
"""No store takes more than 10,000 parts."""
_PROBE = "health"
_SAID_CHARS_MAX = 200
_T = TypeVar("_T")


class ObjectStoreTier(Tier):
    """One bucket, or what lies under a prefix of it. Made by open_tier()."""

    def __init__(self, config: TierConfig) -> None:
        """Raises BadUrl, MissingPackage. Nothing is sent yet."""
        try:
            import obstore
            from obstore import exceptions
        except ModuleNotFoundError as error:
            raise MissingPackage(
                f"{config.kind}:// needs obstore: pip install 'maru-kvcache[tiers]'", package="obstore"
            ) from error
        self.url, self.kind = config.shown, config.kind
        self._api: Any = obstore
        self._failures: tuple[type[Exception], ...] = (exceptions.BaseError, OSError)
        self._not_found: tuple[type[Exception], ...] = (exceptions.NotFoundError, FileNotFoundError)
        try:
            self._store: Any = _store_of(config)
        except self._failures as error:
            raise BadUrl(f"{config.shown!r}: {_said(error)}", hint="") from None
        self._heads = asyncio.Semaphore(HEADS_MAX)
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(True, True, True, OBJECT_BYTES_MAX, overwrites=True)

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:  # noqa: ARG002
        split_name(name)
        views = [view for view in (memoryview(frame).cast("B") for frame in frames) if view]
        size = sum(map(len, views))
        if size > OBJECT_BYTES_MAX:
            raise TierFull(f"{self.url}: an object of {size} bytes is too large", place=self.url, wanted_bytes=size)
        await self._done(
            self._api.put_async(
                self._store, name, views, use_multipart=size > PART_BYTES, chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        )  # fmt: skip

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        split_name(name)
        if size == 0 or (start and start >= await self._size_of(name)):
            await self._size_of(name)  # Of an object that is not there not even nothing can be had.
            return
        asked: dict[str, Any] = {}
        if size is not None:
            asked = {"range": (start, start + size)}
        elif start:
            asked = {"range": {"offset": start}}
        try:
            answer = await self._done(self._api.get_async(self._store, name, options=asked))
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield piece
        except self._not_found:
            raise self._missing(name) from None
        except self._failures as error:
            raise self._named(error) from None

    async def contains(self, names: Sequence[str]) -> list[bool]:
        for name in names:
            split_name(name)
        found = [False] * len(names)
        turns = iter(enumerate(names))

        async def ask() -> None:
            for index, name in turns:
                async with self._heads:
                    try:
                        await self._done(self._api.head_async(self._store, name))
                    except NoSuchObject:
                        continue
                    found[index] = True

        await _all_of(ask() for _ in range(min(HEADS_MAX, len(names))))
        return found

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            split_name(name)
        if not names:
            return
        emptied = iter([name for name in names if is_overwritten(name)])

        async def empty() -> None:
            for name in emptied:
                async with self._heads:
                    await self._done(self._api.put_async(self._store, name, b""))

        await _all_of(empty() for _ in range(min(HEADS_MAX, len(names))))
        try:
            await self._done(self._api.delete_async(self._store, list(names)))
        except NoSuchObject:
            # Some stores stop at the first that is not there. One by one, then.
            for name in names:
                try:
                    await self._done(self._api.delete_async(self._store, name))
                except NoSuchObject:
                    continue

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        check_folder(folder)
        self._still_open()
        try:
            async for batch in self._api.list(self._store, folder or None, chunk_size=1000):
                for one in batch:
                    try:
                        split_name(one["path"])
                    except BadKey:
                        continue
                    yield Listed(one["path"], one["size"], one["last_modified"].timestamp())
        except self._failures as error:
            raise self._named(error) from None

    async def health(self) -> None:
        probe = f"{_PROBE}-{secrets.token_hex(8)}"
        await self._done(self._api.put_async(self._store, probe, b"Maru asks whether this can be written"))
        await self._done(self._api.delete_async(self._store, probe))

    async def close(self) -> None:
        self._is_closed = True  # Connections end with the store, when nobody holds it any more.

    async def _size_of(self, name: str) -> int:
        try:
            meta = await self._done(self._api.head_async(self._store, name))
        except NoSuchObject:
            raise self._missing(name) from None
        return int(meta["size"])

    def _still_open(self) -> None:
        if self._is_closed:
            raise TierFailed(f"{self.url} was closed", place=self.url)

    async def _done(self, call: Awaitable[_T]) -> _T:
        """What the store answers; raises NoSuchObject, TierFailed."""
        self._still_open()
        try:
            return await call
        except self._not_found as error:
            raise NoSuchObject(f"{self.url}: {_said(error)}", place=self.url) from None
        except self._failures as error:
            raise self._named(error) from None

    def _missing(self, name: str) -> NoSuchObject:
        return NoSuchObject(f"{self.url} has no {name}", place=self.url)

    def _named(self, error: Exception) -> TierFailed:
        return TierFailed(f"{self.url}: {type(error).__name__}: {_said(error)}", place=self.url)


def _store_of(config: TierConfig) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    bucket, _, prefix = config.place.partition("/")
    whole = timedelta(seconds=config.deadline_s)
    settings: dict[str, Any] = {
        "prefix": prefix or None,
        "client_options": {
            "timeout": whole,
            "connect_timeout": timedelta(seconds=min(CONNECT_S_MAX, config.deadline_s)),
            "allow_http": config.flag("allow_http"),
        },
        "retry_config": {"max_retries": config.count("retries", RETRIES, RETRIES_MAX), "retry_timeout": whole},
    }
    if config.flag("anonymous"):
        settings["skip_signature"] = True
    endpoint = config.options.get("endpoint")
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise BadUrl(f"{config.shown!r}: endpoint={redact(endpoint)} is not an address with http(s)://", hint="")
    if config.kind == "gs":
        if endpoint is not None:
            settings["base_url"] = endpoint
        return GCSStore(bucket, **settings)
    if endpoint is not None:
        settings["endpoint"] = endpoint
    if config.kind == "az":
        if "account" in config.options:
            settings["account_name"] = config.options["account"]
        return AzureStore(bucket, **settings)
    if "region" in config.options:
        settings["region"] = config.options["region"]
    return S3Store(bucket, **settings)


async def _all_of(jobs: Any) -> None:
    """All of them, and when one fails, none goes on."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except* TierFailed as failed:
        raise failed.exceptions[0] from None


def _said(error: Exception) -> str:
    """What a store said, on one line, without what may be a signature in an address."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r"\?[^\s\"')]*", "?***", re.sub(r"//[^/\s]*@", "//***@", lines[0]))
    return "".join(char for char in line if char.isprintable())[:_SAID_CHARS_MAX]
