"""The pool as Python sees it: open, create, destroy, namespaces, figures. The hot calls are the native core's own."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maru.config import (
    Medium,
    PoolConfig,
    format_size,
    parse_url,
    redact,
    refuse_file_system_dax,
    secure_folder,
    segment_place,
)
from maru.errors import BadUrl, PoolBusy, PoolExists, PoolMismatch, PoolNotFound
from maru.key import Identity
from maru.native import core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from maru.audit import Audit
    from maru.credentials import TenantSecrets

_log = logging.getLogger("maru")

OPEN_DEADLINE_S = 5.0
TENANT_BYTES_MAX = 63

Outcome = core.Outcome
Namespace = core.Namespace
PinnedPrefix = core.PinnedPrefix
Reservation = core.Reservation
ReservationBatch = core.ReservationBatch

IS_THERE = (Outcome.STORED, Outcome.EXISTS, Outcome.IN_FLIGHT)
"""A chunk is there, or will be: somebody else storing it right now is as good as our storing it."""
Draft = core.Draft


Policy = Literal["zeroed", "memory-only", "encrypted-only", "uncached", "no-share"]
POLICIES: dict[str, int] = {"zeroed": 1, "memory-only": 2, "encrypted-only": 4, "uncached": 8, "no-share": 16}
"""What a namespace may ask for, with its bit in the pool's table. zeroed: what leaves is overwritten before its memory
is anybody else's. memory-only: nothing is copied to places below the pool or to a far one. encrypted-only: below the
pool only where a place encrypts. uncached: nothing is stored at all; what is asked for is a miss. no-share: as
memory-only, and no daemon's client finds it, nor do KV events tell of it: it is for processes that map the pool."""
STAYS_HERE = POLICIES["memory-only"] | POLICIES["no-share"]
"""With either, nothing is copied anywhere."""


def policy_flags(policy: Iterable[str]) -> int:
    """The bits of POLICIES. Raises ValueError."""
    flags = 0
    for one in policy:
        if one not in POLICIES:
            raise ValueError(f"there is no policy {one!r}; there are: {', '.join(POLICIES)}")
        flags |= POLICIES[one]
    return flags


def seeded_digest(secret: bytes, digest: bytes) -> bytes:
    """A namespace's digest (16 bytes) as its tenant's secret (32 bytes) makes it: nobody else can compute it, nor any
    key that it seeds.
    """
    return core.blake3_keyed(secret, digest, 16)


def _process_name() -> str:
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-", "-c", "-m") else sys.executable)
    return program.parent.name if program.name == "__main__.py" else program.name


