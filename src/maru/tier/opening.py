"""URLs of places below the pool: read once at the door into one frozen value, and opened from it.

    file:///var/lib/maru?size=500GiB&codec=zstd          a folder of this host
    nfs:///mnt/share?size=2TiB                           a folder that other hosts have mounted too
    s3://BUCKET/PREFIX?region=eu-central-1&codec=blosc2  an object store; gs:// and az:// alike
    redis://HOST:PORT/DB?cluster=1                       Redis or Valkey; valkey:// is the same, rediss:// with TLS
    mooncake://HOST:PORT/PREFIX                          a Mooncake store, named by its master

Holds:      what may stand in such a URL, and who serves it. Others add schemes of their own through the entry point
            group `maru.tiers`: a name there is a scheme, and what it names is called with the TierConfig.
Promises:   a parameter that nobody would look at is refused, with those that there are; what is shown, `shown` and the
            repr, holds no secret; no library is loaded until a tier that needs it is opened.
Leaves:     what codec, encrypt and keys mean to `codec` and `cipher`; write, ttl and deadline to `maru.tiering`.

Keys of an object store do not belong into a URL: obstore reads AWS_*, GOOGLE_* and AZURE_* from the environment, and
asks the machine's own identity service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from maru.config import parse_size, redact, why_no_url
from maru.errors import BadUrl
from maru.tier.contract import Tier
from maru.tier.policy import PARAMETERS, Policy, read_policy

ENTRY_POINTS = "maru.tiers"
DEFAULT_DEADLINE_S = 10.0
DEADLINE_S_MAX = 600.0
TTL_S_MAX = 10 * 365 * 86400.0
URL_CHARS_MAX = 4096
MOONCAKE_PORT, MOONCAKE_PREFIX = 50051, "maru"
HINT = (
    "the forms are file:///PATH, nfs:///PATH, s3://BUCKET/PREFIX, gs://, az://, redis://HOST:PORT/DB, rediss://, "
    "mooncake://HOST:PORT/PREFIX"
)

COMMON = ("codec", "item_bytes", "encrypt", "keys", "write", "ttl", "deadline", *PARAMETERS)
_FILES = ("size", "threads", "direct")
_STORES = ("endpoint", "allow_http", "anonymous", "retries")
_REDIS = ("cluster", "connections", "prefix")
_MOONCAKE = ("metadata", "segment", "buffer", "protocol", "device", "admin", "threads")
SCHEMES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "file": _FILES, "nfs": _FILES, "s3": ("region", *_STORES), "gs": _STORES, "az": ("account", *_STORES),
    "redis": _REDIS, "rediss": ("ca", *_REDIS), "valkey": _REDIS, "valkeys": ("ca", *_REDIS),
    "mooncake": _MOONCAKE,
})  # fmt: skip
"""Each scheme of ours and the parameters that only it has."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_SPAN = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([smhd]?)")
_SPAN_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class TierConfig:
    """What a tier's URL says."""

    kind: str
    """The scheme; "redis" and "rediss" also for valkey:// and valkeys://."""
    place: str
    """A folder; BUCKET/PREFIX; HOST:PORT/DB; or HOST:PORT/PREFIX."""
    shown: str
    """The URL as it may be shown."""
    url: str = field(repr=False)
    """The URL with its secrets."""
    size_bytes: int | None = None
    """What it may hold, for places that do not say themselves when they are full."""
    codec: str = "none"
    item_bytes: int = 2
    encrypt: Literal["tenant"] | None = None
    keys: str | None = field(default=None, repr=False)
    policy: Policy = field(default_factory=Policy)
    """What it does with which namespaces."""
    ttl_s: float | None = None
    deadline_s: float = DEFAULT_DEADLINE_S
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Parameters that only this kind of place has, as they were written."""

    def count(self, name: str, default: int, limit: int) -> int:
        """Option `name` as a number from 1 to `limit`. Raises BadUrl."""
        return _count(self.options, name, default, limit)

    def flag(self, name: str, default: bool = False) -> bool:
        """Option `name` as 1 or 0. Raises BadUrl."""
        return _choice(self.options, name, ("0", "1"), "1" if default else "0") == "1"


def parse_tier_url(url: str) -> TierConfig:
    """Read a tier's URL. Raises BadUrl, which says what is wrong and what there is."""
    parts = _split(url)
    scheme, others = parts.scheme, _others()
    if scheme not in SCHEMES and scheme not in others:
        known = ", ".join([*SCHEMES, *sorted(others)])
        raise _bad(f"{redact(url)!r}: there is no place of the kind {scheme!r}; known are {known}")
    query = _query(parts, SCHEMES.get(scheme))
    encrypt = _choice(query, "encrypt", ("none", "tenant"), "none")
    if (encrypt == "tenant") != ("keys" in query):
        raise _bad("encrypt=tenant and keys=file:PATH|env:NAME|command:... go together: one is missing")
    codec = query.get("codec", "none")
    if not codec or len(codec) > 64:
        raise _bad(f"codec={codec[:64]} is not a codec")
    write = _choice(query, "write", ("back", "through"), "back")
    config = TierConfig(
        kind=scheme.replace("valkeys", "rediss").replace("valkey", "redis"),
        place=_place(parts, scheme not in others),
        shown=redact(url),
        url=url,
        size_bytes=_size(query) if scheme in SCHEMES else None,
        codec=codec,
        item_bytes=int(_choice(query, "item_bytes", ("1", "2", "4", "8"), "2")),
        encrypt="tenant" if encrypt == "tenant" else None,
        keys=query.get("keys"),
        policy=read_policy(query, "through" if write == "through" else "back", codec),
        ttl_s=_span(query, "ttl", TTL_S_MAX),
        deadline_s=_span(query, "deadline", DEADLINE_S_MAX) or DEFAULT_DEADLINE_S,
        options=MappingProxyType({name: value for name, value in query.items() if name not in COMMON}),
    )
    for name in ("cluster", "direct", "allow_http", "anonymous"):
        config.flag(name)
    for name, limit in (("threads", 64), ("connections", 1024), ("retries", 100), ("admin", 65535)):
        config.count(name, 1, limit)
    return config


