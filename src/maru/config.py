"""Pool URLs: where a pool lives and how it is made, read once at the door into one frozen value.

    maru:///NAME?size=64GiB&data=PATH[,PATH...]&medium=shm|hugetlb|file|devdax&dir=PLACE&...

`share=` says what others may do to a pool that is made: nothing (private), all that its creator may (group), only read
(readers: the group; handed: whoever the daemon hands it to, see docs/security.md). `access=read` attaches to it for
reading only: the data is mapped without write permission.

`tenant_secret=file:PATH` (or `env:NAME`, `command:PROGRAM ARGUMENT...`) gives a tenant's processes the secret which
seeds its keys, as `maru keys tenant-secret` writes it.

NAME alone means `/dev/shm/maru-<uid>/NAME`, private to this user; `dir=` puts the folder elsewhere, for pools that
several users or containers share. What matters to whoever attaches is the name, `access`, `populate`, `copy_threads`,
`tenant_secret`, `audit` and `audit_key` (this process keeps an audit log there); the rest only to whoever creates the
pool.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from maru.errors import BadUrl, PoolMismatch, PoolNotFound

Medium = Literal["shm", "hugetlb", "file", "devdax"]
Share = Literal["private", "group", "readers", "handed"]
Checksum = Literal["off", "boundary", "always"]

DEFAULT_SIZE_BYTES = 4 << 30
SEGMENT_LIMIT = 32

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SECRETS = re.compile(r"(?i)(pass|pwd|secret|token|key|auth|cred|sig|sas)")
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)
_URLS_IN_URLS_MAX = 4
_USER = re.compile(r"(?s)((?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://)?).*(?:@|%40)")
# A password with # or ? in it ends what a library takes for the host; what is left of it stands in the port's place.
_NO_PORT = re.compile(r"(//(?:\[[^\]/]*\]|[^/:\[]*):)(?!\d*(?:/|$))[^/]*")


def parse_size(text: str) -> int:
    """Bytes of "64GiB", "64G", "512M" or "4096". G, GB and GiB all mean powers of two.

    Raises BadUrl for anything else, for negative numbers and for sizes of 2**63 bytes and more.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or len(text) > 64:
        raise BadUrl(f"{text!r} is not a size; write 64GiB, 512M or a number of bytes")
    unit = 1 << _POWERS[match[2].upper()]
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if not 0 < size < 1 << 63:
        raise BadUrl(f"{text!r} is not a size between 1 byte and 8 EiB")
    return size


