"""The pool's protocols in every interleaving, with every process killed at every step (explorer.py says how).

Two kinds of walks. Each world must be without fault. And each mutant of the core has its twin in the model, and the
walk must find a fault with it: a model that cannot tell a broken pool from a sound one proves nothing. Five of the
mutants are faults that the core had until this walk met them.

What ties the model to the core is its reader: each step names the C++ function it stands for and the crash point that
follows. The last tests see to it that these names exist, that a modelled function has no crash point which the model
does not know of, and that no mutant of the core is without a twin.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from explorer import Found, forbidden_yields
from scenarios import WORLDS

ROOM = Path(__file__).parent
CORE = ROOM.parents[1] / "pool"

# Where each mutant shows. The model's own stands for a rule that the core has no mutant for.
SHOWS_IN = {
    "no_recheck_after_pin": "pinning and eviction",
    "no_pin_recheck_after_evicting": "pinning and eviction",
    "generation_not_bumped": "pinning and eviction",
    "dead_pins_not_wiped": "pinning and eviction",
    "evicting_treated_as_absent": "eviction and the same key",
    "stale_epoch_accepted": "an invalidated chunk",
    "no_back_reference_check": "taking over",
    "extent_reused_at_revoke": "taking over, and another key",
    "device_extent_not_cooled": "taking over, device",
    "sealed_before_fence": "taking over, streaming stores",
    "last_part_not_awaited": "parts",
    "slab_word_not_rechecked": "another chunk size",
    "resolver_without_the_byte": "a number comes back",
    "cleaner_looks_once": "taking over",
    "revoked_bytes_wrap": "taking over",
    "discarded_before_fence": "taking over, streaming stores",
    "stale_not_awaited": "an invalidated chunk",
}
OF_THE_MODEL = {"lock_word_without_epoch": "the shard lock"}

# Crash points of modelled functions that no step names, since a step names only the point right behind it. Each lies
# between two steps of the model, where the walk kills as it does everywhere.
BETWEEN_STEPS = {
    "alloc.before_claim", "claim.attached", "clean.begin", "clean.owner", "clean.owners_done", "clean.pins_wiped",
    "clean.slot", "clean.slots_done", "evict.before_revert", "evict.header_cleared", "evict.unpinned",
    "free.header_cleared", "lock.before_unlock", "part.before_done", "reclass.all_claimed", "reclass.chunk_claimed",
    "reclass.gave_up", "release.extent_freed", "resolve.begin", "seal.before_header", "stale.before_drop",
    "clean.before_word", "evict.wiped", "namespace.marked", "unpin.before",
}  # fmt: skip


@functools.cache
def walk(world: str, changes: frozenset[str]) -> Found:
    found = WORLDS[world](changes).explore()
    print(f"{world}: {found}")
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_no_order_of_steps_and_deaths_breaks_the_pool(world: str) -> None:
    found = walk(world, frozenset())
    assert found.fault is None, str(found)


@pytest.mark.parametrize(("mutant", "world"), (SHOWS_IN | OF_THE_MODEL).items())
def test_the_walk_finds_what_a_mutant_breaks(mutant: str, world: str) -> None:
    assert walk(world, frozenset({mutant})).fault is not None


# ---- the model and the core, side by side ----


def bodies() -> dict[str, str]:
    """Text of each function of the core, by name: from its head at the margin to the brace that closes it there."""
    found: dict[str, str] = {}
    for path in sorted(CORE.glob("*.cpp")) + sorted(CORE.glob("*.h")):
        for match in re.finditer(
            r"^[\w:<>*& ]*?(\w+)\([^;{}]*\) (?:const )?\{\n(.*?)^\}", path.read_text(), re.M | re.S
        ):
            found[match[1]] = found.get(match[1], "") + match[2]
    return found


def met(kind: str) -> set[str]:
    return set().union(*(getattr(walk(world, frozenset()), kind) for world in WORLDS))


def test_every_step_names_a_function_of_the_core() -> None:
    text = "".join(path.read_text() for path in CORE.iterdir())
    missing = {
        name for name in met("functions") - set(bodies()) if not re.search(rf"^\w.* {name}\(.*\{{ .*\}}$", text, re.M)
    }
    assert missing == set()


def test_a_modelled_function_has_no_crash_point_that_the_model_leaves_out() -> None:
    functions = bodies()
    inside = {
        point for name in met("functions") for point in re.findall(r'MARU_POINT\("([^"]+)"\)', functions.get(name, ""))
    }
    assert inside - met("points") - BETWEEN_STEPS == set()


def test_every_point_of_the_model_is_one_of_the_core() -> None:
    text = "".join(path.read_text() for path in CORE.iterdir())
    assert met("points") | BETWEEN_STEPS <= set(re.findall(r'MARU_POINT\("([^"]+)"\)', text))


NOT_MODELLED = {
    "lease_not_asked": "the clock by which another host's row lives: tests/crash kills the daemon instead",
    "moved_key_told_as_gone": "a look at the table that writes nothing: tests/model/test_kv_events_model.py",
    "reuse_not_told": "the same",
    "limit_not_kept": "an account, of which each change is one swap: tests/model/test_shares_model.py",
    "share_not_kept": "the same",
    "share_looked_at_once": "the same",
    "cooled_extent_not_wiped": "what lies in an extent that is nobody's: tests/crash/test_zeroed.py",
}


def test_every_mutant_of_the_core_has_a_twin_in_the_model() -> None:
    text = "".join(path.read_text() for path in CORE.glob("*") if path.stem != "crash_point")
    assert set(re.findall(r'MARU_MUTANT\("([^"]+)"\)', text)) == set(SHOWS_IN) | set(NOT_MODELLED)


@pytest.mark.parametrize("path", sorted([*ROOM.glob("protocol_*.py"), ROOM / "scenarios.py"]), ids=lambda p: p.name)
def test_nothing_is_kept_where_the_explorer_cannot_see_it(path: Path) -> None:
    assert forbidden_yields(path.read_text()) == []
