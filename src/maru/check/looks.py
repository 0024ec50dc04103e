"""One check: look at everything, then twice more at what was suspicious, and report what lasts.

A living pool changes while it is read, so that two tables read one after the other may disagree for no bad reason. A
finding counts when it is there at every look, about the same words.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from maru.check.extents import ExtentRules, verify_bytes
from maru.check.files import PoolFile
from maru.check.finding import Finding, Report, Suspects
from maru.check.geometry import read_geometry
from maru.check.holders import look_at_boot, look_at_holders, open_segments
from maru.check.layout import layout
from maru.check.slots import Progress, SlotRules, count_children, no_progress
from maru.check.tables import Tables, fresh_tables, read_tables
from maru.check.xxh3 import fastest
from maru.errors import PoolNotFound

LOOKS = 3
PAUSE_S = 0.02
_ORDER = {"error": 0, "leftover": 1, "note": 2}


def check_pool(
    folder: Path, read_data: bool = False, progress: Progress = no_progress, pause_s: float = PAUSE_S
) -> Report:
    """Check the pool in `folder` without attaching to it.

    `read_data` also hashes every header of a sealed chunk, and the bytes of those that have a checksum. `pause_s` is
    waited before each later look, if there is need of one. Takes about as much memory as the index has without its pin
    columns. Raises PoolNotFound where there is no whole pool, PoolMismatch for one that cannot be read.
    """
    started = time.monotonic()
    with contextlib.suppress(PermissionError):  # Opening it says so better.
        if not (folder / "index").exists():
            raise PoolNotFound(f"no pool at {folder}", path=str(folder))
    report = Report(str(folder))
    with PoolFile(folder / "index") as index:
        geometry = read_geometry(folder, index, layout())
        tables = read_tables(geometry, layout(), index)
        suspects = Suspects()
        files = open_segments(tables, suspects)
        try:
            lasting = dict(suspects.found)  # Segments are judged once: nobody changes them in a living pool.
            changing, rules = _first_look(tables, files, progress)
            report.figures = _figures(tables, rules)
            looks = 1
            while changing.found and looks < LOOKS:
                time.sleep(pause_s)
                changing = _look_again(fresh_tables(geometry, layout(), index), files, changing)
                looks += 1
            lasting.update(changing.found)
            if any(finding.severity != "note" for finding in changing.found.values()):
                report.unlisted_count = changing.beyond_count
            report.figures["looks"] = looks
            findings = list(lasting.values())
            if read_data:
                wrong, report.figures["bytes_verified"] = verify_bytes(rules, fastest(), progress)
                findings += wrong
        finally:
            for file in files.values():
                file.close()
    report.findings = sorted(findings, key=_place)
    report.seconds = time.monotonic() - started
    return report


def _place(finding: Finding) -> tuple[int, str, str, int]:
    return (_ORDER[finding.severity], finding.code, finding.kind, finding.number)


def _first_look(tables: Tables, files: dict[int, PoolFile], progress: Progress) -> tuple[Suspects, ExtentRules]:
    suspects = Suspects()
    look_at_boot(tables, suspects)
    slots = SlotRules(tables, suspects)
    slots.look(range(tables.geometry.slot_count), progress)
    extents = ExtentRules(slots, suspects, files)
    extents.look(progress)
    look_at_holders(tables, suspects, progress)
    if not tables.alive:
        count_children(tables, suspects)
    return suspects, extents


def _look_again(tables: Tables, files: dict[int, PoolFile], before: Suspects) -> Suspects:
    """Only what was suspicious, as it is now; what is not there any more, or is about other words, was transient."""
    now = Suspects()
    look_at_boot(tables, now)
    slots = SlotRules(tables, now)
    slots.look(before.numbers("slot"))
    ExtentRules(slots, now, files).look_again(before.numbers("unit"), before.numbers("slab"))
    look_at_holders(tables, now)
    kept = {key: found for key, found in now.found.items() if key in before.found}
    kept.update({key: found for key, found in before.found.items() if found.code.startswith("hint.")})
    return Suspects(kept, before.beyond_count)


def _figures(tables: Tables, rules: ExtentRules) -> dict[str, int]:
    geometry = tables.geometry
    states = zip(tables.layout.slot_states, rules.slots.states, strict=True)
    return {
        "slots": geometry.slot_count,
        "units": geometry.unit_count,
        "slabs": geometry.slab_count,
        "segments": len(geometry.segments),
        "processes_alive": len(tables.alive or ()),
        **{name.lower(): count for name, count in states},
    }