def format_size(size_bytes: int) -> str:
    """Bytes for people: "4 GiB", "11.2 MiB"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << power:
            value = size_bytes / (1 << power)
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
    return f"{size_bytes} B"


def redact(url: str) -> str:
    """The URL as it may be shown: passwords, and parameters that look like secrets, are ***; in URLs inside it too."""
    return _redacted(url, 0)


def _redacted(url: str, depth: int) -> str:
    if depth > _URLS_IN_URLS_MAX:
        return "***"
    url, hash_mark, _ = url.partition("#")
    head, mark, query = url.partition("?")
    head = _NO_PORT.sub(r"\1***", _USER.sub(r"\1***@", head, count=1)) + ("#***" if hash_mark and not mark else "")
    if not mark:
        return head
    pairs = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if equals and _SECRETS.search(unquote(name)):
            part = f"{name}=***"
        elif not equals and "@" in unquote(name):
            part = "***"
        elif (shown := _redacted(plain := unquote(value), depth + 1)) != plain:  # A tier's URL in an address, say.
            part = f"{name}={quote(shown, safe='/:*@')}"
        pairs.append(part)
    return head + mark + "&".join(pairs) + ("#***" if hash_mark else "")


def has_password(url: str) -> bool:
    """Does it name a user, or a password, before its host?"""
    return bool(_USER.match(url.partition("?")[0]))


def why_no_url(error: ValueError) -> str:
    """What the library says against a URL, without the part that it quotes: that may be half of a password."""
    return _QUOTED.sub("***", str(error))


@dataclass(frozen=True)
class PoolConfig:
    """What a pool URL says."""

    name: str
    folder: Path
    size_bytes: int = DEFAULT_SIZE_BYTES
    size_given: bool = False
    medium: Medium = "shm"
    data: tuple[str, ...] = field(default=("segment-0",))
    checksum: Checksum = "boundary"
    unit_bytes: int = 0
    slab_bytes: int = 0
    chunk_bytes: int = 0
    slots: int = 0
    processes: int = 128
    namespaces: int = 1024
    cooling: float = 30.0
    gate: bool = True
    share: Share = "private"
    reads_only: bool = False
    """Attach for reading: the data is mapped without write permission, and nothing is stored, removed or changed."""
    populate: bool = True
    copy_threads: int = 1
    spare: tuple[int, ...] = ()
    tenant_secret: str = field(default="", repr=False)
    """Where tenants' secrets are read from; see maru.credentials."""
    audit: Path | None = None
    """The folder where this process keeps an audit log of what it does in the pool."""
    audit_key: Path | None = None
    handed_by: str = ""
    """The local socket that handed the pool over (maru.client.handed); `folder` is a descriptor of ours then."""

    @property
    def data_mode(self) -> int:
        """Permissions of a new pool's segments."""
        return {"private": 0o600, "group": 0o660, "readers": 0o640, "handed": 0o644}[self.share]

    @property
    def index_mode(self) -> int:
        """Permissions of its index and lock: whoever reads counts pins there, and has a row."""
        return {"private": 0o600, "group": 0o660, "readers": 0o660, "handed": 0o666}[self.share]

    @property
    def is_read_by_others(self) -> bool:
        return self.share in ("readers", "handed")

    @property
    def folder_mode(self) -> int:
        return {"private": 0o700, "group": 0o770, "readers": 0o750, "handed": 0o755}[self.share]

    @property
    def url(self) -> str:
        """The shortest URL that names this pool."""
        base = default_folder(self.name)
        return self.handed_by or (
            f"maru:///{self.name}"
            if base == self.folder
            else f"maru:///{self.name}?dir={quote(str(self.folder.parent))}"
        )


def shared_memory_root() -> Path:
    """Where this user's pools live unless a URL says otherwise."""
    return Path("/dev/shm") / f"maru-{os.getuid()}"


def default_folder(name: str) -> Path:
    return shared_memory_root() / name


