"""Every line of the threat model names what shows it, and every test that is named is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from checkout import ROOT, section

SECURITY = ROOT / "SECURITY.md"
DOCUMENTS = (SECURITY, ROOT / "docs" / "security.md")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_ROW = re.compile(r"^\|([^|]*)\|([^|]*)\|([^|]*)\|$", re.M)


def is_there(path: str, name: str) -> bool:
    """Whether the file has a test of that name that pytest would run."""
    file = ROOT / path
    tree = ast.parse(file.read_text()) if file.is_file() and file.name.startswith("test_") else ast.Module([], [])
    return name.startswith("test_") and any(isinstance(one, ast.FunctionDef) and one.name == name for one in tree.body)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_security_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    named = _TEST.findall(text)
    assert len(named) == text.count("::test_") > 4
    assert [f"{path}::{name}" for path, name in named if not is_there(path, name)] == []


def test_every_line_of_the_threat_model_says_what_shows_it() -> None:
    rows = _ROW.findall(section(SECURITY.read_text(), "who can do what"))[2:]
    assert len(rows) > 30
    assert [claim for _, claim, shown in rows if not _TEST.search(shown) and "by design" not in shown] == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tests/unit/test_reading.py", "test_that_nobody_wrote"),
        ("tests/unit/test_no_such_file.py", "test_a_view_cannot_be_written_to"),
        ("tests/unit/test_reading.py", "pool"),
        ("tests/house/checkout.py", "files"),
    ],
)
def test_a_test_that_is_not_there_would_be_noticed(path: str, name: str) -> None:
    assert not is_there(path, name)
