"""What one client of the daemon holds in the pool, and until when.

Holds:      leases (pinned chunks), holds (reservations and drafts), and the answers to what changed the pool.
Promises:   everything is bounded by `Limits`, and goes back at once when the session closes, whoever forgot what.
Leaves:     which request does what to `control`.

A client that gets bytes over the wire holds by the daemon's own process: when the daemon dies, so do its pins, and no
bytes can come any more either. A client that maps the pool's memory holds by a row of its own in the process table,
which outlives the daemon for as long as its lease runs.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from maru import wire
from maru.coherence import Memory
from maru.credentials import Client
from maru.daemon.coverage import Coverage
from maru.errors import BadMessage, PoolBusy
from maru.native import core
from maru.pool import Namespace


@dataclass(frozen=True)
class Limits:
    """What clients may take of the daemon and of the pool."""

    lease_s: float = 10.0
    """A client that was not heard of for so long has given back everything, after the guard time."""
    guard_s: float = 1.0
    """Clients stop reading so long before, and the daemon gives back so long after: what two clocks may differ by."""
    sessions: int = 1024
    pinned_share: float = 0.5
    """Of the pool's bytes, that one client's key may pin, in all its sessions; without keys, one session."""
    reserved_share: float = 0.25
    """Of the pool's bytes, that one client's key (or session) may have reserved and not sealed."""
    rows_share: float = 0.5
    """Of the pool's process table, that clients that map it may take together: the rest is for processes here."""
    answers: int = 4096
    """Remembered for requests that are asked again."""
    answers_bytes: int = 4 << 20
    """Of each session's remembered bodies: more than what all its connections have under way."""
    watches: int = 4096
    """Of all sessions together."""
    tenant_share: float = 0.75
    """Of the sessions, and of the watches, that the clients of one tenant may take: others get in, whatever it does."""
    namespaces_share: float = 0.25
    """Of the pool's table of namespaces, that the clients of one tenant may fill."""


@dataclass
class Lease:
    """Chunks held for a client."""

    prefix: core.PinnedPrefix
    size_bytes: int

    @cached_property
    def views(self) -> list[memoryview]:
        """The chunks' bytes, for sending them. Each view holds its chunk by itself, also on its way."""
        return self.prefix.views

    @cached_property
    def stamps(self) -> bytes:
        """16 bytes a chunk: other ones as soon as it is another chunk."""
        return self.prefix._stamps()

    def release(self) -> None:
        """Frames that are on their way keep their own views until they are sent."""
        self.__dict__.pop("views", None)
        self.prefix.release()


@dataclass
class Hold:
    """Memory that a client writes: a reservation, or a draft."""

    held: core.Reservation | core.Draft
    size_bytes: int
    taken_bytes: int
    """Of the pool: whole units."""
    written: Coverage = field(default_factory=Coverage)
    """What came over the wire of it. The rest is somebody's old bytes."""

    @property
    def is_draft(self) -> bool:
        return isinstance(self.held, core.Draft)

    def write(self, offset: int, data: memoryview, checksum: int) -> None:
        """Bytes that came for it. Nobody reads them before the seal, which only their client can ask for.

        Raises BadMessage when they do not fit, or are not those that the checksum is of.
        """
        size = len(data)
        if not 0 < size <= wire.PIECE_BYTES or not 0 <= offset <= self.size_bytes - size:
            raise BadMessage(f"bytes {offset} + {size} do not lie in a chunk of {self.size_bytes}")
        with memoryview(self.held.buffer) as whole, whole[offset : offset + size] as here:  # type: ignore[arg-type]
            if core.xxh3_64_copying(here, data) != checksum:
                self.written.forget()  # Some of it may have been right before.
                raise BadMessage("the bytes are not those that their checksum is of")
        self.written.add(offset, offset + size)


