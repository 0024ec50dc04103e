"""Text on a picture: how wide it is, where its lines break, and that nothing in it is taken for a formula.

Promises:   widths are those of the font that is drawn; a line is never wider than asked for, and what does not fit into
            the lines allowed ends with "…".
Leaves:     where text stands to `picture` and `panels`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

INK, QUIET, FRAME, GRID, ALARM = "#1B1E23", "#565D66", "#9AA0A8", "#E3E6EA", "#B00020"
TITLE_PT, PANEL_PT, LEGEND_PT, AXIS_PT, TICK_PT, SMALL_PT = 17.0, 12.5, 11.0, 10.5, 10.0, 9.5
LINE_HEIGHT = 1.3
"""Of a line of text, by its size."""
DPI = 125.0
POINTS_PER_INCH = 72.0


@cache
def _renderer() -> Any:
    """Measures as it draws: letters come in whole pixels, which makes small ones wider than their outlines."""
    return RendererAgg(8, 8, DPI)


@cache
def _font(size_pt: float, is_bold: bool) -> Any:
    return FontProperties(size=size_pt, weight="bold" if is_bold else "normal")


def width_in(text: str, size_pt: float, *, is_bold: bool = False) -> float:
    """Inches that one line takes."""
    width, _, _ = _renderer().get_text_width_height_descent(text, _font(size_pt, is_bold), ismath=False)
    return float(width) / DPI


def baselines_in(lines: int, size_pt: float) -> list[float]:
    """How far each line's letters stand below the top of a block of so many lines.

    Lines are drawn one by one at these heights: what `linespacing` means is not the same in all versions of matplotlib.
    """
    return [height_in(number, size_pt) - 0.32 * size_pt / POINTS_PER_INCH for number in range(1, lines + 1)]


def height_in(lines: int, size_pt: float) -> float:
    return lines * size_pt * LINE_HEIGHT / POINTS_PER_INCH


def lines_of(text: str, room_in: float, size_pt: float, *, is_bold: bool = False, lines_max: int = 100) -> list[str]:
    """The text in lines of at most so many inches; words that are wider are cut, control characters are left out."""
    lines: list[str] = []
    waiting = printable(text).split()
    while waiting:
        word = waiting.pop(0)
        line = f"{lines[-1]} {word}" if lines else word
        if lines and width_in(line, size_pt, is_bold=is_bold) <= room_in:
            lines[-1] = line
            continue
        taken = _fitting(word, room_in, size_pt, is_bold)
        if len(lines) == lines_max:
            lines[-1] = _ended(lines[-1], room_in, size_pt, is_bold)
            return lines
        lines.append(word[:taken])
        if taken < len(word):
            waiting.insert(0, word[taken:])
    return lines


def printable(text: str) -> str:
    """Without control characters, which no font has."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, room_in: float, size_pt: float) -> str:
    """One line of it."""
    return "".join(lines_of(text, room_in, size_pt, lines_max=1))


def _fitting(word: str, room_in: float, size_pt: float, is_bold: bool) -> int:
    """How many letters of a word go into a line; at least one."""
    taken = len(word)
    while taken > 1 and width_in(word[:taken], size_pt, is_bold=is_bold) > room_in:
        taken -= max(1, taken // 8)
    return taken


def _ended(line: str, room_in: float, size_pt: float, is_bold: bool) -> str:
    while line and width_in(f"{line}…", size_pt, is_bold=is_bold) > room_in:
        line = line[:-1]
    return f"{line.rstrip()}…"


def literal(text: str) -> str:
    """For matplotlib, which takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")
