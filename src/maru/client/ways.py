"""Which way leads to a daemon's pool from here: its own memory, its mapped memory, or the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from maru.client.channel import BOOT_ID
from maru.client.remote import MEMORY_BYTES, RemotePool
from maru.config import redact
from maru.credentials import load_client_key
from maru.errors import BadUrl, MaruError, PoolMismatch
from maru.pool import Pool

MODES = ("auto", "local", "mapped", "wire")


@dataclass(frozen=True)
class Way:
    """What an address of a daemon says."""

    endpoint: str
    mode: str = "auto"
    key: str = ""
    data: tuple[str, ...] = ()


def read_way(url: str) -> Way:
    """maru://HOST:PORT[?mode=&key=&data=]. Raises BadUrl."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadUrl(f"{redact(url)!r} is not an address: {error}") from None
    if parts.scheme not in ("maru", "tcp") or not host or not port:
        raise BadUrl(f"{redact(url)!r} is not a daemon's address: write maru://HOST:PORT")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = query.keys() - {"mode", "key", "data"}
    if unknown:
        raise BadUrl(f"unknown parameter {min(unknown)!r}; known are mode, key, data")
    data = tuple(path for path in query.get("data", "").split(",") if path)
    host = f"[{host}]" if ":" in host else host
    return Way(f"tcp://{host}:{port}", query.get("mode", "auto"), query.get("key", ""), data)


def connect_to_daemon(
    url: str, mode: str, key: str | None, data: tuple[str, ...], deadline_s: float, memory_bytes: int | None
) -> Pool | RemotePool:
    """As maru.connect."""
    way = read_way(url)
    mode = mode if mode != "auto" else way.mode
    if mode not in MODES:
        raise BadUrl(f"mode={mode} is not one of {', '.join(MODES)}")
    path = key or way.key
    client_key = load_client_key(Path(path).expanduser()) if path else None
    memory_bytes = memory_bytes or MEMORY_BYTES
    remote = RemotePool(way.endpoint, False, client_key, (), deadline_s, memory_bytes)
    if mode == "wire":
        return remote
    try:
        if mode in ("auto", "local"):
            try:
                pool = _local(remote)
                remote.close()
                return pool
            except MaruError:
                if mode == "local":
                    raise
        try:
            mapped = RemotePool(way.endpoint, True, client_key, data or way.data, deadline_s, memory_bytes)
        except PoolMismatch:
            if mode == "mapped":
                raise
            return remote
    except BaseException:
        remote.close()
        raise
    remote.close()
    return mapped


def _local(remote: RemotePool) -> Pool:
    """The daemon's pool itself, if it is of this host and visible here. Raises PoolMismatch, PoolNotFound."""
    welcome = remote.welcome
    if welcome.host != BOOT_ID.read_text().strip():
        raise PoolMismatch(f"the daemon at {remote.channel.endpoint} is of another host")
    folder = Path(welcome.folder)
    pool = Pool.attach(f"maru:///{folder.name}?dir={quote(str(folder.parent))}")
    if pool.stats()["uuid"] != welcome.pool_uuid:
        pool.close()
        raise PoolMismatch(f"{folder} is another pool than the daemon's", path=str(folder))
    return pool
