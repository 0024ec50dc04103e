"""What ended in the far pool ends in the near one: chunks that somebody removed, namespaces that were bumped.

Holds:      a thread that asks the far pool's daemon again and again, in the one process of the host that also sends,
            and the file `ladder-heard` in the near pool's folder: the number that was heard last, and when, as its
            time of change; then the near namespaces' epochs that the far pool knows of, as (digest, u64). (Files of
            that name go with the pool.)
Promises:   what ended there is gone here within POLL_S and what the daemon takes to see it, unless somebody reads it
            just then: such a chunk goes when they let go. Where it is not known what ended (the daemon began anew, or
            was not asked for long), the far pool is asked about every chunk that is here, and what it lacks goes. Who
            has heard nothing for UNHEARD_S reads nothing of the near pool, in any process, until it hears again. A
            namespace that is bumped here is bumped there, and until it is, nothing of it is brought from there.
Leaves:     the connection to `channel`, what goes the other way to `sender`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import threading
import time
from pathlib import Path

from maru import wire
from maru.client.remote import RemotePool
from maru.client.sender import Sender
from maru.errors import MaruError, NotAttached, PoolBusy
from maru.native import core
from maru.pool import Namespace, Pool

_log = logging.getLogger("maru")

FILE = "ladder-heard"
POLL_S = 0.25
UNHEARD_S = 300.0
LOOK_AGAIN_S = 0.25
"""How old what a process knows of the file may be."""
START_S = 2.0
"""So long a process waits at its start until it may read."""
KEY_BYTES = 16
_NUMBER = struct.Struct("<q")
_RECORD = struct.Struct("<16s16s")
_EPOCH = struct.Struct("<16sQ")
_WHOLE_NAMESPACE = bytes(KEY_BYTES)


class Listener:
    """One a near pool and process; start it with the pool, stop it before the pool closes."""

    def __init__(self, near: Pool, far: RemotePool, sender: Sender) -> None:
        self._near, self._far, self._sender = near, far, sender
        self._path = Path(near.folder) / FILE
        self._stopping = threading.Event()
        self._heard = threading.Event()
        self._good_until_s = 0.0
        self._agreed: dict[bytes, int] = {}
        self._spaces: dict[bytes, Namespace] = {}
        self._failing = False
        self._settled_looks: int | None = None
        self._read_just_then: set[bytes] = set()
        self.ended = 0
        """Chunks and namespaces that went from the near pool since they had ended in the far one."""
        self._thread = threading.Thread(target=self._run, name="maru-listener", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Until this host has heard what ended before now, if it can be."""
        ends = time.monotonic() + timeout_s
        self._sender.looked.wait(timeout_s)
        while not self._heard.wait(min(POLL_S / 4, max(0.0, ends - time.monotonic()))):
            if time.monotonic() >= ends or (not self._sender.has_right and self.may_read()):
                return

    def may_read(self) -> bool:
        """What is here may be read: this host has heard of the far pool lately."""
        now_s = time.monotonic()
        if now_s >= self._good_until_s:
            try:
                age_s = time.time() - self._path.stat().st_mtime
            except OSError:
                return False
            if age_s > UNHEARD_S:
                return False
            self._good_until_s = now_s + min(LOOK_AGAIN_S, UNHEARD_S - age_s)
        return True

    def agrees(self, namespace: Namespace | None) -> bool:
        """The far pool knows that what this namespace had before its epoch has ended."""
        if namespace is None:
            return True
        epoch, digest = namespace.epoch, namespace.digest
        if self._agreed.get(digest, 0) != epoch and not self._sender.has_right:
            _, self._agreed = self._read()
        return self._agreed.get(digest, 0) == epoch

    def stop(self, timeout_s: float) -> None:
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = POLL_S / 8
        while not self._stopping.wait(pause_s):
            pause_s = POLL_S if self._sender.is_caught_up else POLL_S / 8
            if not self._sender.has_right or self._far.closed:
                continue
            try:
                while self._round():
                    pass
                self._failing = False
            except NotAttached:
                return  # Closed meanwhile.
            except PoolBusy:
                pause_s = POLL_S / 8  # Not for long.
            except (MaruError, OSError) as error:
                self._far.count(type(error).__name__)
                if not self._failing and self._heard.is_set():
                    _log.warning(
                        "nothing is heard of what ends behind %s; what is here is read for %g s: %s",
                        self._far.channel.endpoint,
                        UNHEARD_S,
                        error,
                    )
                    self._failing = True

    def _round(self) -> bool:
        """Ask, and let go of what ended. True when there may be more."""
        number, agreed = self._read()
        if not self._heard.is_set():
            self._agreed = agreed
        self._bump_there()
        answer, body = self._far.channel.call(wire.Ended(0, number))
        records = list(_RECORD.iter_unpack(bytes(body)))
        if not answer.is_known:
            keys = [*self._sender.of_before(), *(self._sender.sent_or_brought() if self._heard.is_set() else ())]
            self._settled_looks = None
            self._read_just_then |= set(keys) - self._there(keys)
        for digest, key in records:
            if key == _WHOLE_NAMESPACE:
                self._bump(digest)
            else:
                self._read_just_then.add(key)
        self._remove()
        self._tell(answer.last)
        self._heard.set()
        self._sender.heard_s = time.monotonic()
        if not self._sender.is_caught_up:
            self._catch_up(answer.looks)
        return bool(records)

    def _catch_up(self, looks: int) -> None:
        """What lay here before is sent when the far pool lacks it, and that not because it was removed there: so first
        it is looked for, and then what had ended until then is heard.
        """
        if self._settled_looks is None:
            self._sender.need_not_send(self._there(self._sender.of_before()))
            self._settled_looks = looks + wire.SETTLED_LOOKS
        elif looks >= self._settled_looks:
            self._sender.has_caught_up()

    def _remove(self) -> None:
        for key in list(self._read_just_then):
            is_gone = core.PoolCore.remove(self._near, key)
            self.ended += is_gone
            if is_gone or not core.PoolCore.exists(self._near, key):
                self._read_just_then.discard(key)

    def _bump(self, digest: bytes) -> None:
        space = self._spaces.get(digest)
        if space is not None:
            epoch = space.bump()
            self.ended += 1
            if self._agreed.get(digest, 0) == epoch - 1:  # Else somebody here did so too, which is still to be told.
                self._agreed[digest] = epoch

    def _bump_there(self) -> None:
        """Tell the far pool of namespaces that were bumped here."""
        for number, digest, tenant, ttl_ns, _ in self._near._namespace_rows():
            if number and digest not in self._spaces:
                with contextlib.suppress(UnicodeError):  # Then it is not one of ours.
                    name = tenant.decode()
                    self._spaces[digest] = self._near._register_namespace(digest, name, ttl_ns / 1e9 or None, 0)
        for digest, space in self._spaces.items():
            epoch = space.epoch
            if epoch != self._agreed.get(digest, 0):
                self._sender.let_pass()  # What was stored before the bump does not come there after it.
                self._far.channel.call(wire.Bump(0, core.xxh3_64(digest), digest))
                self._agreed[digest] = epoch

    def _there(self, keys: list[bytes]) -> set[bytes]:
        """Which of these the far pool has. Raises NoDaemon, and what is refused: nothing is known then."""
        there: set[bytes] = set()
        for at in range(0, len(keys), wire.KEYS_MAX):
            some = keys[at : at + wire.KEYS_MAX]
            _, found = self._far.channel.call(wire.Find(0), b"".join(some))
            there.update(key for key, is_there in zip(some, bytes(found), strict=True) if is_there)
        return there

    def _read(self) -> tuple[int, dict[bytes, int]]:
        """The number that was heard last, -1 if nobody knows, and the epochs that the far pool knows of."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return -1, {}
        if len(data) < _NUMBER.size or (len(data) - _NUMBER.size) % _EPOCH.size:
            return -1, {}
        return int(_NUMBER.unpack_from(data)[0]), dict(_EPOCH.iter_unpack(data[_NUMBER.size :]))

    def _tell(self, number: int) -> None:
        """For this process when it starts again, and for the others of this host. Raises OSError."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # Whoever may map the pool may go on listening.
                os.fchmod(fd, stat.S_IMODE((self._path.parent / "lock").stat().st_mode) & 0o660)
            os.pwrite(fd, _NUMBER.pack(max(number, 0)) + b"".join(_EPOCH.pack(*one) for one in self._agreed.items()), 0)
            os.utime(fd)
        finally:
            os.close(fd)