def _choice(query: dict[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    value = query.get(name, default)
    if value not in choices:
        raise BadUrl(f"{name}={value} is not one of {', '.join(choices)}")
    return value


def _count(query: dict[str, str], name: str, default: int, limit: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not 0 < int(text) <= limit:
        raise BadUrl(f"{name}={text} is not a number from 1 to {limit}")
    return int(text)


_KNOWN = (
    "size", "data", "medium", "dir", "checksum", "unit_bytes", "slab_bytes", "chunk_bytes", "slots", "processes",
    "namespaces", "cooling", "gate", "share", "access", "populate", "copy_threads", "spare", "tenant_secret", "audit",
    "audit_key",
)  # fmt: skip


def parse_url(url: str) -> PoolConfig:
    """Read a pool URL. Raises BadUrl, which says what is wrong and what the form is."""
    if not isinstance(url, str):
        raise BadUrl(f"a pool URL is a str, not {type(url).__name__}")
    if " " in url or any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in unquote(url)):
        raise BadUrl(
            f"{redact(url)!r} has a space (write %20 in a path), a control character or half a character in it"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadUrl(f"{redact(url)!r} is not a URL: {why_no_url(error)}") from None
    if parts.scheme != "maru":
        raise BadUrl(f"{redact(url)!r} does not begin with maru://")
    if not url[len("maru:") :].startswith("//"):
        raise BadUrl(f"{redact(url)!r} does not begin with maru:///")
    if parts.netloc:
        raise BadUrl(f"{redact(url)!r} names a host; a pool of this host has three slashes: maru:///NAME")
    if parts.fragment:
        raise BadUrl(f"{redact(url)!r} has a fragment (#...)")
    name = unquote(parts.path[1:])
    if not _NAME.fullmatch(name):
        raise BadUrl(
            f"{redact(name)!r} is not a pool name: 1 to 64 letters, digits, '_', '-' or '.', not beginning with '.'"
        )
    query: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _KNOWN:
            raise BadUrl(f"unknown parameter {key!r}; known are {', '.join(_KNOWN)}")
        if key in query:
            raise BadUrl(f"parameter {key!r} is given twice")
        query[key] = value

    folder = default_folder(name)
    if "dir" in query:
        if not query["dir"].startswith("/"):
            raise BadUrl(f"dir={query['dir']} is not an absolute path")
        folder = Path(query["dir"]) / name
    medium = _choice(query, "medium", ("shm", "hugetlb", "file", "devdax"), "shm")
    data = tuple(path for path in query.get("data", "").split(",") if path)
    if any(not path.startswith("/") for path in data):
        raise BadUrl("data= takes absolute paths, separated by commas")
    if len(data) > SEGMENT_LIMIT:
        raise BadUrl(f"data= takes at most {SEGMENT_LIMIT} paths")
    if len(set(data)) != len(data):
        raise BadUrl("data= names the same path twice")
    if medium in ("hugetlb", "devdax", "file") and not data:
        raise BadUrl(f"medium={medium} needs data=PATH")
    if medium == "devdax" and "size" in query:
        raise BadUrl("a devdax pool takes the whole device; leave size= out")
    try:
        cooling = float(query.get("cooling", "30"))
    except ValueError:
        raise BadUrl(f"cooling={query['cooling']} is not a number of seconds") from None
    if not 0 <= cooling <= 3600:
        raise BadUrl("cooling must be 0 to 3600 seconds")
    return PoolConfig(
        name=name,
        folder=folder,
        size_bytes=0 if medium == "devdax" else parse_size(query["size"]) if "size" in query else DEFAULT_SIZE_BYTES,
        size_given="size" in query,
        medium=medium,  # type: ignore[arg-type]
        data=tuple(_segment_file(path, name, number) for number, path in enumerate(data)) or ("segment-0",),
        checksum=_choice(query, "checksum", ("off", "boundary", "always"), "boundary"),  # type: ignore[arg-type]
        unit_bytes=parse_size(query["unit_bytes"]) if "unit_bytes" in query else 0,
        slab_bytes=parse_size(query["slab_bytes"]) if "slab_bytes" in query else 0,
        chunk_bytes=parse_size(query["chunk_bytes"]) if "chunk_bytes" in query else 0,
        slots=_count(query, "slots", 0, 1 << 31),
        processes=_count(query, "processes", 128, 255),
        namespaces=_count(query, "namespaces", 1024, 1 << 20),
        cooling=cooling,
        gate=_choice(query, "gate", ("on", "off"), "on") == "on",
        share=_choice(query, "share", ("private", "group", "readers", "handed"), "private"),  # type: ignore[arg-type]
        reads_only=_choice(query, "access", ("write", "read"), "write") == "read",
        populate=_choice(query, "populate", ("background", "off"), "background") == "background",
        spare=tuple(parse_size(size) for size in query["spare"].split(",")) if "spare" in query else (),
        copy_threads=_count(query, "copy_threads", default_copy_threads(), 64),
        tenant_secret=_source(query, "tenant_secret"),
        audit=_absolute(query, "audit"),
        audit_key=_absolute(query, "audit_key"),
    )


def _source(query: dict[str, str], name: str) -> str:
    """Where a secret is read from. What is written there is not shown: it may be the secret itself."""
    source = query.get(name, "")
    if name in query and not re.fullmatch(r"(file:/|env:|command:).+", source):
        raise BadUrl(f"{name}= says where the secret is: file:/PATH, env:NAME or command:PROGRAM ARGUMENT...")
    return source


def _absolute(query: dict[str, str], name: str) -> Path | None:
    if name not in query:
        return None
    if not query[name].startswith("/"):
        raise BadUrl(f"{name}= takes an absolute path")
    return Path(query[name])


def default_copy_threads() -> int:
    """Threads of one large copy: one of eight CPUs that this process may use, 1 to 4.

    One core does not use up what the memory of a large machine gives; a small one has an engine to run.
    """
    return max(1, min(4, len(os.sched_getaffinity(0)) // 8))


def _segment_file(path: str, name: str, number: int) -> str:
    """A data path that is a folder (a mounted hugetlbfs, a disk) gets a file of the pool's name in it."""
    try:
        return f"{path.rstrip('/')}/maru-{name}-{number}.segment" if Path(path).is_dir() else path
    except OSError as error:
        raise BadUrl(f"data= names a path that cannot be: {error.strerror}") from None


def segment_place(path: str, name: str) -> tuple[str, Medium]:
    """The file or device for a segment that is added to pool `name`, and its medium where that can be seen.

    Raises BadUrl for a path that is not absolute.
    """
    if not path.startswith("/"):
        raise BadUrl(f"{path} is not an absolute path")
    if Path(path).is_dir():
        path = next(
            place
            for number in range(SEGMENT_LIMIT + 1)
            if not Path(place := f"{path.rstrip('/')}/maru-{name}-{number}.segment").exists()
        )
    if Path(path).is_char_device():
        return path, "devdax"
    return path, "shm" if path.startswith("/dev/shm/") else "file"


def secure_folder(config: PoolConfig, create: bool) -> None:
    """Check that the pool's folder is a real folder that nobody else can swap; make it when `create`.

    Raises PoolNotFound, PoolMismatch.
    """
    for folder in (config.folder.parent, config.folder):
        is_ours = folder == config.folder or folder == shared_memory_root()
        try:
            if create and is_ours:
                folder.mkdir(mode=config.folder_mode if folder == config.folder else 0o700, exist_ok=True)
            state = folder.lstat()
            if create and folder == config.folder and state.st_uid == os.getuid() and config.is_read_by_others:
                folder.chmod(config.folder_mode)  # Whatever the umask: the URL asks for it by name.
        except FileNotFoundError:
            if folder == config.folder or folder == shared_memory_root():
                raise PoolNotFound(f"no pool at {config.folder}", path=str(config.folder)) from None
            raise PoolMismatch(f"{folder} does not exist; create or mount it first", path=str(folder)) from None
        except OSError as error:
            raise PoolMismatch(f"cannot use {folder}: {error.strerror}", path=str(folder)) from error
        if not stat.S_ISDIR(state.st_mode):
            raise PoolMismatch(f"{folder} is not a folder (a link or a file stands in its place)", path=str(folder))
        is_shared = (config.share != "private" or config.reads_only) and folder != shared_memory_root()
        if is_ours and state.st_uid != os.getuid() and not is_shared:
            raise PoolMismatch(
                f"{folder} belongs to another user (uid {state.st_uid}); for a pool that users share say "
                "dir=PLACE&share=group",
                path=str(folder),
            )
        if create and config.share == "handed" and folder != config.folder and state.st_mode & 0o001:
            raise PoolMismatch(
                f"anybody may enter {folder}, so a pool there is not reached through the daemon alone; chmod o-x it, "
                "or leave dir= out",
                path=str(folder),
            )
        if is_ours and state.st_mode & 0o002:
            raise PoolMismatch(f"anybody may write to {folder}; chmod o-w it first", path=str(folder))


def refuse_file_system_dax(config: PoolConfig, mounts: Path = Path("/proc/self/mounts")) -> None:
    """A file on a file system mounted with dax is device memory that no driver may pin for long: no GPU could register
    a pool there. Such a device makes a pool by itself, as medium=devdax. Raises PoolMismatch.
    """
    try:
        rows = [line.split(" ") for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return
    # A later mount hides an earlier one at the same place.
    options = {_unescaped(row[1]): row[3].split(",") for row in rows if len(row) >= 4}
    for path in (Path(one) for one in config.data if one.startswith("/")):
        place = next((str(folder) for folder in path.parents if str(folder) in options), None)
        if place is not None and {"dax", "dax=always"} & set(options[place]):
            raise PoolMismatch(
                f"{path} lies on {place}, which is mounted with dax: no GPU can use a pool there. Make the device a "
                "devdax one (sudo ndctl create-namespace --mode=devdax) and say medium=devdax&data=/dev/daxX.Y, or "
                "mount it without dax",
                path=str(path),
            )


def _unescaped(place: str) -> str:
    """The kernel writes blanks and the like in a mount point as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place)
