"""What tests of the drop-in handler do again and again: chunks whose bytes follow from their keys."""

from __future__ import annotations

from maru import MaruConfig, MaruHandler

CHUNK = 64 << 10


def config(url: str, **fields: object) -> MaruConfig:
    return MaruConfig(server_url=url, pool_size=8 << 20, chunk_size_bytes=CHUNK, **fields)  # type: ignore[arg-type]


def put(handler: MaruHandler, *keys: str | int, size: int = CHUNK) -> list[bool]:
    handles = [handler.alloc(size) for _ in keys]
    for key, handle in zip(keys, handles, strict=True):
        handle.buf[:] = content(key, size)
    return handler.batch_store(keys, handles)


def content(key: str | int, size: int = CHUNK) -> bytes:
    return (repr(key).encode() * size)[:size]


def read(handler: MaruHandler, *keys: str | int) -> list[bytes | None]:
    return [bytes(info.view) if info else None for info in handler.batch_retrieve(keys)]


def counters(handler: MaruHandler) -> dict[str, int]:
    assert handler._attached is not None
    return dict(handler._attached.pool.stats()["counters"])