class Pool(core.PoolCore):
    """One shared-memory pool, attached. Use it as a context manager, or close() it.

    Thread-safe. After fork the child attaches by itself at its next call; views that it inherited fault when touched.
    """

    config: PoolConfig

    def __init__(self, config: PoolConfig) -> None:
        """Attach to an existing pool; Pool.open, Pool.attach and Pool.create are the ways in."""
        self.config = config
        self._was_measured = False
        self._secrets: TenantSecrets | None = None
        if config.tenant_secret:
            from maru.credentials import read_tenant_secrets  # Late: nobody else needs that room.

            self._secrets = read_tenant_secrets(config.tenant_secret)
        self._audit: Audit | None = None
        super().__init__(
            str(config.folder),
            _process_name(),
            config.populate,
            copy_threads=config.copy_threads,
            reads_only=config.reads_only,
        )
        if config.audit is not None:
            self._audit = self._audited(config.audit)

    def _audited(self, folder: Path) -> Audit:
        """An audit log of this attachment. Who asks for one that cannot be kept gets no pool, but an error."""
        from maru.audit import audit_pool

        try:
            return audit_pool(self, self.config.name, folder, self.config.audit_key)
        except BaseException:
            super().close()
            raise

    @classmethod
    def open(cls, url: str) -> Pool:
        """Attach to the pool, or create it when there is none; with access=read it has to be there.

        A size other than the existing pool's is one warning with both sizes. Raises BadUrl, PoolMismatch, PoolBusy,
        NoSpace, BadSize; and, with audit= in the URL, AuditError and CredentialError for a log that cannot be kept.
        """
        config = parse_url(url)
        if config.reads_only:
            return cls._attach(config)  # Who may not write makes none.
        deadline = time.monotonic() + OPEN_DEADLINE_S
        while True:
            try:
                return cls._attach(config)
            except PoolNotFound:
                pass
            except PoolMismatch:
                if not _is_of_earlier_boot(config):
                    raise
            try:
                return cls._create(config)
            except (
                PoolExists,
                PoolNotFound,
            ) as error:  # Somebody was faster, with creating or with destroying.
                if time.monotonic() > deadline:
                    raise PoolBusy(f"{redact(url)} keeps appearing and vanishing", path=str(config.folder)) from error

    @classmethod
    def create(cls, url: str) -> Pool:
        """Create the pool and attach. Raises PoolExists, and all that open() raises."""
        config = parse_url(url)
        if config.reads_only:
            raise BadUrl("access=read attaches to a pool that somebody else made; leave it out to make one")
        return cls._create(config)

    @classmethod
    def attach(cls, url: str) -> Pool:
        """Attach to an existing pool. Raises PoolNotFound, PoolMismatch, PoolBusy, BadUrl."""
        return cls._attach(parse_url(url))

    @staticmethod
    def destroy(url: str, force: bool = False) -> None:
        """Remove the pool. PoolBusy names the processes that use it; with `force` all of them see misses from now on.

        Raises PoolNotFound, PoolBusy, BadUrl.
        """
        config = parse_url(url)
        secure_folder(config, create=False)
        core.destroy_pool(str(config.folder), force)

    @staticmethod
    def rebuild(url: str) -> dict[str, Any]:
        """Make a lost index anew from what the segments say; only what verifies comes back.

        `url` names the pool and, if they lie elsewhere, its segments (data=), as when it was created; every other
        parameter is read from the segments. Returns {"chunks", "bytes", "left_out": {why: how many}}. What expires at a
        time of its own is left out, since that time is lost, and so is what was invalidated.

        Raises PoolExists (it has an index), PoolBusy (a process has the lost one mapped), PoolMismatch (a segment is
        missing, foreign, of an earlier boot or out of order), PoolNotFound, NoSpace, BadUrl.
        """
        config = parse_url(url)
        secure_folder(config, create=False)
        return core.rebuild_pool(str(config.folder), list(config.data), config.index_mode)

    @staticmethod
    def set_segment(url: str, number: int, state: Literal["online", "draining", "lost"]) -> None:
        """Empty data segment `number` ("draining"), take it back ("online"), or give it up ("lost").

        A draining segment gets no new chunks, and loses the old ones as soon as nobody pins them. Everything in a lost
        one is a miss at once, in every process, and its memory is not touched again; there is no way back. Works with
        and without anybody attached: a pool whose segment is gone or cut off can be attached again after this.

        Raises PoolNotFound, PoolMismatch (also: no such segment, or it is lost already), BadUrl.
        """
        config = parse_url(url)
        secure_folder(config, create=False)
        core.set_segment_state(str(config.folder), number, state)

    @staticmethod
    def add_segment(url: str, path: str, medium: Medium | None = None) -> int:
        """Give the pool more memory while it lives; returns the number of the segment.

        How many segments may be added, and of what size, is said when the pool is created: `spare=SIZE[,SIZE...]`; the
        first that is still awaited gets this memory. `path`: a file that is made, a folder to make one in, or a DAX
        device at least as large. Attached processes use it within some 250 ms; a process to which `path` is not visible
        misses what lies there.

        Raises PoolNotFound, PoolBusy, PoolMismatch (no segment is awaited; the path belongs to another pool or holds
        something else), NoSpace, BadSize (the device is too small), BadUrl.
        """
        config = parse_url(url)
        secure_folder(config, create=False)
        place, found = segment_place(path, config.name)
        number, notes = core.add_segment(str(config.folder), place, medium or found)
        for note in notes:
            _log.warning("%s", note)
        return number

    @classmethod
    def _attach(cls, config: PoolConfig) -> Pool:
        secure_folder(config, create=False)
        pool = cls(config)
        if config.size_given:
            size_bytes = pool.stats()["size_bytes"]
            if not 0 <= config.size_bytes - size_bytes < config.size_bytes // 8 + 1:
                _log.warning(
                    "pool %s has %s; the %s asked for are ignored because it exists already",
                    config.name, format_size(size_bytes), format_size(config.size_bytes),
                )  # fmt: skip
        return pool

    @classmethod
    def _create(cls, config: PoolConfig) -> Pool:
        secure_folder(config, create=True)
        refuse_file_system_dax(config)
        notes = core.create_pool(
            folder=str(config.folder),
            size=config.size_bytes,
            segments=list(config.data),
            medium=config.medium,
            unit_bytes=config.unit_bytes,
            slab_bytes=config.slab_bytes,
            expected_chunk_bytes=config.chunk_bytes,
            slot_count=config.slots,
            process_limit=config.processes,
            namespace_limit=config.namespaces,
            checksum=config.checksum,
            cooling=config.cooling,
            gate=config.gate,
            data_mode=config.data_mode,
            index_mode=config.index_mode,
            spare=list(config.spare),
        )
        for note in notes:
            _log.warning("%s", note)
        return cls(config)

    def namespace(self, identity: Identity, ttl: float | None = None, policy: Iterable[Policy] = ()) -> Namespace:
        """Register everything that must match for bytes to be reusable; the same identity gives the same namespace.

        `ttl`: seconds a chunk lives from its store, None for no limit; the latest caller's counts for new chunks.
        `policy`: how its content is to be handled (POLICIES); what one caller asks for counts for all, and stays.
        Where the pool's URL gives the secret of the identity's tenant, the digest is seeded with it, as the daemon does
        for that tenant's clients. Raises NamespaceTableFull, PoolBusy, NotAttached, ValueError for a policy that there
        is none of, or a tenant's name of more than TENANT_BYTES_MAX bytes.
        """
        tenant = self._tenant_of(identity)
        if len(tenant.encode("utf-8", "surrogatepass")) > TENANT_BYTES_MAX:
            # Cut off in the pool's table, two tenants would be one: one account, one view, one key for what lies below.
            raise ValueError(f"a tenant's name has at most {TENANT_BYTES_MAX} bytes; {tenant[:80]!r} has more")
        digest = core.blake3(identity.encode(), 16)
        secret = self._secret_of(tenant)
        if secret is not None:
            digest = seeded_digest(secret, digest)
        return self._register_namespace(digest, tenant, ttl, policy_flags(policy))

    def _tenant_of(self, identity: Identity) -> str:
        """Whose a namespace is."""
        return identity.tenant

    def _secret_of(self, tenant: str) -> bytes | None:
        """The secret of a tenant (32 bytes) that the pool's URL gives; None: none."""
        return self._secrets.of(tenant) if self._secrets else None

    def set_share(
        self, tenant: str, share_bytes: int = 0, limit_bytes: int = 0, at_limit: Literal["evict", "refuse"] = "evict"
    ) -> None:
        """Promise a tenant `share_bytes` of the pool and allow it `limit_bytes` (0: as much as there is).

        Nobody else pushes it below its share. Above it a tenant borrows room that nobody was promised, and gives it
        back first when others need theirs: a burst evicts its own before anything of those who have borrowed less. At
        the limit what it stores takes the place of its own coldest chunks ("evict"), or is answered FULL ("refuse").
        Counts at once, in every process; stats()["tenants"] says what each takes.

        Raises ShareTooLarge (not so much is left to promise, or the limit is below the share), PoolBusy,
        NamespaceTableFull, NotAttached.
        """
        if not tenant or len(tenant.encode()) > TENANT_BYTES_MAX:
            raise ValueError(f"a tenant's name has 1 to {TENANT_BYTES_MAX} bytes, not {len(tenant.encode())}")
        if share_bytes < 0 or limit_bytes < 0:
            raise ValueError("a share and a limit are 0 or more bytes")
        self._set_share(tenant, share_bytes, limit_bytes, at_limit == "refuse")

    def find(self, keys: Buffer) -> list[bool]:
        """Which of these chunks (n x 16 bytes) are readable now, whatever stands between them? A hint, as lookup.

        Raises BadKey, NotAttached.
        """
        packed = bytes(memoryview(keys).cast("B"))
        return [self.exists(packed[at : at + 16]) for at in range(0, len(packed), 16)]

    def wait_ready(self, timeout: float) -> bool:
        """Wait until all memory that the medium gives is real and touched in this process.

        From then on the first use of a chunk is as fast as the next. False when `timeout` seconds did not suffice. A
        medium that gave less than the pool's size is one warning with both figures; the pool works with what there is.
        """
        ready = super().wait_ready(timeout)
        if ready and not self._was_measured:
            self._was_measured = True
            figures = self.stats()
            if figures["real_bytes"] < figures["size_bytes"]:
                _log.warning(
                    "pool %s got %s of the %s it was made for: the medium or a memory limit gives no more",
                    self.config.name,
                    format_size(figures["real_bytes"]),
                    format_size(figures["size_bytes"]),
                )
        return ready

    def stats(self) -> dict[str, Any]:
        """The pool's figures: sizes in bytes, chunks by state, counters since creation, processes, namespaces.

        Walks the whole index (milliseconds on a large pool). `chunks`, `counters`, `segments`, `classes`,
        `namespaces`, `tenants`, `processes` and `eviction` are nested.
        """
        figures: dict[str, Any] = json.loads(self._statistics().decode("utf-8", "replace"))
        return figures

    def close(self) -> None:
        """Let go of the pool. Views that live keep their chunks; everything else raises NotAttached."""
        if self._audit is not None:
            self._audit.close()  # What was counted until now is read from the pool.
        super().close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<maru.Pool {self.config.url}{' closed' if self.closed else ''}>"


def _is_of_earlier_boot(config: PoolConfig) -> bool:
    """Was the index in this folder made before this boot? Then its content is gone and it may be made anew."""
    boot = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    layout = {item["name"]: item for item in json.loads(core.layout_description())["structs"]}
    places = {item["name"]: item["offset"] for item in layout["Superblock"]["fields"]}
    try:
        with (config.folder / "index").open("rb") as file:
            head = file.read(layout["Superblock"]["bytes"])
    except OSError:
        return False
    at = places["boot_id"]
    magic = json.loads(core.layout_description())["constants"]["index_magic"].to_bytes(8, "little")
    return head[:8] == magic and head[at : at + 16] != boot
