"""Which figures there are, and their rows: all stores in turn within each round, ours the one to compare with.

Times are those that the stores' processes report, so that no pipe is in them. A store that fails has no row in that
table, and a line says why; when its process is gone it is out of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from maru.bench.ground import MIB, Plan
from maru.bench.measure import Contestant, Progress, Row, interleave, repeats_wanted
from maru.bench.rivals.contract import RivalFailed
from maru.bench.rivals.crew import Crew, Member
from maru.bench.rivals.roster import OURS
from maru.bench.rivals.work import Job

KIB = 1 << 10
PUT_BYTES = (4 * KIB, 64 * KIB, 256 * KIB, 8 * MIB, 32 * MIB)
WRITER_CHUNK_BYTES = 8 * MIB
READER_COUNT = 2
CALIBRATIONS = 3
REASON_CHARS = 200


class ReportedTime:
    """A clock that is moved on by what processes report."""

    def __init__(self) -> None:
        self._ns = 0

    def __call__(self) -> int:
        return self._ns

    def add(self, ns: int) -> None:
        self._ns += ns


@dataclass
class Group:
    """A table: its rows, and what is said of stores that have none in it."""

    title: str
    rows: list[Row] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


class OursFailed(RuntimeError):
    """There is nothing left to compare with."""


class _Failed(RivalFailed):
    """A store failed; says which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


Sampler = Callable[[Crew, int], int]
"""Lets a store do something so many times; nanoseconds."""


