"""A run as a file: every sample comes back, summaries are what they say, and what is no such file is a named error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import bench_documents
from maru.bench import document as documents
from maru.bench.document import Document, Measure, NotADocument, Sample, System


@pytest.mark.parametrize("one", [*bench_documents.all_kinds(), *bench_documents.edges()], ids=lambda one: one.figure)
def test_a_document_comes_back_from_its_file_as_it_was(one: Document, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "run.json"
    documents.write(path, one)
    assert documents.read(path) == one
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"figure": "ttft"}', "not JSON at all"])
def test_a_file_that_is_no_document_is_a_named_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(NotADocument, match=r"run\.json"):
        documents.read(path)


def test_a_file_of_another_format_is_a_named_error(tmp_path: Path) -> None:
    other = msgspec.structs.replace(bench_documents.ttft(), format=documents.FORMAT + 1)
    documents.write(tmp_path / "run.json", other)
    with pytest.raises(NotADocument, match=f"format {documents.FORMAT + 1}"):
        documents.read(tmp_path / "run.json")


def test_summaries_are_of_every_sample_at_a_place() -> None:
    values = [5.0, 1.0, 2.0, 4.0, 3.0]
    one = bench_documents.document(
        "f", "t", "q", measures=[Measure("m", "M", "s", "x")], systems=[System("maru", "Maru")],
        samples=[Sample("m", "maru", 8.0, value, number) for number, value in enumerate(values)],
    )  # fmt: skip
    (summary,) = documents.summaries(one)
    assert (summary.n, summary.median, summary.p25, summary.p75, summary.mean) == (5, 3.0, 2.0, 4.0, 3.0)
    assert summary.p99 == pytest.approx(4.96)
    assert documents.as_json(one)["summaries"] == [msgspec.to_builtins(summary)]


def test_numbers_stand_in_their_order_and_names_as_they_came() -> None:
    samples = [Sample("n", "maru", x, 1.0, 0) for x in (16.0, 2.0, 8.0)]
    samples += [Sample("s", "maru", x, 1.0, 0) for x in ("z", "a", "z")]
    one = bench_documents.document("f", "t", "q", samples=samples)
    assert one.places("n") == [2.0, 8.0, 16.0]
    assert one.places("s") == ["z", "a"]
    assert one.values("s", "maru", "z") == [1.0, 1.0]


def test_who_was_absent_is_not_among_the_present() -> None:
    assert [system.name for system in bench_documents.ttft().present][-1] == "mooncake-embedded"
