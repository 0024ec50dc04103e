"""Every figure, end to end, as a person types it: real processes, a real model, and every answer right."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path

import pytest

from maru.bench import document as documents
from maru.bench.figures import NAMES, figure_named

ROOT = Path(__file__).parents[2]
WITHOUT_SAMPLES = {"power", "first-hit", "kills-events", "warm", "net"}
"""Measures that a short run, or this machine, may have nothing to say about."""
RUNS = [(name, engine) for name in NAMES for engine in (figure_named(name).engines[:1] or ("",))] + [
    (name, "synthetic") for name in ("ttft", "concurrency", "multiturn", "tiers", "workloads")
]


def run_maru(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maru", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)


@pytest.mark.demo
@pytest.mark.parametrize(("name", "engine"), RUNS, ids=lambda word: word or "none")
def test_a_quick_figure_is_measured_drawn_and_right(name: str, engine: str, tmp_path: Path) -> None:
    words = ["--engine", engine] if engine else []
    done = run_maru("bench", name, "--quick", "--out", str(tmp_path), "--json", *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout)
    file = tmp_path / f"{name}{'-' + engine if engine else ''}.json"
    document = documents.read(file)
    assert told["summaries"]
    assert document.command.startswith("maru bench")
    assert document.checks.compared > 0
    assert document.checks.wrong == 0
    measured = {sample.measure for sample in document.samples}
    assert {measure.name for measure in document.measures} - WITHOUT_SAMPLES <= measured
    assert "maru" in {sample.system for sample in document.samples}
    assert not any(system.absent.startswith("failed") for system in document.systems if system.name == "maru")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert html.escape(figure_named(name).question) in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.steps"))
