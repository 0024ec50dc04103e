"""Addresses as engines write them in their configuration, read into a pool of this host.

    maru:///NAME[?size=8GiB&...]             the pool NAME of this host; the parameters are those of a pool URL
    maru://HOST:PORT[?pool_size=64G&...]     the pool of the daemon that listens there (`maru serve`)
    maru://localhost:PORT[?pool_size=64G]    the same; where no daemon listens, this host's pool `default`

    unix:///PATH[?pool_size=64G&...]         what a daemon of this host (`maru serve --local PATH`) has for this user

A daemon on this host hands out its pool itself. One on another host leaves a pool on this one, the near pool, through
which chunks come and go: `pool_size` and the other parameters of a pool are the near pool's then. For reaching the
daemon there are `key=` (a client's key file), `mode=` and `data=` (maru.connect).

`tier=` (percent-encoded, may be repeated) names a place below a pool of this host, as `file:///var/lib/maru?size=1TiB`;
whoever reads the address may name some too, and the variable MARU_TIERS (URLs with blanks between them) is for all that
name none.

`tcp://` is taken for `maru://`: LMCache rewrites one into the other before anybody of ours sees it. Two parameters
belong to the door and not to the pool: `tenant=` and `pin_max_age=` (seconds).
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, urlencode, urlsplit

from maru.config import PoolConfig, parse_url, redact, why_no_url
from maru.errors import BadUrl

DEFAULT_POOL_NAME = "default"
TIERS_VARIABLE = "MARU_TIERS"
KEY_PIN_AGE_S = 300.0
KEY_PIN_AGE_LIMIT_S = 86_400.0

# The core's own defaults, and when another slab size is better than they are.
_DEFAULT_SLABS = 16
_DEFAULT_SLAB_BYTES_MAX = 256 << 20
_SLABS_MIN = 4
_USED_SHARE_MIN = 0.9
_EXPECTED_CHUNK_BYTES = 256 << 10
_SCHEMES = ("maru://", "tcp://")
LOCAL_SOCKET = "unix://"


@dataclass(frozen=True)
class Address:
    """What an address says: the pool, and how its door behaves."""

    url: str
    """The pool's URL, complete: good for Pool.open."""
    tenant: str = "default"
    key_pin_age_s: float = KEY_PIN_AGE_S
    daemon: str = ""
    """The daemon to ask first, as maru.connect takes it."""
    needs_daemon: bool = False
    """Without one there is no pool: `url` is the near pool's."""
    tiers: tuple[str, ...] = field(default=(), repr=False)
    """URLs of the places below, the nearest first."""

    @property
    def pool(self) -> PoolConfig:
        return parse_url(self.url)


