"""`maru tier`: a place is tried, measured and left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maru.cli import app

SMALL = ["--chunk-mib", "1", "--count", "3"]


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_place_that_works_is_measured_and_left_empty(tmp_path: Path, codec: str) -> None:
    code, out, _ = run("tier", "check", f"file://{tmp_path}/new?size=64MiB&codec={codec}", *SMALL, "--json")
    figures = json.loads(out)
    assert (code, figures["chunks"], figures["wrong"]) == (0, 3, 0)
    assert figures["store_bytes_per_s"] > 0
    assert figures["load_bytes_per_s"] > 0
    assert [path for path in tmp_path.glob("new/[0-9a-f]*/*/*") if path.is_file()] == []


def test_people_read_a_table(tmp_path: Path) -> None:
    code, out, _ = run("tier", "check", f"file://{tmp_path}?size=64MiB", *SMALL)
    assert code == 0
    assert "load and verify" in out
    assert "3 chunks of 1 MiB: all came back as they were stored" in out


@pytest.mark.parametrize(
    ("url", "word"),
    [("redis://127.0.0.1:1?deadline=2", "Connect"), ("file:///nowhere/at/all", "make or mount"), ("ftp://x", "kind")],
)
def test_a_place_that_does_not_work_says_why(url: str, word: str) -> None:
    code, _, error = run("tier", "check", url, *SMALL)
    assert code == 1
    assert word in error


def test_a_place_too_small_is_refused_by_name(tmp_path: Path) -> None:
    code, _, error = run("tier", "check", f"file://{tmp_path}?size=512KiB", *SMALL)
    assert code == 1
    assert "was not stored" in error


def test_what_lies_there_is_shown_by_namespace(tmp_path: Path) -> None:
    for space, keys in (("ab" * 16, 2), ("cd" * 16, 1)):
        for number in range(keys):
            key = f"{number:02x}" + "ef" * 15
            folder = tmp_path / space / key[:2]
            folder.mkdir(parents=True)
            (folder / key).write_bytes(bytes(1000))
    code, out, _ = run("tier", "show", f"file://{tmp_path}", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["bytes"] == 3000
    assert [(row["folder"], row["objects"]) for row in told["namespaces"]] == [("ab" * 16, 2), ("cd" * 16, 1)]