def open_tier(config: TierConfig) -> Tier:
    """The place that `config` names. Nothing is asked of it yet: health() does. Raises BadUrl, MissingPackage."""
    if config.kind in ("file", "nfs"):
        from maru.tier.disk import FileTier

        return FileTier(config)
    if config.kind in ("s3", "gs", "az"):
        from maru.tier.objectstore import ObjectStoreTier

        return ObjectStoreTier(config)
    if config.kind in ("redis", "rediss"):
        from maru.tier.valkey import ValkeyTier

        return ValkeyTier(config)
    if config.kind == "mooncake":
        from maru.tier.mooncake import MooncakeTier

        return MooncakeTier(config)
    factory = _others().get(config.kind)
    if factory is None:
        raise _bad(f"{config.shown!r}: whoever served {config.kind}:// is not installed any more")
    tier = factory()(config)
    if not isinstance(tier, Tier):
        raise _bad(f"{config.shown!r}: what is installed for {config.kind}:// does not make a maru.tier.contract.Tier")
    return tier


def _others() -> dict[str, Callable[[], Callable[[TierConfig], Tier]]]:
    """Schemes that other packages bring; ours cannot be taken over."""
    return {point.name: point.load for point in entry_points(group=ENTRY_POINTS) if point.name not in SCHEMES}


def _bad(message: str) -> BadUrl:
    return BadUrl(message, hint=HINT)


