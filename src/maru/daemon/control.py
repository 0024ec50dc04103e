"""What a client's request means in the pool. No sockets, no threads, no clock but the one that is handed in.

Holds:      the sessions, the namespaces that clients named.
Promises:   every request gets exactly one answer; what cannot be done is Refused by the name of an error, and nothing
            was changed. A request that changes the pool is done once, however often it is asked. What a client holds
            goes back when it says so, or `lease + guard` seconds after it was last heard of.
Leaves:     frames and connections to `server`, who waits for which key to `watches`, what ended to `endings`.

Bytes that another host wrote into memory that it maps are published only if this host, with its own caches emptied,
reads what the writer's checksum says; bytes that another host will read in place are flushed before it is told where.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from maru import wire
from maru.coherence import Memory, hand_out, publishable, show_to_others
from maru.credentials import Client, Level
from maru.daemon.checksums import Checksums
from maru.daemon.endings import Endings
from maru.daemon.parts import KEY_BYTES, fitting, keys_of, one_key_of, parent_of, plain_extents, ttl_of
from maru.daemon.pool_figures import PoolFigures
from maru.daemon.pool_memory import PoolMemory
from maru.daemon.sessions import Hold, Lease, Limits, Session, refuse_one_more
from maru.daemon.tenancy import Seed, Tenancy
from maru.daemon.watches import Watches
from maru.errors import BadMessage, Forbidden, LeaseEnded, MaruError, PoolBusy, VersionSkew
from maru.native import core
from maru.pool import Namespace, Outcome, Pool

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CHECKSUMS_MAX = 1 << 20
"""Remembered of chunks that were flushed and shown to other hosts, and as many of pieces that were sent to them. Apart:
what was sent was not flushed."""
OLD_ROWS_MAX = 4

Body = bytes | memoryview
Out = Body | list[memoryview]
"""What goes behind an answer: nothing (b""), one body, or several."""


Rise = Callable[[bytes, Namespace, bytes | None], object]


class Control:
    """One pool and its clients. Not thread-safe: one thread drives it."""

    def __init__(
        self,
        pool: Pool,
        limits: Limits,
        daemon: bytes,
        library: str,
        clock: Callable[[], float] = time.monotonic,
        memory: Memory | None = None,
        begin_rise: Rise | None = None,
        seed: Seed | None = None,
    ) -> None:
        """`daemon`: 16 random bytes of this start. `memory`: how the pool's bytes are reached (tests emulate it).

        `begin_rise`: bring chunks from places below the pool, in the background: keys, namespace, key before them.
        `seed`: what a tenant's digests become, so that no other tenant can compute its keys.
        """
        self.pool = pool
        self.limits = limits
        self.sessions: dict[bytes, Session] = {}
        self._daemon = daemon
        self._library = library
        self._clock = clock
        self._memory = memory
        self._begin_rise = begin_rise
        self._shown_sums, self._sent_sums = Checksums(CHECKSUMS_MAX), Checksums(CHECKSUMS_MAX)
        self._figures = PoolFigures(pool, clock)
        namespaces_max = int(limits.namespaces_share * self._figures["namespace_limit"])
        self._tenancy = Tenancy(pool, namespaces_max, clock, seed)
        self._watches = Watches(pool, self._tenancy, limits, clock)
        self._endings = Endings(pool)
        self._host = BOOT_ID.read_text().strip()
        self._meaning: dict[type, Callable[..., tuple[wire.Answer, Out]]] = {
            wire.Register: self._register, wire.Lookup: self._lookup, wire.Pin: self._pin, wire.Read: self._read,
            wire.Renew: self._renew, wire.Release: self._release, wire.Reserve: self._reserve,
            wire.Allocate: self._allocate, wire.Write: self._write, wire.Fill: self._fill, wire.Seal: self._seal,
            wire.Publish: self._publish, wire.Discard: self._discard, wire.Remove: self._remove,
            wire.Stats: self._stats, wire.Goodbye: self._goodbye, wire.Find: self._find, wire.Fetch: self._fetch,
            wire.Ended: self._ended, wire.Bump: self._bump,
        }  # fmt: skip

    # Who is there

    def greet(self, client: Client | None, hello: wire.Hello) -> tuple[Session, wire.Welcome]:
        """The session of a client, new or known. `client`: as its key proved; None where nobody asks.

        Raises VersionSkew, BadMessage, Forbidden (it may not map the pool), PoolBusy (no room for more).
        """
        oldest, newest = hello.protocols
        if not oldest <= wire.PROTOCOL <= newest:
            raise VersionSkew(
                f"this daemon ({self._library}) speaks protocol {wire.PROTOCOL}, the client ({hello.library[:40]}) "
                f"{oldest} to {newest}"
            )
        if len(hello.session) != 16:
            raise BadMessage(f"a session is 16 bytes, not {len(hello.session)}")
        session = self.sessions.get(hello.session)
        if session is not None and (
            session.user != (client.name if client else "") or session.is_mapped != hello.mapped
        ):
            raise BadMessage("this session is somebody else's, or of another kind")
        if hello.mapped and client is not None and not client.may_map:
            raise Forbidden("this client may not map the pool's memory, where it would see every tenant's bytes")
        if session is not None and session.client != client:  # What it may has changed: it begins anew.
            self._close(session)
            session = None
        if session is None:
            session = self._new_session(client, hello)
        session.heard_s = self._clock()
        session.renew(self.limits.lease_s + self.limits.guard_s)
        self._figures.look_again()
        return session, self._welcome(session, hello)

    def _new_session(self, client: Client | None, hello: wire.Hello) -> Session:
        limits = self.limits
        refuse_one_more(self.sessions.values(), client, limits.sessions, limits.tenant_share, "clients")
        name = "".join(char if char.isprintable() else "?" for char in hello.name)[:47] or "client"
        held = self.limits.lease_s + self.limits.guard_s
        pool: core.PoolCore = self.pool
        if hello.mapped:
            if self._rows_held() >= int(self.limits.rows_share * self._figures["process_limit"]):
                raise PoolBusy("clients that map the pool have as many rows of its process table as they may")
            pool = core.PoolCore(self.pool.folder, name, False, lease=held)
        session = Session(hello.session, client, name, hello.host[:64], pool, self._clock(), hello.mapped)
        if hello.mapped:
            session.memory = self._memory or PoolMemory(pool)
            session.row_number = pool._row()[0]
            for row in hello.rows[:OLD_ROWS_MAX]:  # They are in the table already, whoever holds them.
                try:
                    session.old_rows[row] = core.PoolCore(self.pool.folder, name, False, lease=held, adopt=row)
                except (MaruError, TypeError, ValueError):
                    continue  # Gone: the client is told by its absence.
        self.sessions[hello.session] = session
        return session

    def _rows_held(self) -> int:
        return sum(len(session.rows) for session in self.sessions.values())

    def _welcome(self, session: Session, hello: wire.Hello) -> wire.Welcome:
        figures = self._figures
        return wire.Welcome(
            hello.number, wire.PROTOCOL, self._library, self._daemon, figures["uuid"], self.pool.config.name,
            self.pool.folder, self._host, figures["unit_bytes"], figures["slab_bytes"], figures["size_bytes"],
            self.limits.lease_s, self.limits.guard_s, figures.segments(),
            session.pool._row() if session.is_mapped else None,
            list(session.old_rows),
        )  # fmt: skip

    def expire(self) -> int:
        """Close the sessions that were silent for lease and guard; returns how many."""
        latest = self._clock() - self.limits.lease_s - self.limits.guard_s
        late = [session for session in self.sessions.values() if session.heard_s < latest]
        for session in late:
            self._close(session)
        return len(late)

    def _close(self, session: Session) -> None:
        self.sessions.pop(session.session, None)
        self._watches.drop(session)
        session.close()

    def leave(self) -> None:
        """The daemon goes. What clients hold by rows stays until their leases end, everything else goes back."""
        for session in list(self.sessions.values()):
            session.leave_behind() if session.is_mapped else session.close()
        self.sessions.clear()
        self._watches.drop()
        self._endings.stop()

    # What is asked

    def answer(self, session: Session, request: wire.Request, body: Body) -> tuple[wire.Answer, Out]:
        """The answer and what goes behind it. Raises MaruError: nothing was changed."""
        session.heard_s = self._clock()
        changes = isinstance(request, wire.CHANGES_THE_POOL)
        if changes and (known := session.answered(request.number)) is not None:
            return known
        meaning = self._meaning.get(type(request))
        if meaning is None:
            raise BadMessage(f"{type(request).__name__} is nothing to ask here")
        answer, out = meaning(session, request, body)
        if changes:
            assert not isinstance(out, list)
            session.remember(request.number, answer, bytes(out), self.limits)
        return answer, out

    def watch(self, session: Session, request: wire.Watch, body: Body, peer: bytes) -> None:
        """Remember who waits for a key, and on which connection; `due` answers. Raises BadMessage, BadKey, PoolBusy."""
        session.heard_s = self._clock()
        self._watches.add(session, request, one_key_of(body), peer)

    def due(self) -> Iterator[tuple[bytes, wire.Answer]]:
        """(connection, answer) of the watches that have one now."""
        return self._watches.due()

    @property
    def has_watches(self) -> bool:
        return bool(self._watches)

    def _register(self, session: Session, request: wire.Register, __: Body) -> tuple[wire.Answer, Body]:
        if len(request.digest) != 16 or len(request.tenant.encode()) > 63:
            raise BadMessage("a namespace is a digest of 16 bytes and a tenant of at most 63")
        ttl_s = ttl_of(request.ttl_s)
        namespace = self._tenancy.register(session.client, request.digest, request.tenant, ttl_s, request.policy)
        session.namespace = namespace
        return wire.Done(request.number, namespace.id, namespace.digest), b""

    def _lookup(self, session: Session, request: wire.Lookup, body: Body) -> tuple[wire.Answer, Body]:
        keys = keys_of(body)
        found = self.pool.lookup(keys, namespaces=self._tenancy.visible(session.client, Level.LOOKUP))
        self._rise(session, keys, found)
        return wire.Done(request.number, found), b""

    def _rise(self, session: Session, keys: bytes, found: int) -> None:
        """What this client missed may lie below: it is there when the client asks again. Nobody waits here."""
        missing, namespace = keys[found * KEY_BYTES :], session.namespace
        if self._begin_rise and namespace and missing and self._tenancy.may(session.client, Level.READ, namespace.id):
            before = keys[(found - 1) * KEY_BYTES : found * KEY_BYTES] if found else None
            self._begin_rise(missing, namespace, before)

    def _find(self, session: Session, request: wire.Find, body: Body) -> tuple[wire.Answer, Body]:
        keys, mine = keys_of(body), self._tenancy.visible(session.client, Level.LOOKUP)
        exists = partial(self.pool.exists, namespaces=mine)
        found = bytes(exists(keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES))
        return wire.Piece(request.number, core.xxh3_64(found)), found

    def _ended(self, session: Session, request: wire.Ended, _: Body) -> tuple[wire.Answer, Body]:
        last, is_known, looks, records = self._endings.since(request.since)
        if records and (theirs := self._tenancy.digests(session.client)) is not None:
            records = [one for one in records if one[: wire.DIGEST_BYTES] in theirs]
        return wire.Endings(request.number, last, is_known, looks), b"".join(records)

    def _pin(self, session: Session, request: wire.Pin, body: Body) -> tuple[wire.Answer, Body]:
        keys = keys_of(body)
        if request.bytes_max < 0:
            raise BadMessage(f"at most {request.bytes_max} bytes are not to be had")
        room = self._figures.share(self.limits.pinned_share)
        room -= sum(one.pinned_bytes for one in self._sessions_of(session))
        lent = self._tenancy.may_pin(session.client, self.sessions.values(), self._figures["size_bytes"])
        room = max(0, min(room, request.bytes_max, lent))
        if len(session.leases) >= wire.HOLDS_MAX:
            raise PoolBusy(f"this client has {wire.HOLDS_MAX} leases already")
        mine = self._tenancy.visible(session.client, Level.READ)
        prefix = session.pool.pin(keys, namespaces=mine)
        self._rise(session, keys, len(prefix))
        while prefix.nbytes > room:
            count = fitting(prefix, room)
            prefix.release()
            prefix = session.pool.pin(keys[: count * KEY_BYTES], namespaces=mine)
        if len(prefix) == 0:
            prefix.release()
            return wire.Leased(request.number, 0, 0), b""
        extents = self._shown(prefix, session.memory) if session.memory else plain_extents(prefix)
        lease = Lease(prefix, prefix.nbytes)
        return wire.Leased(request.number, session.add_lease(lease), len(prefix)), extents

    def _shown(self, prefix: core.PinnedPrefix, memory: Memory) -> bytes:
        """Extents with checksums, every byte flushed: each chunk once, as long as it is the same."""
        places = memoryview(prefix.extents()).cast("Q")
        stamps = prefix._stamps()
        out = bytearray()
        for at in range(len(prefix)):
            offset, size, stamp = places[2 * at], places[2 * at + 1], stamps[at * 16 : at * 16 + 16]
            checksum = self._shown_sums.of(stamp, partial(show_to_others, memory, offset, size))
            for word in (offset, size, checksum):
                out += word.to_bytes(8, "little")
        return bytes(out)

    def _read(self, session: Session, request: wire.Read, _: Body) -> tuple[wire.Answer, Body]:
        lease = session.leases.get(request.lease)
        if lease is None or not 0 <= request.chunk < len(lease.prefix):
            raise LeaseEnded("that chunk is not held for this client (any more)")
        view = lease.views[request.chunk]
        if not (0 < request.size <= wire.PIECE_BYTES and 0 <= request.offset <= view.nbytes - request.size):
            raise BadMessage(f"bytes {request.offset} + {request.size} do not lie in a chunk of {view.nbytes}")
        piece = view[request.offset : request.offset + request.size]
        return wire.Piece(request.number, self._sent_sum(lease, request.chunk, request.offset, piece)), piece

    def _fetch(self, session: Session, request: wire.Fetch, _: Body) -> tuple[wire.Answer, Out]:
        lease, end = session.leases.get(request.lease), request.chunk + request.count
        if lease is None or not 0 <= request.chunk < end <= len(lease.prefix):
            raise LeaseEnded("those chunks are not held for this client (any more)")
        if request.count > wire.FETCH_CHUNKS_MAX:
            raise BadMessage(f"{request.count} chunks at once; {wire.FETCH_CHUNKS_MAX} are the most")
        pieces = lease.views[request.chunk : end]
        if sum(piece.nbytes for piece in pieces) > wire.PIECE_BYTES:
            raise BadMessage(f"those chunks have more than {wire.PIECE_BYTES} bytes")
        sums = [self._sent_sum(lease, at, 0, piece) for at, piece in enumerate(pieces, request.chunk)]
        out = lease.prefix._spans(request.chunk, request.count) if request.runs else pieces
        return wire.Pieces(request.number, sums), out

    def _sent_sum(self, lease: Lease, chunk: int, offset: int, piece: memoryview) -> int:
        """Remembered of pieces as clients cut them, for others may be of any size and number."""
        if offset % wire.PIECE_BYTES or len(piece) != min(wire.PIECE_BYTES, lease.views[chunk].nbytes - offset):
            return core.xxh3_64(piece)
        name = lease.stamps[chunk * 16 : chunk * 16 + 16] + offset.to_bytes(8, "little")
        return self._sent_sums.of(name, partial(core.xxh3_64, piece))

    def _renew(self, session: Session, request: wire.Renew, _: Body) -> tuple[wire.Answer, Body]:
        session.keep_rows(request.rows)
        session.renew(self.limits.lease_s + self.limits.guard_s)
        self._figures.look_again()
        return wire.Rows(request.number, session.rows), b""

    def _release(self, session: Session, request: wire.Release, _: Body) -> tuple[wire.Answer, Body]:
        return wire.Done(request.number, sum(session.drop_lease(lease) for lease in request.leases)), b""

    # What is stored

    def _reserve(self, session: Session, request: wire.Reserve, body: Body) -> tuple[wire.Answer, Body]:
        keys = keys_of(body)
        self._figures.refuse_size(request.size)
        if not 0 < request.deadline_s <= 600:
            raise BadMessage("a reservation's deadline is above 0 and at most 600 seconds")
        count = min(len(keys) // KEY_BYTES, self._reservable(session, request.size))
        namespace = self._tenancy.to_store(session.client, request.namespace)
        parent, ttl_s = self._tenancy.parent(session.client, parent_of(request.parent)), ttl_of(request.ttl_s)
        outcomes: list[int] = []
        holds: list[int] = []
        offsets = bytearray()
        for at in range(count):
            key = keys[at * KEY_BYTES : at * KEY_BYTES + KEY_BYTES]
            held = session.pool.reserve(
                key, request.size, namespace, parent, ttl_s, request.deadline_s, device=session.is_mapped
            )
            outcome = self._tenancy.told(session.client, key, held.outcome)
            outcomes.append(outcome.value)
            if outcome is Outcome.FULL:
                break
            if held.outcome is Outcome.RESERVED:
                holds.append(self._handed_out(session, Hold(held, request.size, self._figures.taken(request.size))))
                offsets += held.offset.to_bytes(8, "little")
            parent = key
        outcomes += [Outcome.FULL.value] * (len(keys) // KEY_BYTES - len(outcomes))
        return wire.Reserved(request.number, outcomes, holds), bytes(offsets)

    def _allocate(self, session: Session, request: wire.Allocate, _: Body) -> tuple[wire.Answer, Body]:
        self._tenancy.need_anywhere(session.client, Level.WRITE)
        account = self._tenancy.account(session.client, session.namespace)
        self._figures.refuse_size(request.size)
        if not 0 < request.count <= wire.HOLDS_MAX:
            raise BadMessage(f"1 to {wire.HOLDS_MAX} drafts can be asked for, not {request.count}")
        holds: list[int] = []
        offsets = bytearray()
        for _n in range(min(request.count, self._reservable(session, request.size))):
            draft = session.pool.allocate(request.size, device=session.is_mapped, namespace=account)
            if draft is None:
                break
            holds.append(self._handed_out(session, Hold(draft, request.size, self._figures.taken(request.size))))
            offsets += draft.offset.to_bytes(8, "little")
        missing = request.count - len(holds)
        outcomes = [Outcome.RESERVED.value] * len(holds) + [Outcome.FULL.value] * missing
        return wire.Reserved(request.number, outcomes, holds), bytes(offsets)

    def _handed_out(self, session: Session, hold: Hold) -> int:
        if session.memory:
            hand_out(session.memory, hold.held.offset, hold.size_bytes)
        return session.add_hold(hold)

    def _write(self, session: Session, request: wire.Write, body: Body) -> tuple[wire.Answer, Body]:
        hold = session.holds.get(request.hold)
        if hold is None:
            raise LeaseEnded("that memory is not held for this client (any more)")
        hold.write(request.offset, memoryview(body), request.checksum)
        return wire.Done(request.number, len(body)), b""

    def _fill(self, session: Session, request: wire.Fill, body: Body) -> tuple[wire.Answer, Body]:
        holds = [hold for number in request.holds if (hold := session.holds.get(number)) is not None]
        if not 0 < len(holds) == len(request.holds) == len(request.checksums) <= wire.FETCH_CHUNKS_MAX:
            raise LeaseEnded("that memory is not held for this client (any more), or not so much of it at once")
        if len(body) > wire.PIECE_BYTES or len(body) != sum(hold.size_bytes for hold in holds):
            raise BadMessage(f"{len(body)} bytes are not those of {len(holds)} whole chunks")
        whole, at = memoryview(body), 0
        for hold, checksum in zip(holds, request.checksums, strict=True):
            hold.write(0, whole[at : at + hold.size_bytes], checksum)
            at += hold.size_bytes
        return wire.Done(request.number, at), b""

    def _seal(self, session: Session, request: wire.Seal, _: Body) -> tuple[wire.Answer, Body]:
        outcomes = []
        for at, number in enumerate(request.holds):
            hold = session.take_hold(number)
            if hold is None or not isinstance(hold.held, core.Reservation):
                if hold is not None:
                    hold.held.discard()
                outcomes.append(Outcome.LOST.value)
            elif not self._is_whole(session, hold, request.checksums, at):
                hold.held.discard()
                outcomes.append(Outcome.LOST.value)
            else:
                outcomes.append(hold.held.seal().value)
        return wire.Outcomes(request.number, outcomes), b""

    def _publish(self, session: Session, request: wire.Publish, body: Body) -> tuple[wire.Answer, Body]:
        keys = keys_of(body)
        if len(keys) != KEY_BYTES * len(request.holds):
            raise BadMessage(f"{len(request.holds)} drafts need as many keys, not {len(keys) // KEY_BYTES}")
        namespace = self._tenancy.to_store(session.client, request.namespace)
        parent, ttl_s = parent_of(request.parent), ttl_of(request.ttl_s)
        outcomes = []
        for at, number in enumerate(request.holds):
            key = keys[at * KEY_BYTES : at * KEY_BYTES + KEY_BYTES]
            hold = session.take_hold(number)
            outcome = Outcome.LOST
            if hold is not None and isinstance(hold.held, core.Draft):
                if self._is_whole(session, hold, request.checksums, at):
                    parent = self._tenancy.parent(session.client, parent)
                    outcome = hold.held.publish(key, namespace, parent, ttl_s)
                    outcome = self._tenancy.told(session.client, key, outcome)
                if outcome not in (Outcome.STORED, Outcome.LOST):
                    session.holds[number] = hold  # Still the client's, for another name.
                    session.reserved_bytes += hold.taken_bytes
                elif outcome is Outcome.LOST:
                    hold.held.discard()
            elif hold is not None:
                hold.held.discard()
            outcomes.append(outcome.value)
            parent = key
        return wire.Outcomes(request.number, outcomes), b""

    def _is_whole(self, session: Session, hold: Hold, checksums: list[int], at: int) -> bool:
        """Bytes written in place by another host: do we read what it wrote? Over the wire: did all of them come? What
        did not is what lay there before, maybe another tenant's: whoever published that could read it.
        """
        if session.memory is None:
            return hold.written.is_whole(hold.size_bytes)
        return at < len(checksums) and publishable(session.memory, hold.held.offset, hold.size_bytes, checksums[at])

    def _discard(self, session: Session, request: wire.Discard, _: Body) -> tuple[wire.Answer, Body]:
        count = 0
        for number in request.holds:
            hold = session.take_hold(number)
            if hold is not None:
                hold.held.discard()
                count += 1
        return wire.Done(request.number, count), b""

    def _remove(self, session: Session, request: wire.Remove, body: Body) -> tuple[wire.Answer, Body]:
        mine = self._tenancy.visible(session.client, Level.WRITE)
        return wire.Done(request.number, int(self.pool.remove(one_key_of(body), namespaces=mine))), b""

    def _bump(self, session: Session, request: wire.Bump, _: Body) -> tuple[wire.Answer, Body]:
        if core.xxh3_64(request.digest) != request.checksum:
            raise BadMessage("the digest is not the one that its checksum is of")
        namespace = self._tenancy.to_bump(session.client, request.digest)
        return wire.Done(request.number, namespace.bump() if namespace is not None else 0), b""

    def _stats(self, session: Session, request: wire.Stats, _: Body) -> tuple[wire.Answer, Body]:
        text = msgspec.json.encode(self._tenancy.figures(session.client))
        return wire.Piece(request.number, core.xxh3_64(text)), text

    def _goodbye(self, session: Session, request: wire.Goodbye, _: Body) -> tuple[wire.Answer, Body]:
        self._close(session)
        return wire.Done(request.number, 0), b""

    def _reservable(self, session: Session, size: int) -> int:
        """How many more chunks of this size the client may have under way."""
        share, sessions = self.limits.reserved_share, self._sessions_of(session)
        room = self._figures.share(share) - sum(one.reserved_bytes for one in sessions)
        slots = int(share * self._figures["chunks"]["slots"]) - sum(len(one.holds) for one in sessions)
        room = min(room, self._tenancy.may_reserve(session.client, self.sessions.values(), self._figures["size_bytes"]))
        return max(0, min(room // self._figures.taken(size), slots, wire.HOLDS_MAX - len(session.holds)))

    def _sessions_of(self, session: Session) -> list[Session]:
        """All of the same key: who may open a session may open many, and gets no more by it."""
        if not session.user:
            return [session]
        return [one for one in self.sessions.values() if one.user == session.user]