@dataclass
class Session:
    """One client, whatever connection it has just now."""

    session: bytes
    client: Client | None
    """Who it is by its CURVE key, with what it may, as it was let in; None where nobody asks."""
    name: str
    host: str
    pool: core.PoolCore
    """What its pins and reservations are made with: the daemon's own attachment, or its row's."""
    heard_s: float
    is_mapped: bool = False
    memory: Memory | None = None
    """Of one that maps the pool: its bytes as its row reaches them here. The daemon's own attachment may map a segment
    that was just added a moment later than the row does.
    """
    leases: dict[int, Lease] = field(default_factory=dict)
    holds: dict[int, Hold] = field(default_factory=dict)
    old_rows: dict[tuple[int, int], core.PoolCore] = field(default_factory=dict)
    """Held by a daemon before this one; the client lets go of them when nothing of theirs is used any more."""
    row_number: int = -1
    """Its row in the process table; -1: it holds by the daemon's own."""
    namespace: Namespace | None = None
    """What it stores under: the one it registered last."""
    pins: int = 0
    pinned_bytes: int = 0
    reserved_bytes: int = 0
    _answers: OrderedDict[int, tuple[wire.Answer, bytes]] = field(default_factory=OrderedDict)
    _answers_bytes: int = 0
    _next_id: int = field(default_factory=lambda: secrets.randbits(62))
    """Begins anywhere: a lease of a session that was forgotten must not be read as one of the next."""

    @property
    def user(self) -> str:
        """The name of its key; empty where nobody asks."""
        return self.client.name if self.client else ""

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(number, epoch) of every row held for this client, its own first."""
        own = [self.pool._row()] if self.is_mapped else []
        return own + list(self.old_rows)

    def add_lease(self, lease: Lease) -> int:
        number = self._take_id()
        self.leases[number] = lease
        self.pinned_bytes += lease.size_bytes
        self.pins += len(lease.prefix)
        return number

    def drop_lease(self, number: int) -> bool:
        lease = self.leases.pop(number, None)
        if lease is not None:
            self.pinned_bytes -= lease.size_bytes
            self.pins -= len(lease.prefix)
            lease.release()
        return lease is not None

    def add_hold(self, hold: Hold) -> int:
        number = self._take_id()
        self.holds[number] = hold
        self.reserved_bytes += hold.taken_bytes
        return number

    def take_hold(self, number: int) -> Hold | None:
        """The hold, once: whoever gets it ends it."""
        hold = self.holds.pop(number, None)
        if hold is not None:
            self.reserved_bytes -= hold.taken_bytes
        return hold

    def _take_id(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number

    def answered(self, number: int) -> tuple[wire.Answer, bytes] | None:
        """What this request was answered when it was asked before."""
        return self._answers.get(number)

    def remember(self, number: int, answer: wire.Answer, body: bytes, limits: Limits) -> None:
        self._answers[number] = (answer, body)
        self._answers_bytes += _memory_of(answer, body)
        while len(self._answers) > limits.answers or self._answers_bytes > limits.answers_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._answers_bytes -= _memory_of(*oldest)

    def renew(self, seconds: float) -> None:
        """Its rows live so long from now."""
        if self.is_mapped:
            self.pool._renew_lease(seconds)
        for row in self.old_rows.values():
            row._renew_lease(seconds)

    def keep_rows(self, wanted: list[tuple[int, int]]) -> None:
        """Let go of the earlier rows that the client does not name any more."""
        for row in [row for row in self.old_rows if row not in wanted]:
            self.old_rows.pop(row).close()

    def close(self) -> None:
        """Give everything back."""
        for lease in self.leases.values():
            lease.release()
        for hold in self.holds.values():
            hold.held.discard()
        self.leases.clear()
        self.holds.clear()
        self._answers.clear()  # Its connections know it until they end.
        self._answers_bytes = 0
        self.keep_rows([])
        if self.is_mapped:
            self.pool.close()

    def leave_behind(self) -> None:
        """The daemon goes: rows stay, for the next one, as long as their leases run."""
        if self.is_mapped:
            self.pool._leave_behind()
        for row in self.old_rows.values():
            row._leave_behind()
        self.old_rows.clear()


def _memory_of(answer: wire.Answer, body: bytes) -> int:
    """About how many bytes an answer takes that is remembered: numbers of 62 bits are objects of their own."""
    numbers = len(answer.holds) + len(answer.outcomes) if isinstance(answer, wire.Reserved) else 0
    return 200 + len(body) + 48 * numbers


def refuse_one_more(those: Collection[Session], client: Client | None, limit: int, share: float, what: str) -> None:
    """Raises PoolBusy when there are `limit` of them, or, for a client with a key, when so many are its tenant's that
    only that part of the limit is left which is for others. `those`: whose each one is.
    """
    if len(those) >= limit:
        raise PoolBusy(f"this daemon has its {limit} {what} already")
    own_max = int(share * limit)
    if client is None or len(those) < own_max:
        return
    own = sum(one.client is not None and one.client.tenant == client.tenant for one in those)
    if own >= own_max:
        raise PoolBusy(f"this daemon has {own} {what} of this tenant already, and keeps what is left for others")
