"""What clients ask of a daemon, noted for its audit log: who stored, hit, removed or was refused.

Holds:      the two places that every request passes: `Control`, which answers it, and `Authorised`, which lets it in.
Promises:   nobody gets another answer, or a later one, because it is noted. A request asked twice is noted once.
Leaves:     lines and files to `maru.audit`, HTTP to `audited_web`.

Who it was is what its key says; where nobody asks for keys, what it calls itself, with a ? before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maru import wire
from maru.audit import Audit, Who
from maru.audit.record import What
from maru.credentials import Authorised, Client
from maru.daemon.control import Body, Control, Out
from maru.daemon.parts import KEY_BYTES
from maru.daemon.sessions import Session
from maru.errors import MaruError
from maru.pool import Outcome

if TYPE_CHECKING:
    import zmq

_STORING = frozenset({wire.Seal, wire.Publish})
_NOTED = _STORING | {wire.Pin, wire.Remove, wire.Register, wire.Bump}
Sizes = dict[int, int]
"""Bytes of the holds that a request names: they are gone when it is answered."""


class AuditedControl(Control):
    """A Control that notes what it did."""

    def __init__(self, *parts: Any, audit: Audit, tenants: AuditedAuthorised | None, **more: Any) -> None:
        """As Control. `tenants`: knows whose clients there are; None where nobody asks for keys."""
        super().__init__(*parts, **more)
        self._audit, self._tenants = audit, tenants

    def greet(self, client: Client | None, hello: wire.Hello) -> tuple[Session, wire.Welcome]:
        try:
            return super().greet(client, hello)
        except MaruError as error:
            who = self._who(client.name if client else "", hello.name)
            self._note("refused", who, "", outcome=type(error).__name__, reason="Hello")
            raise

    def answer(self, session: Session, request: wire.Request, body: Body) -> tuple[wire.Answer, Out]:
        kind = type(request)
        is_noted = kind in _NOTED and session.answered(request.number) is None
        sizes: Sizes = {}
        if kind in _STORING:
            named = request.holds  # type: ignore[union-attr]
            sizes = {number: session.holds[number].size_bytes for number in named if number in session.holds}
        try:
            answer, out = super().answer(session, request, body)
        except MaruError as error:
            who = self._who(session.user, session.name)
            self._note("refused", who, _digest(session), outcome=type(error).__name__, reason=kind.__name__)
            raise
        if is_noted:
            self._note_answer(session, request, body, answer, sizes)
        return answer, out

    def _note_answer(
        self, session: Session, request: wire.Request, body: Body, answer: wire.Answer, sizes: Sizes
    ) -> None:
        who, digest = self._who(session.user, session.name), _digest(session)
        if isinstance(answer, wire.Leased):
            lease = session.leases.get(answer.lease)
            missed = len(body) // KEY_BYTES - answer.count
            if lease is not None:
                self._note("hit", who, digest, answer.count, lease.size_bytes)
            if missed > 0:
                self._note("missed", who, digest, missed)
        elif isinstance(request, (wire.Seal, wire.Publish)) and isinstance(answer, wire.Outcomes):
            pairs = zip(request.holds, answer.outcomes, strict=True)
            stored = [sizes.get(number, 0) for number, outcome in pairs if outcome == Outcome.STORED.value]
            if stored:
                self._note("stored", who, digest, len(stored), sum(stored))
        elif isinstance(request, wire.Remove) and isinstance(answer, wire.Done):
            outcome = "done" if answer.value else "absent or pinned"
            self._note("removed", who, digest, answer.value, outcome=outcome)
        elif isinstance(request, wire.Bump):
            self._note("expired", who, request.digest.hex())
        elif isinstance(request, wire.Register) and request.ttl_s is not None:
            self._note("policy", who, digest, reason=f"time to live {request.ttl_s:g} s")

    def _who(self, user: str, name: str) -> Who:
        if not user:
            return Who(client=f"?{name}")
        return Who(self._tenants.tenant_of(user) if self._tenants else "", user)

    def _note(
        self, what: What, who: Who, digest: str, chunks: int = 0, size: int = 0, outcome: str = "done", reason: str = ""
    ) -> None:
        self._audit.note((what, "rpc", who, self.pool.config.name, digest, outcome, reason), chunks, size)


def _digest(session: Session) -> str:
    return session.namespace.digest.hex() if session.namespace is not None else ""


class AuditedAuthorised(Authorised):
    """An Authorised that notes whom it did not let in. It names no key and no token: those are secrets, or noise."""

    def __init__(self, folder: Path, audit: Audit) -> None:
        """As Authorised."""
        super().__init__(folder)
        self._audit = audit
        self._seen: dict[str, Client] | None = None
        self._tenants: dict[str, str] = {}

    def tenant_of(self, name: str) -> str:
        """Whose client that is; empty when it was revoked since."""
        clients = self._clients.value()
        if clients is not self._seen:  # Each message asks, so not by walking the list.
            self._seen, self._tenants = clients, {one.name: one.tenant for one in clients.values()}
        return self._tenants.get(name, "")

    def is_authorised(self, public_z85: str) -> str | None:
        name = super().is_authorised(public_z85)
        if name is None:
            self._audit.note(("refused", "rpc", Who(), "", "", "unknown key", "Connect"))
        return name

    def who_sent(self, frame: zmq.Frame) -> Client | None:
        client = super().who_sent(frame)
        if client is None:
            self._audit.note(("refused", "rpc", Who(), "", "", "revoked key", "Message"))
        return client
