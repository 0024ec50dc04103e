"""Two runs side by side: different is only what differs by more than its spread, and what is not shared is said."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console

import bench_documents
from maru.bench.compare import Change, DifferentFigures, as_json, compare, differences, table
from maru.bench.document import Checks, Document, Measure, Sample, System
from maru.bench.standings import WHOLE_RUN, standings

Better = Literal["lower", "higher", ""]


def run(values: Sequence[float], better: Better = "lower", **more: Any) -> Document:
    """One measure, one system, one place."""
    fields = {
        "measures": [Measure("m", "M", "s", "x", better=better)], "systems": [System("maru", "Maru")],
        "samples": [Sample("m", "maru", 1.0, value, number) for number, value in enumerate(values)], **more,
    }  # fmt: skip
    return bench_documents.document("f", "t", "q", **fields)


def only(a: Document, b: Document) -> Change:
    (change,) = compare(a, b)
    return change


@pytest.mark.parametrize(
    ("better", "before", "after", "verdict"),
    [
        ("lower", [10, 11, 12], [5, 6, 7], "better"), ("lower", [5, 6, 7], [10, 11, 12], "worse"),
        ("higher", [10, 11, 12], [5, 6, 7], "worse"), ("higher", [5, 6, 7], [10, 11, 12], "better"),
        ("", [5, 6, 7], [10, 11, 12], "different"),
        ("lower", [10, 11, 12], [9, 10.4, 11.5], "same"), ("lower", [1, 1, 1], [1, 1, 1], "same"),
    ],
)  # fmt: skip
def test_a_verdict_follows_the_direction_and_wants_ranges_apart(
    better: Better, before: list[float], after: list[float], verdict: str
) -> None:
    assert only(run(before, better), run(after, better)).verdict == verdict


def test_an_outlier_decides_nothing() -> None:
    assert only(run([1.0, 1.1, 1.2, 1.1, 1.0]), run([1.0, 1.1, 1.2, 1.1, 90.0])).verdict == "same"


def test_the_ratio_is_of_medians_and_absent_beside_nothing() -> None:
    assert only(run([2, 4, 6]), run([1, 2, 3])).ratio == 0.5
    assert only(run([0, 0, 0]), run([1, 2, 3])).ratio is None


def test_different_figures_are_refused() -> None:
    with pytest.raises(DifferentFigures, match="ttft beside tiers"):
        compare(bench_documents.ttft(), bench_documents.tiers())


@pytest.mark.parametrize("one", bench_documents.all_kinds(), ids=lambda one: one.figure)
def test_a_run_beside_itself_is_the_same_everywhere(one: Document) -> None:
    changes = compare(one, one)
    assert {change.verdict for change in changes} == {"same"}
    assert {change.ratio for change in changes} <= {1.0, None}
    few = [line for line in differences(one, one) if "fewer than 3 samples" not in line and "were wrong" not in line]
    assert few == []


def test_a_timeline_is_compared_over_its_whole_run() -> None:
    one = bench_documents.chaos()
    rows = [row.summary for row in standings(one) if row.measure.name == "goodput"]
    assert [(row.system, row.x, row.n) for row in rows] == [
        (name, WHOLE_RUN, 60) for name in ("maru", "server", "recompute")
    ]
    assert "kill-events" not in {row.measure.name for row in standings(one)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "vllm"}, "engine differs: synthetic and vllm"), ({"model": "other"}, "model differs"),
        ({"is_quick": True}, "B is a quick run"), ({"machine": {"cpu": "another"}}, "machine differs: cpu is"),
        ({"settings": {"rounds": 9}}, "setting differs: rounds is 5 and 9"),
        ({"checks": Checks(9, 2)}, "2 answers of B were wrong"),
    ],
)  # fmt: skip
def test_what_makes_runs_incomparable_is_said(change: dict[str, Any], said: str) -> None:
    lines = differences(run([1, 2, 3]), run([1, 2, 3], **change))
    assert any("not comparable because" in line and said in line for line in lines), lines


def test_another_commit_is_what_runs_are_compared_for() -> None:
    assert differences(run([1, 2, 3]), run([1, 2, 3], versions={"commit": "another"}, taken="2027")) == []


def test_what_only_one_run_has_and_single_samples_are_said() -> None:
    more = [System("maru", "Maru"), System("lmdb", "LMDB")]
    samples = [Sample("m", name, x, 1.0, 0) for name, x in (("maru", 1.0), ("maru", 2.0), ("lmdb", 1.0))]
    lines = differences(run([1, 2, 3]), run([], systems=more, samples=samples))
    assert "lmdb was measured only in B" in lines
    assert "maru was measured at 1 of its 2 places only in B" in lines
    assert any(line.startswith("1 of 1 places have fewer than 3 samples") for line in lines)


def test_the_table_and_the_json_say_the_same() -> None:
    a = bench_documents.ttft()
    slower = [msgspec.structs.replace(one, value=one.value * 3) if one.system == "maru" else one for one in a.samples]
    b = msgspec.structs.replace(a, samples=slower)
    found = json.loads(json.dumps(as_json(a, b)))
    assert {(one["system"], one["verdict"]) for one in found["changes"]} == {
        (system.name, "worse" if system.name == "maru" else "same") for system in a.present
    }
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(compare(a, b)))
    assert console.export_text().count("worse") == sum(one["verdict"] == "worse" for one in found["changes"]) == 12


def test_best_is_also_whoever_the_best_ones_quartiles_reach() -> None:
    values = {"maru": [1.0, 1.1, 1.2], "lmdb": [1.1, 1.2, 1.3], "ray": [5.0, 5.1, 5.2]}
    one = run(
        [], systems=[System(name, name) for name in values],
        samples=[Sample("m", name, 1.0, value, 0) for name, found in values.items() for value in found],
    )  # fmt: skip
    assert [row.summary.system for row in standings(one) if row.is_best] == ["maru", "lmdb"]


def test_where_all_are_equally_good_none_is_marked() -> None:
    one = run(
        [], systems=[System(name, name) for name in "ab"],
        samples=[Sample("m", name, 1.0, value, 0) for name, value in itertools.product("ab", (1.0, 2.0))],
    )  # fmt: skip
    assert not any(row.is_best for row in standings(one))
