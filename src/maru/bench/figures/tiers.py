"""The same load with the pool on different media: ordinary shared memory, huge pages, a file, a DAX device.

What the medium costs a hit shows in the first transfer into a process, which meets every page for the first time, and
in reuse. On an engine that computes, computing everything again stands beside them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maru.bench.document import Measure
from maru.bench.figures.base import Figure, Knob
from maru.bench.figures.ttft import first_and_again
from maru.bench.session import SYNTHETIC, BadSetting, Session
from maru.bench.systems.contract import Deployment, Job, System
from maru.config import format_size

CONTEXTS = (1024, 4096, 7936)
QUICK_CONTEXTS = (256, 512)
HUGE_PAGE = 2 << 20
OURS = "maru"
_HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@dataclass
class OnMedium(System):
    """A system that keeps KV in our pool, with the pool on one medium."""

    base: System
    name: str
    title: str
    configuration: str
    absent: str = ""
    options: str = ""
    place: str = ""
    crosses: bool = True

    def why_not(self) -> str:
        return self.absent or self.base.why_not()

    def deploy(self, job: Job) -> Deployment:
        if self.options == "medium=file":
            Path(self.place).parent.mkdir(parents=True, exist_ok=True)
        return self.base.deploy(replace(job, pool_options=self.options, pool_place=self.place))


class Tiers(Figure):
    name = "tiers"
    title = "The pool on different media"
    question = "How much of a hit's time is the medium's?"
    engines = ("transformers", "synthetic")
    knobs = (
        Knob("file", "", "", "a path for the pool's data on a file system; without it one beside the model's cache"),
        Knob("hugetlbfs", "/dev/hugepages", "/dev/hugepages", "where hugetlbfs is mounted"),
        Knob("devdax", "", "", "a DAX device that may be overwritten, for example /dev/dax0.0"),
    )

    def systems(self, run: Session, chosen: Sequence[System]) -> Sequence[System]:
        ours = next((system for system in chosen if system.name == OURS), None)
        if ours is None:
            raise BadSetting(f"tiers compares media of our own pool: --systems has to name {OURS}")
        return [*media(run, ours), *(system for system in chosen if system.name == "recompute")]

    def measures(self, run: Session) -> list[Measure]:
        def of(name: str, title: str) -> Measure:
            return Measure(name, title, "s", "context", "tokens", log_x=True, log_y=True)

        reuse = [of("warmup", "First transfer into a process"), of("query", "Reuse")]
        return [*([of("store", "Storing")] if run.engine == SYNTHETIC else [of("cold", "First time")]), *reuse]

    def perform(self, run: Session) -> None:
        first_and_again(run, run.contexts(CONTEXTS, QUICK_CONTEXTS))


def media(run: Session, ours: System) -> list[System]:
    """Every medium, with the reason where it is not there."""
    file = Path(run.setting("file") or run.options.cache_dir / f"bench-pool-{os.getpid()}.data").absolute()
    device = str(run.setting("devdax"))
    hugetlbfs = Path(run.setting("hugetlbfs"))
    return [
        OnMedium(ours, OURS, "Maru, shared memory", "/dev/shm, pages as the system gives them"),
        OnMedium(
            ours, "maru-huge", "Maru, huge pages", f"hugetlbfs at {hugetlbfs}, pages of 2 MiB",
            absent=_why_no_huge_pages(hugetlbfs), options="medium=hugetlb",
            place=str(hugetlbfs / f"maru-{os.getpid()}"),
        ),
        OnMedium(
            ours, "maru-file", "Maru, a file", f"{file.parent.name}/{file.name}, through the page cache",
            absent=f"{file} is there already: name one that is not: --set file=…" if file.exists() else "",
            options="medium=file", place=str(file),
        ),
        OnMedium(
            ours, "maru-dax", "Maru, a DAX device", device or "/dev/dax*",
            absent=_why_no_dax(device), options="medium=devdax", place=device,
        ),
    ]  # fmt: skip


def _why_no_huge_pages(mount: Path) -> str:
    if not mount.is_dir() or not os.path.ismount(mount):
        return f"hugetlbfs is not mounted at {mount}: mount -t hugetlbfs none {mount}, and sysctl vm.nr_hugepages=2048"
    free = int((_HUGE / "free_hugepages").read_text()) * HUGE_PAGE if _HUGE.is_dir() else 0
    return "" if free >= 1 << 30 else f"{format_size(free)} of free huge pages: sysctl vm.nr_hugepages=2048"


def _why_no_dax(device: str) -> str:
    if not device:
        found = sorted(Path("/dev").glob("dax*"))
        hint = f"; there are {', '.join(map(str, found))}" if found else "; there is none here"
        return f"a device is overwritten, so name it: --set devdax=/dev/daxX.Y{hint}"
    return "" if Path(device).exists() else f"{device} does not exist"


FIGURE = Tiers()