class Contest:
    """All stores of a run that still take part, by name, and why the others do not."""

    def __init__(self, crews: dict[str, Crew], absent: dict[str, str], job: Job, plan: Plan) -> None:
        self._crews, self._absent, self._job, self._plan = crews, absent, job, plan
        self._generation = 0

    def start(self, progress: Progress) -> None:
        """Start every store. Raises OursFailed."""
        total = len(self._crews)
        for number, name in enumerate(list(self._crews)):
            try:
                self._crews[name].start()
            except RivalFailed as error:
                self._drop(name, str(error))
            progress(number + 1, total)

    def _drop(self, name: str, reason: str) -> None:
        """Take a store out of the rest of the run. Raises OursFailed."""
        if name == OURS:
            raise OursFailed(reason)
        crew = self._crews.pop(name)
        self._absent[name] = failed_words(crew, reason)
        crew.end()

    def _each(self, act: Callable[[Crew], object]) -> None:
        """Let every store do something untimed; who cannot is dropped."""
        for name in list(self._crews):
            try:
                act(self._crews[name])
            except RivalFailed as error:
                self._drop(name, str(error))

    @contextmanager
    def _blamed(self, name: str) -> Iterator[Crew]:
        """A failure in here is that of this store."""
        try:
            yield self._crews[name]
        except RivalFailed as error:
            raise _Failed(name, str(error)) from error

    def _measure(
        self,
        title: str,
        rounds: int,
        sampler: Sampler,
        progress: Progress,
        *,
        label: str = "",
        bytes_each: int = 0,
        repeats: int = 0,
        before: Callable[[Crew], object] = lambda _crew: None,
    ) -> Group:
        """One row a store. When one fails the figure is taken again without it; who still runs may go on with the next.

        `repeats` of 0 finds out how many make a sample. `before` is done before each sample, untimed.
        """
        failed: dict[str, str] = {}
        while True:
            clock = ReportedTime()

            def run(name: str, repeats: int, clock: ReportedTime = clock) -> None:
                with self._blamed(name) as crew:
                    clock.add(sampler(crew, repeats))

            def prepare(name: str, repeats: int) -> int:
                with self._blamed(name) as crew:
                    before(crew)
                return repeats

            contestants = [
                Contestant(name, partial(run, name), partial(prepare, name), repeats)
                for name in self._crews
                if name not in failed
            ]
            try:
                if not repeats:
                    contestants = [calibrated(one, clock) for one in contestants]
                seconds = interleave(contestants, rounds, clock=clock, progress=progress)
            except _Failed as one:
                if one.name == OURS or not self._crews[one.name].is_alive:
                    self._drop(one.name, str(one))
                else:
                    failed[one.name] = failed_words(self._crews[one.name], str(one))
                continue
            return Group(title, self._rows(label, seconds, bytes_each), [*self._absent.values(), *failed.values()])

    def _rows(self, label: str, seconds: dict[str, tuple[float, ...]], bytes_each: int) -> list[Row]:
        def named(name: str) -> str:
            title = self._crews[name].entry.title
            return f"{title}, {label}" if label else title

        ours = named(OURS)
        return [
            Row(named(name), samples, bytes_each)
            if name == OURS
            else Row(named(name), samples, bytes_each, ours, seconds[OURS])
            for name, samples in seconds.items()
        ]

    def _store_prefix(self, crew: Crew) -> None:
        crew.host.ask("store_prefix", generation=self._generation)

    def found(self, progress: Progress) -> list[Group]:
        """Lookup of a prefix, and one chunk got and given back, in the process that hosts the store."""

        def sampled(what: str) -> Sampler:
            return lambda crew, repeats: int(
                crew.host.ask("sample", what=what, repeats=repeats, generation=self._generation)
            )

        self._each(self._store_prefix)
        chunks, size_kib, rounds = self._job.prefix_chunks, self._job.chunk_bytes // KIB, self._plan.rounds(200)
        return [
            self._measure(f"Lookup of a prefix of {chunks} chunks", rounds, sampled("lookup"), progress),
            self._measure(f"One chunk of {size_kib} KiB: get a view, give it back", rounds, sampled("get"), progress),
        ]

    @property
    def _prefix_bytes(self) -> int:
        return self._job.prefix_chunks * self._job.chunk_bytes

    def read(self, progress: Progress) -> list[Group]:
        """A whole prefix copied out by other processes than the one that stored it."""

        def verify(crew: Crew) -> None:
            for reader in crew.readers:
                reader.ask("verify", generation=self._generation)

        def sampled(count: int) -> Sampler:
            return lambda crew, _repeats: self._read_at_once(crew.readers[:count])

        self._each(verify)
        what, rounds = f"{self._job.prefix_chunks} chunks copied out", self._plan.rounds(30)
        return [
            self._measure(
                f"{what} {by_whom}",
                rounds,
                sampled(count),
                progress,
                bytes_each=count * self._prefix_bytes,
                repeats=1,
            )
            for count, by_whom in ((1, "by another process"), (READER_COUNT, f"by {READER_COUNT} processes at once"))
        ]

    def _read_at_once(self, readers: Sequence[Member]) -> int:
        """Nanoseconds of the slowest of some readers that begin together."""
        asked = [
            (reader, reader.post("sample", what="read", repeats=1, generation=self._generation)) for reader in readers
        ]
        return max([int(reader.collect(number)) for reader, number in asked])

    def read_beside_writer(self, progress: Progress) -> list[Group]:
        """The same while the host stores other chunks; each sample reads a prefix stored just before."""
        written: dict[str, list[float]] = {}

        def restore(crew: Crew) -> None:
            self._generation += 1
            self._store_prefix(crew)

        def sample(crew: Crew, _repeats: int) -> int:
            write = crew.host.post("write", size=WRITER_CHUNK_BYTES, bytes_max=self._job.capacity_bytes // 2)
            try:
                taken_ns = self._read_at_once(crew.readers)
            finally:
                crew.host.post("stop")
                count, writing_ns = crew.host.collect(write)
            written.setdefault(crew.entry.title, []).append(writing_ns * 1e-9 / count)
            return taken_ns

        rounds = self._plan.rounds(30)
        group = self._measure(
            f"{READER_COUNT} processes read as above beside one that writes",
            rounds,
            sample,
            progress,
            label="reading",
            bytes_each=READER_COUNT * self._prefix_bytes,
            repeats=1,
            before=restore,
        )
        took_part = {row.name.removesuffix(", reading") for row in group.rows}
        titles = {name: crew.entry.title for name, crew in self._crews.items()}
        # The last so many are those of the rounds that counted.
        writing = {name: tuple(written[title][-rounds:]) for name, title in titles.items() if title in took_part}
        group.rows += self._rows("writing 8 MiB", writing, WRITER_CHUNK_BYTES)
        return [group]

    def put(self, size: int, progress: Progress) -> list[Group]:
        """Puts of one size into a store that is full."""
        self._each(lambda crew: crew.host.ask("fill", size=size))
        shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
        group = self._measure(
            f"put, {shown}, full store",
            self._plan.rounds(100 if size < MIB else 40),
            lambda crew, repeats: int(crew.host.ask("sample", what="put", repeats=repeats, size=size)),
            progress,
            bytes_each=size if size >= MIB else 0,
        )
        return [group]


def failed_words(crew: Crew, reason: str) -> str:
    """What is said of a store that failed: of a long story the last line."""
    told = ([line for line in reason.splitlines() if line.strip()] or ["no reason given"])[-1].strip()
    return f"{crew.entry.title}: failed: {told[:REASON_CHARS]}"


def calibrated(contestant: Contestant, clock: ReportedTime) -> Contestant:
    """With repeats that make a sample long enough; a first call that is slow, or a disturbance, must not decide it."""
    return replace(contestant, repeats=max(repeats_wanted(contestant, clock) for _ in range(CALIBRATIONS)))