def _split(url: str) -> SplitResult:
    if not isinstance(url, str):
        raise _bad(f"a tier's URL is a str, not {type(url).__name__}")
    if len(url) > URL_CHARS_MAX:
        raise _bad(f"a tier's URL of {len(url)} characters is too long")
    if " " in url or any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in unquote(url)):
        raise _bad(f"{redact(url)!r} has a space (write %20 in a path), a control character or half a character in it")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _bad(f"{redact(url)!r} is not a URL: {why_no_url(error)}") from None
    if not _SCHEME.fullmatch(parts.scheme) or not url[len(parts.scheme) + 1 :].startswith("//"):
        raise _bad(f"{redact(url)!r} is not a tier's URL")
    if parts.fragment:
        raise _bad(f"{redact(url)!r} has a fragment (#...)")
    return parts


def _query(parts: SplitResult, own: tuple[str, ...] | None) -> dict[str, str]:
    """The parameters. `own`: those that only this kind has; None lets all through, for its maker to refuse."""
    query: dict[str, str] = {}
    known = None if own is None else (*COMMON, *own)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if known is not None and name not in known:
            raise _bad(f"unknown parameter {name[:64]!r}; known for {parts.scheme}:// are {', '.join(known)}")
        if name in query:
            raise _bad(f"parameter {name[:64]!r} is given twice")
        query[name] = value
    return query


def _place(parts: SplitResult, is_ours: bool) -> str:
    path = unquote(parts.path)
    if not is_ours:
        return f"{parts.netloc.rpartition('@')[2]}{path}"
    if parts.scheme in ("file", "nfs"):
        if parts.netloc:
            raise _bad(f"{parts.scheme}:// takes an absolute path, after three slashes: {parts.scheme}:///PATH")
        folder = path.rstrip("/")
        if not folder or ".." in folder.split("/"):
            raise _bad(f"{path!r} is not a folder that Maru would fill")
        return folder
    if not parts.hostname:
        wanted = {"s3": "BUCKET/PREFIX", "gs": "BUCKET/PREFIX", "az": "BUCKET/PREFIX", "mooncake": "HOST:PORT/PREFIX"}
        raise _bad(f"the form is {parts.scheme}://{wanted.get(parts.scheme, 'HOST:PORT/DB')}")
    if parts.scheme in ("s3", "gs", "az"):
        if "@" in parts.netloc or ":" in parts.netloc:
            raise _bad(f"{parts.scheme}:// takes a bucket's name only; keys come from the environment")
        prefix = path.strip("/")
        if ".." in prefix.split("/") or "//" in prefix:
            raise _bad(f"{path!r} is not a prefix")
        return f"{parts.netloc}/{prefix}".rstrip("/")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.scheme == "mooncake":
        if "@" in parts.netloc:
            raise _bad("mooncake:// takes no user and no password: Mooncake asks for none")
        return f"{host}:{parts.port or MOONCAKE_PORT}/{path.strip('/') or MOONCAKE_PREFIX}"
    number = path.strip("/")
    if number and not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise _bad(f"{path!r} is not a database's number")
    return f"{host}:{parts.port or 6379}/{int(number or 0)}"


def _choice(query: Mapping[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    value = query.get(name, default)
    if value not in choices:
        raise _bad(f"{name}={value[:64]} is not one of {', '.join(choices)}")
    return value


def _count(query: Mapping[str, str], name: str, default: int, limit: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= limit:
        raise _bad(f"{name}={text[:64]} is not a number from 1 to {limit}")
    return int(text)


def _size(query: Mapping[str, str]) -> int | None:
    try:
        return parse_size(query["size"]) if "size" in query else None
    except BadUrl as error:
        raise _bad(error.message) from None


def _span(query: Mapping[str, str], name: str, limit_s: float) -> float | None:
    """Seconds of "90", "1.5s", "15m", "12h" or "7d"."""
    if name not in query:
        return None
    match = _SPAN.fullmatch(query[name])
    span = float(match[1]) * _SPAN_SECONDS[match[2]] if match else 0.0
    if not 0 < span <= limit_s:
        raise _bad(f"{name}={query[name][:64]} is not a time of at most {limit_s:.0f} s; write 90, 15m, 12h or 7d")
    return span
