"""A file is one room of at most 500 lines, says what it holds, and tells nothing about one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from checkout import ROOT, files

LINES_MAX = 500
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".sh"}
ATTICS = {"utils", "util", "common", "helpers", "helper", "misc"}
# Written in halves, so that this file does not hold what it looks for.
PRIVATE = re.compile(r"(?<![\w.~-])/(?:wo" + r"rk|ro" + r"ot)/|\bagent" + r" sessions?\b", re.I)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def in_rooms(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in ("src", "pool", "tests", "scripts")


SOURCES = [path for path in files() if in_rooms(path) and path.suffix in SOURCE_SUFFIXES]


def test_there_are_sources_to_look_at() -> None:
    assert {path.suffix for path in SOURCES} >= {".py", ".cpp", ".h"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_one_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


def test_there_is_no_attic() -> None:
    assert [name_of(path) for path in files() if path.stem in ATTICS or path.parent.name in ATTICS] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".py" and "src" in p.parts], ids=name_of)
def test_a_python_room_says_first_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".h"], ids=name_of)
def test_a_header_says_first_what_it_holds(path: Path) -> None:
    assert re.match(r"// \S", path.read_text())


def test_nothing_tells_about_the_machine_it_was_written_on() -> None:
    telling = []
    for path in files():
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if PRIVATE.search(line):
                telling.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert telling == []
