"""Two processes on one pool, each with a fate at a point of its own: what one death alone does not show.

    MARU_CORE=testing python -m maru.testing.pairs --pairs 200 --seed 1
    MARU_CORE=testing python -m maru.testing.pairs --replay kill:evict.marked,kill:clean.slot

The first process walks the tour and is killed or stopped at its point. The second walks it then, over what the first
left or still holds, and is killed or stopped at its own. Who was stopped wakes up, in the order of stopping or in the
other one. At the end nothing may leak, every readable byte must be right, and life must go on. Pairs come from the seed
alone, and each can be replayed by name.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, field

from maru.errors import PoolBusy
from maru.native import core
from maru.pool import Pool
from maru.testing import tour

DEADLINE_S = 60.0
# Before it is attached a process holds the creation lock: others wait for it, 5 s at most, and then say so.
LOCKED = ("create.", "attach.", "claim.byte", "claim.attached", "claim.live")
_BUSY = 5


@dataclass(frozen=True)
class Fate:
    """What happens to a process, and where."""

    action: str
    """"kill" or "stop"."""
    point: str

    def __str__(self) -> str:
        return f"{self.action}:{self.point}"


@dataclass
class Meeting:
    """One pair."""

    first: str
    second: str
    both_met: bool = False
    faults: list[str] = field(default_factory=list)


class Walker:
    """A forked process that walks the tour towards its fate."""

    def __init__(self, url: str, fate: Fate) -> None:
        self.fate, self.status = fate, 0
        self.pid = os.fork()
        if self.pid == 0:
            self._walk(url)

    def _walk(self, url: str) -> None:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            core.arm_crash_point(self.fate.point, self.fate.action)
            tour.see_everything(url, wait_for_sweep=self.fate.point.startswith("sweep."))
            code = 0
        except PoolBusy:
            code = _BUSY
        except BaseException as surprise:
            print(f"{self.fate}: {surprise!r}", file=sys.stderr, flush=True)
        os._exit(code)

    def wait(self) -> None:
        """Until it ends or stops. Raises TimeoutError."""
        until = time.monotonic() + DEADLINE_S
        while True:
            pid, self.status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"the process of {self.fate} neither ended nor stopped in {DEADLINE_S:.0f} s")
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)

    @property
    def is_stopped(self) -> bool:
        return os.WIFSTOPPED(self.status)

    @property
    def has_met_it(self) -> bool:
        return self.is_stopped or (os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.wait()

    def fault(self, may_be_busy: bool) -> str:
        """What is wrong with how it ended; "" for nothing."""
        if self.has_met_it or os.waitstatus_to_exitcode(self.status) == 0:
            return ""
        code = os.waitstatus_to_exitcode(self.status)
        return "" if code == _BUSY and may_be_busy else f"the process of {self.fate} ended with {code}"


def meet(url: str, first: Fate, second: Fate, last_wakes_first: bool = False) -> Meeting:
    """Let two processes meet their fates, wake who sleeps, and look at what is left. The pool is made and destroyed."""
    meeting = Meeting(str(first), str(second))
    walkers: list[Walker] = []
    try:
        for fate in (first, second):
            walkers.append(Walker(url, fate))
            walkers[-1].wait()
        meeting.both_met = all(walker.has_met_it for walker in walkers)
        sleepers = [walker for walker in walkers if walker.is_stopped]
        for walker in reversed(sleepers) if last_wakes_first else sleepers:
            walker.resume()
        may_be_busy = any(walker.fate.point.startswith(LOCKED) for walker in walkers)
        meeting.faults += [fault for walker in walkers if (fault := walker.fault(may_be_busy))]
        with Pool.open(url) as pool:
            meeting.faults += tour.faults_of(pool)
    except TimeoutError as late:
        meeting.faults.append(str(late))
        for walker in walkers:
            os.kill(walker.pid, signal.SIGKILL)
    finally:
        Pool.destroy(url, force=True)
    return meeting


def draw(dice: random.Random) -> tuple[Fate, Fate, bool]:
    """A pair: any two points, deaths and stops, and an order of waking."""
    points = sorted(core.crash_points())
    points = [point for point in points if not point.startswith(("destroy.", "fork.", "rebuild."))]
    fates = (
        Fate(dice.choice(("kill", "kill", "stop")), dice.choice(points)),
        Fate(dice.choice(("kill", "kill", "stop")), dice.choice(points)),
    )
    return *fates, dice.random() < 0.5


def read_fates(text: str) -> tuple[Fate, Fate]:
    """ "kill:evict.marked,stop:clean.slot". Raises ValueError."""
    fates = []
    for part in text.split(","):
        action, colon, point = part.partition(":")
        if not colon or action not in ("kill", "stop") or point not in core.crash_points():
            raise ValueError(f"{part!r} is not kill:POINT or stop:POINT with a point of this build")
        fates.append(Fate(action, point))
    if len(fates) != 2:
        raise ValueError(f"{text!r} names {len(fates)} fates, not two")
    return fates[0], fates[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same pairs")
    parser.add_argument("--replay", metavar="FATE,FATE", help="one pair by name, in both orders of waking")
    options = parser.parse_args()
    if not core.crash_points():
        parser.error("this needs the test build of the core: set MARU_CORE=testing")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if options.replay:
        try:
            first, second = read_fates(options.replay)
        except ValueError as error:
            parser.error(str(error))
        drawn = [(first, second, False), (first, second, True)]
    else:
        dice = random.Random(options.seed)
        drawn = [draw(dice) for _ in range(options.pairs)]
    meetings = []
    for number, (first, second, last_wakes_first) in enumerate(drawn):
        url = f"maru:///pairs-{os.getpid()}-{number}{tour.POOL_QUERY}"
        meetings.append(meet(url, first, second, last_wakes_first))
        if meetings[-1].faults:
            break
    faults = [asdict(meeting) for meeting in meetings if meeting.faults]
    met = sum(meeting.both_met for meeting in meetings)
    print(json.dumps({"seed": options.seed, "pairs": len(meetings), "both_met": met, "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
