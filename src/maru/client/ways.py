"""Which way leads to a daemon's pool from here: its own memory, its mapped memory, or the wire."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from maru import wire
from maru.address import LOCAL_SOCKET
from maru.client.channel import BOOT_ID, Channel
from maru.client.handed import attach_handed, knock
from maru.client.remote import MEMORY_BYTES, RemotePool
from maru.client.segments import SegmentsMemory
from maru.config import redact, why_no_url
from maru.credentials import ClientKey, load_client_key
from maru.errors import BadUrl, Forbidden, MaruError, PoolMismatch
from maru.pool import Pool

MODES = ("auto", "local", "mapped", "wire")
_log = logging.getLogger("maru")


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
        raise BadUrl(f"{redact(url)!r} is not an address: {why_no_url(error)}") from None
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
    if url.startswith(LOCAL_SOCKET):
        return _by_local_socket(url, mode, deadline_s, memory_bytes or MEMORY_BYTES)
    way = read_way(url)
    mode = mode if mode != "auto" else way.mode
    if mode not in MODES:
        raise BadUrl(f"mode={mode} is not one of {', '.join(MODES)}")
    path = key or way.key
    client_key = load_client_key(Path(path).expanduser()) if path else None
    memory_bytes = memory_bytes or MEMORY_BYTES
    channel = _greeted(Channel(way.endpoint, client_key, False, deadline_s))
    welcome = channel.welcome
    assert welcome is not None
    try:
        if mode in ("auto", "local"):
            try:
                pool = _local(channel.endpoint, welcome)
            except MaruError:
                if mode == "local":
                    raise
            else:
                channel.close()
                return pool
        if mode in ("auto", "mapped"):
            try:
                memory = SegmentsMemory(welcome, data or way.data)
            except PoolMismatch:
                if mode == "mapped":
                    raise
            else:
                channel.close()
                try:
                    channel = _greeted(Channel(way.endpoint, client_key, True, deadline_s), welcome.pool_uuid)
                    return RemotePool(channel, memory, memory_bytes)
                except BaseException as error:
                    memory.close()
                    if mode == "mapped" or not isinstance(error, Forbidden):
                        raise
                channel = _greeted(Channel(way.endpoint, client_key, False, deadline_s), welcome.pool_uuid)
    except BaseException:
        channel.close()
        raise
    return RemotePool(channel, None, memory_bytes)


def _by_local_socket(url: str, mode: str, deadline_s: float, memory_bytes: int) -> Pool | RemotePool:
    """By whom the system says that we are: the pool itself, or the daemon that may be asked."""
    asked = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    if unknown := asked.keys() - {"mode"}:
        raise BadUrl(f"unknown parameter {min(unknown)!r}; known is mode")
    mode = mode if mode != "auto" else asked.get("mode", "auto")
    if mode not in ("auto", "local", "wire"):
        raise BadUrl(f"mode={mode} is not one of auto, local, wire, the ways that a local socket leads to")
    handed, folder = knock(url, deadline_s)
    if folder >= 0 and mode == "wire":
        os.close(folder)
    elif folder >= 0:
        try:
            return attach_handed(url, handed, folder)
        except PoolMismatch as error:
            if mode == "local" or handed.key is None:
                raise
            _log.warning("asking by messages: %s", error)
    elif mode == "local":
        raise Forbidden(
            f"{url} hands its pool over to others, not to this user; it may be asked by messages: mode=auto"
        )
    if handed.key is None:
        raise Forbidden(f"{url} hands its pool over and nothing else, since its daemon has no keys: mode=local")
    name, public, server_public, secret = handed.key
    key = ClientKey(name, public, server_public, secret)
    return RemotePool(_greeted(Channel(handed.endpoint, key, False, deadline_s), handed.uuid), None, memory_bytes)


def _greeted(channel: Channel, pool_uuid: str | None = None) -> Channel:
    """Raises what the daemon refuses, NoDaemon, and PoolMismatch when it serves another pool by now."""
    try:
        channel.renew([], channel.deadline_s)
        assert channel.welcome is not None
        if pool_uuid not in (None, channel.welcome.pool_uuid):
            raise PoolMismatch(f"another pool is served at {channel.endpoint} now")
    except BaseException:
        channel.close()
        raise
    return channel


def _local(endpoint: str, welcome: wire.Welcome) -> Pool:
    """The daemon's pool itself, if it is of this host and visible here. Raises PoolMismatch, PoolNotFound."""
    if welcome.host != BOOT_ID.read_text().strip():
        raise PoolMismatch(f"the daemon at {endpoint} is of another host")
    folder = Path(welcome.folder)
    pool = Pool.attach(f"maru:///{folder.name}?dir={quote(str(folder.parent))}")
    if pool.stats()["uuid"] != welcome.pool_uuid:
        pool.close()
        raise PoolMismatch(f"{folder} is another pool than the daemon's", path=str(folder))
    return pool
