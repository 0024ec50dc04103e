"""One look for a name, everywhere; looks that stand side by side can be told apart, also without red or green cones."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest

from maru.bench.drawing import colours
from maru.bench.drawing.colours import KNOWN, Look, lab_of_light, linear, look_of

OURS_IN_LMCACHE = ("maru-lmcache", "maru-local-cpu", "mp-l2-maru")
TOGETHER = [
    ("maru", "recompute", "prefix-cache"),
    ("maru", "server", "lmdb", "ray", "mooncake", "mooncake-embedded"),
    ("maru", "recompute", "prefix-cache", "offloading", "example", "mp", "maru-lmcache"),
    (
        "recompute",
        "prefix-cache",
        "local-cpu",
        "mp",
        "p2p",
        "dax",
        "files",
        "redis",
        "nixl",
        "mp-l2-fs",
        *OURS_IN_LMCACHE,
    ),
    ("maru", "maru-huge", "maru-file", "maru-dax", "recompute"),
    ("maru", "maru-2", "raw-1", "raw-2", "server", "lmdb", "ray"),
    ("maru", "raw", "pool"),
    ("maru", "gate-off", "lru", "s3-fifo", "optimum"),
]
"""Names that can be in one picture: the systems of each engine, and the policies."""
# What is left of linear light for people without one kind of cones (Machado, Oliveira and Fernandes, 2009).
EYES = {
    "all cones": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "no red cones": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "no green cones": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
}


def seen(colour: str, eye: str) -> tuple[float, float, float]:
    light = linear(colour)
    red, green, blue = (
        min(1.0, max(0.0, sum(share * part for share, part in zip(row, light, strict=True)))) for row in EYES[eye]
    )
    return lab_of_light(red, green, blue)


def distance(a: Look, b: Look, eye: str) -> float:
    return math.dist(seen(a.colour, eye), seen(b.colour, eye))


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: f"{names[0]} and {len(names) - 1} more")
def test_what_stands_side_by_side_can_be_told_apart(names: tuple[str, ...], eye: str) -> None:
    alike = [
        (a, b, round(distance(look_of(a), look_of(b), eye)))
        for a, b in itertools.combinations(names, 2)
        if distance(look_of(a), look_of(b), eye) < 10
        and (look_of(a).dash == look_of(b).dash or look_of(a).hatch == look_of(b).hatch)
    ]
    assert alike == []


@pytest.mark.parametrize("name", KNOWN)
def test_no_two_names_look_the_same(name: str) -> None:
    assert [other for other, look in KNOWN.items() if look.colour == KNOWN[name].colour] == [name]
    assert colours.is_visible(KNOWN[name].colour)


@pytest.mark.parametrize("number", range(60))
def test_an_unknown_name_gets_a_colour_that_no_known_one_is_near(number: int) -> None:
    look = look_of(f"somebody {number}")
    assert colours.is_visible(look.colour)
    assert min(distance(look, known, "all cones") for known in KNOWN.values()) > 5
    assert not look.is_ours


def test_an_unknown_name_has_the_same_colour_in_every_process() -> None:
    program = "from maru.bench.drawing.colours import look_of; print(look_of('somebody new'))"
    there = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert there.strip() == str(look_of("somebody new"))
