"""How each system looks: a colour, a marker, a dash and a hatch, fixed by its name, the same in every figure and page.

Holds:      the looks of the systems and policies that we know, and how a look is found for any other name.
Promises:   a name has the same look in every run; names that are measured side by side stay apart also for readers who
            see few colours, by colour or by dash and hatch; an unknown name gets no known one's colour. Every colour
            can be seen on white and on a dark page. Ours is the strong one.
Leaves:     drawing to `panels`, samples of colour beside text to `page`.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from itertools import count

SOLID, DASHED, DOTTED, MIXED = "-", "--", ":", "-."
STRIPED, DOTS, CROSSED = "///", "...", "xx"
_APART_MIN = 14.0
"""How far an unknown name's colour is from each known one, in CIELAB; about 2 can just be told apart side by side."""
_TRIES = 512
_MARKERS = "osD^vP*X<>hp"


@dataclass(frozen=True)
class Look:
    """Of one system. `colour` is "#RRGGBB"; the others are matplotlib's words."""

    colour: str
    marker: str
    dash: str = SOLID
    hatch: str = ""
    is_ours: bool = False


OURS = "#D55E00"
# Found by search: the base colours lie far apart to a normal eye and without red or green cones, within each group of
# names that can be in one picture. Colours that come near each other (`lmdb` and `files`) belong to different groups;
# a test checks the groups.
KNOWN: dict[str, Look] = {
    "maru": Look(OURS, "o", is_ours=True),
    "maru-lmcache": Look("#C44536", "s", DASHED, STRIPED, is_ours=True),
    "maru-local-cpu": Look("#F0A050", "D", MIXED, DOTS, is_ours=True),
    "mp-l2-maru": Look("#C98262", "P", DOTTED, CROSSED, is_ours=True),
    "maru-2": Look("#B84A00", "s", DASHED, STRIPED, is_ours=True),
    "maru-huge": Look("#E8A04A", "D", MIXED, DOTS, is_ours=True),
    "maru-file": Look("#A83A22", "s", DASHED, STRIPED, is_ours=True),
    "maru-dax": Look("#BF7A50", "P", DOTTED, CROSSED, is_ours=True),
    "raw-1": Look("#5C6B7A", "v", DOTTED, CROSSED),
    "raw-2": Look("#93A0AD", "x", DASHED, DOTS),
    "raw": Look("#4F6478", "v", DOTTED, CROSSED),
    "pool": Look("#C9A23A", "D", DASHED, STRIPED, is_ours=True),
    "recompute": Look("#808080", "X", DASHED),
    "prefix-cache": Look("#0072B2", "s"),
    "server": Look("#772233", "^"),
    "lmdb": Look("#33AA77", "D"),
    "ray": Look("#E886B8", "v"),
    "mooncake": Look("#8833DD", "P"),
    "mooncake-embedded": Look("#B5A34F", "p", DASHED, STRIPED),
    "offloading": Look("#22AABB", "^"),
    "example": Look("#664400", "v", DOTTED, STRIPED),
    "local-cpu": Look("#88AAFF", "D"),
    "mp": Look("#223399", "<", MIXED),
    "mp-l2-fs": Look("#8CA0B8", ">", DOTTED, CROSSED),
    "p2p": Look("#990077", "h", DASHED, DOTS),
    "dax": Look("#2A6000", "p", MIXED, STRIPED),
    "files": Look("#DD2266", "^", DOTTED),
    "redis": Look("#EE22CC", "v"),
    "nixl": Look("#3355FF", "*", DASHED, STRIPED),
    "gate-off": Look("#EDA36B", "D", DASHED, STRIPED, is_ours=True),
    "lru": Look("#1F78B4", "s"),
    "s3-fifo": Look("#3A9D5D", "^", MIXED, DOTS),
    "optimum": Look("#4A4A4A", "v", DOTTED),
}


@cache
def look_of(name: str) -> Look:
    """The look of a system's name; of a name that nobody knows, one that its letters decide."""
    return KNOWN.get(name) or _made_for(name)


def _made_for(name: str) -> Look:
    """The first colour that its digests give and that no known name comes near."""
    known = [lab(look.colour) for look in KNOWN.values()]
    best, best_distance = "", -1.0
    for number in count():
        digest = hashlib.sha256(f"{number} {name}".encode()).digest()
        hue, lightness, saturation = digest[0] / 256, 0.32 + 0.26 * digest[1] / 255, 0.35 + 0.6 * digest[2] / 255
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
        colour = f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
        distance = min(math.dist(lab(colour), other) for other in known)
        if distance > best_distance and is_visible(colour):
            best, best_distance = colour, distance
        if best_distance >= _APART_MIN or number >= _TRIES:
            break
    dash = (SOLID, DASHED, DOTTED, MIXED)[digest[3] % 4]
    return Look(best, _MARKERS[digest[4] % len(_MARKERS)], dash, ("", STRIPED, DOTS, CROSSED)[digest[5] % 4])


def is_visible(colour: str) -> bool:
    """Does a patch of it stand out from white and from the dark page?"""
    return 0.05 <= luminance(colour) <= 0.46


def linear(colour: str) -> tuple[float, float, float]:
    """Red, green and blue light of "#RRGGBB", 0 to 1."""

    def of(part: str) -> float:
        share = int(part, 16) / 255
        return share / 12.92 if share <= 0.04045 else math.pow((share + 0.055) / 1.055, 2.4)

    return of(colour[1:3]), of(colour[3:5]), of(colour[5:7])


def luminance(colour: str) -> float:
    """How light it is, 0 to 1, as WCAG's contrast counts it."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lab(colour: str) -> tuple[float, float, float]:
    """CIELAB of "#RRGGBB": distances are about as large as people see them."""
    return lab_of_light(*linear(colour))


def lab_of_light(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """CIELAB of linear light (D65)."""

    def curved(value: float) -> float:
        return math.cbrt(value) if value > 0.008856 else 7.787 * value + 16 / 116

    x = curved((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505)
    y = curved(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    z = curved((0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