def read_address(text: str, size_bytes: int = 0, chunk_bytes: int = 0, tiers: Sequence[str] = ()) -> Address:
    """Read an address. `size_bytes` is the pool's size where the address gives none; 0 is the pool's own default.

    `chunk_bytes`: the largest chunk to come. A pool made from the result has slabs that hold it.
    Asks nobody: `maru.client.open_pool` does. Raises BadUrl.
    """
    if not isinstance(text, str):
        raise BadUrl(f"an address is a str, not {type(text).__name__}")
    if text.startswith(LOCAL_SOCKET):
        return _of_local_socket(text, size_bytes, chunk_bytes, tiers)
    scheme = next((scheme for scheme in _SCHEMES if text.startswith(scheme)), None)
    if scheme is None:
        raise BadUrl(f"{redact(text)!r} is not an address: maru:///NAME is a pool of this host")
    try:
        parts = urlsplit("maru://" + text[len(scheme) :])
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadUrl(f"{redact(text)!r} is not an address: {why_no_url(error)}") from None
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    tiers = [*tiers, *(value for name, value in pairs if name == "tier")]
    pairs = [pair for pair in pairs if pair[0] != "tier"]
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadUrl(f"{redact(text)!r} gives a parameter twice")
    if "pool_size" in query:
        query.setdefault("size", query.pop("pool_size"))
        query.pop("pool_size", None)
    if host and (parts.username or parts.password or not port):
        raise BadUrl(f"{redact(text)!r} is not a daemon's address: write maru://HOST:PORT, and key=FILE for its key")
    name, daemon = parts.path.strip("/"), ""
    if host:
        asked = {key: query.pop(key) for key in ("key", "mode", "data") if key in query}
        daemon = f"maru://{parts.netloc}" + ("?" + urlencode(asked, safe="/,") if asked else "")
        name = name or (DEFAULT_POOL_NAME if _is_this_host(host) else _near_name(host, port))
    tenant = query.pop("tenant", "default")
    key_pin_age_s = _seconds(query.pop("pin_max_age", ""))
    if "size" not in query and size_bytes > 0 and query.get("medium") != "devdax":
        query["size"] = str(size_bytes)
    config = parse_url(_url(name, query))
    if chunk_bytes and "slab_bytes" not in query and config.size_bytes:
        query["slab_bytes"] = str(slab_bytes_for(config.size_bytes, chunk_bytes))
    if 0 < chunk_bytes < _EXPECTED_CHUNK_BYTES and not query.keys() & {"chunk_bytes", "slots"}:
        query["chunk_bytes"] = str(chunk_bytes)  # Else the index runs full before the memory does.
    needs_daemon = bool(daemon) and not _is_this_host(host or "")
    below = tuple(tiers or os.environ.get(TIERS_VARIABLE, "").split())
    return Address(_url(name, query), tenant, key_pin_age_s, daemon, needs_daemon, below)


def _of_local_socket(text: str, size_bytes: int, chunk_bytes: int, tiers: Sequence[str]) -> Address:
    """The pool is the near one's, for users that the daemon gives chunks to and not its memory."""
    path, mark, query = text[len(LOCAL_SOCKET) :].partition("?")
    if not path.startswith("/"):
        raise BadUrl(f"{redact(text)!r} is not a local socket: write unix:///PATH")
    pairs = parse_qsl(query, keep_blank_values=True)
    mode = [value for name, value in pairs if name == "mode"]
    near = "maru:///" + _near_name(path.strip("/")[-50:], "socket")
    rest = urlencode([pair for pair in pairs if pair[0] != "mode"], safe="/,")
    address = read_address(near + (f"{mark}{rest}" if rest else ""), size_bytes, chunk_bytes, tiers)
    return replace(address, daemon=LOCAL_SOCKET + path + (f"?mode={mode[-1]}" if mode else ""), needs_daemon=True)


def slab_bytes_for(size_bytes: int, chunk_bytes: int) -> int:
    """A slab's size for a pool of `size_bytes` that holds mostly chunks of `chunk_bytes`: a power of two.

    The core's own default, or more where a chunk would not fit it, or where so few fit that much of it stayed empty.
    """
    slab_bytes = min(_power_of_two(size_bytes // _DEFAULT_SLABS), _DEFAULT_SLAB_BYTES_MAX)
    while slab_bytes < chunk_bytes or (
        slab_bytes // chunk_bytes * chunk_bytes < _USED_SHARE_MIN * slab_bytes
        and size_bytes // (2 * slab_bytes) >= _SLABS_MIN
    ):
        slab_bytes *= 2
    return slab_bytes


def _power_of_two(number: int) -> int:
    """The largest one that is not above `number`; at least the smallest slab there is."""
    return max(1 << max(0, number.bit_length() - 1), 4 << 12)


def _url(name: str, query: dict[str, str]) -> str:
    return f"maru:///{name}" + ("?" + urlencode(query, safe="/,") if query else "")


def _near_name(host: str, port: int | str | None) -> str:
    """The pool of this host through which another's chunks come."""
    return "near-" + re.sub(r"[^A-Za-z0-9._-]", "-", host)[:50] + f"-{port}"


def _is_this_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(text: str) -> float:
    if not text:
        return KEY_PIN_AGE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= KEY_PIN_AGE_LIMIT_S:
        raise BadUrl(f"pin_max_age={text} is not a number of seconds up to {KEY_PIN_AGE_LIMIT_S:.0f}")
    return seconds
