"""Pictures: drawn for every kind and every edge, with all text inside, none over another, none too small.

Text is looked at as matplotlib lays it out; that a browser shows the pictures is tested in tests/browser.
"""

from __future__ import annotations

import itertools
import struct
from functools import cache
from typing import Any

import msgspec
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex
from matplotlib.text import Text

import bench_documents
from maru.bench.document import Document, Measure, Sample, System
from maru.bench.drawing.colours import look_of
from maru.bench.drawing.lettering import lines_of, shortened, width_in
from maru.bench.drawing.panels import panels_of
from maru.bench.drawing.picture import draw, figure_of

DOCUMENTS = {one.figure: one for one in (*bench_documents.all_kinds(), *bench_documents.edges())}
POINTS_MIN = 9.0
# Boxes of text have room above small letters and beside the last one: only what is deeper than this touches.
TOUCHING_PX = 2.0


@cache
def drawn(figure: str) -> Any:
    return figure_of(DOCUMENTS[figure])


def texts(figure: str) -> list[Text]:
    """What can be read on the picture."""
    found = drawn(figure).findobj(Text)
    return [text for text in found if text.get_visible() and text.get_text().strip() and is_in_range(text)]


def is_in_range(text: Text) -> bool:
    """Labels of ticks beyond the limits are artists too, which are not drawn."""
    axes = text.axes
    if axes is None:
        return True
    for axis in (axes.xaxis, axes.yaxis):
        for tick in axis.get_major_ticks():
            if text in (tick.label1, tick.label2):
                low, high = sorted(axis.get_view_interval())
                return bool(text is tick.label1 and low <= tick.get_loc() <= high)
    return True


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def document_of(*samples: Sample, **more: Any) -> Document:
    systems = [System(name, name) for name in dict.fromkeys(sample.system for sample in samples)]
    return bench_documents.document("f", "t", "q", **{"samples": list(samples), "systems": systems, **more})


@pytest.mark.parametrize("figure", DOCUMENTS)
def test_a_picture_is_a_png_of_1600_pixels_width(figure: str) -> None:
    png = draw(DOCUMENTS[figure])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = size_of(png)
    assert width == 1600
    assert 200 < height < 4000


@pytest.mark.parametrize("figure", DOCUMENTS)
def test_no_text_is_cut_off(figure: str) -> None:
    canvas = drawn(figure).bbox
    outside = [
        text.get_text() for text in texts(figure)
        if (box := text.get_window_extent()).x0 < 0 or box.y0 < 0 or box.x1 > canvas.x1 or box.y1 > canvas.y1
    ]  # fmt: skip
    assert outside == []


@pytest.mark.parametrize("figure", DOCUMENTS)
def test_no_text_lies_over_another(figure: str) -> None:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    touching = [
        (a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > TOUCHING_PX
        and min(one.y1, other.y1) - max(one.y0, other.y0) > TOUCHING_PX
    ]  # fmt: skip
    assert touching == []


@pytest.mark.parametrize("figure", DOCUMENTS)
def test_no_text_is_too_small_to_read(figure: str) -> None:
    assert min(text.get_fontsize() for text in texts(figure)) >= POINTS_MIN


@pytest.mark.parametrize("figure", [name for name in DOCUMENTS if name != "empty"])
def test_every_axis_is_labelled_and_has_ticks(figure: str) -> None:
    for axes in drawn(figure).axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert [label for label in axes.get_xticklabels() if label.get_text()]
        assert [label for label in axes.get_yticklabels() if label.get_text()]


def test_there_is_a_panel_for_each_measure_and_one_legend() -> None:
    assert len(drawn("ttft").axes) == 3
    assert len(drawn("capacity").axes) == 12
    (legend,) = drawn("crowd").legends
    titles = [text.get_text() for text in legend.get_texts()]
    assert titles == [system.title for system in DOCUMENTS["crowd"].systems]


def test_times_have_one_unit_a_panel_which_the_axis_says() -> None:
    assert [axes.get_ylabel() for axes in drawn("ttft").axes] == ["time (ms), lower is better"] * 3
    assert drawn("capacity").axes[0].get_xlabel() == "pool (GiB)"


def test_a_curve_has_its_ticks_where_something_was_measured() -> None:
    labels = [label.get_text() for label in drawn("ttft").axes[0].get_xticklabels()]
    assert labels == ["1,024", "2,048", "4,096", "7,936"]


def test_where_labels_do_not_fit_some_are_left_out_and_none_is_cut() -> None:
    for axes in drawn("dense").axes:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        shown = [label for label in labels if label]
        assert len(labels) == 60
        assert 5 <= len(shown) < 20
        assert shown[0] == "10,000"
        assert {len(label) for label in shown} == {6}


def test_a_value_is_written_at_a_bar_that_has_room_for_it() -> None:
    def values_of(axes: Any) -> list[bool]:
        return [text.get_visible() for text in axes.texts if text.get_text()[0].isdigit()]

    assert values_of(drawn("tiers").axes[0]) == [True] * 9
    assert values_of(drawn("crowd").axes[1]) == [False] * 24


@pytest.mark.parametrize("figure", DOCUMENTS)
def test_nothing_is_taken_for_a_formula(figure: str) -> None:
    assert not any(is_math_text(text.get_text()) for text in drawn(figure).findobj(Text))


def test_the_line_is_the_median_of_all_samples_outliers_too() -> None:
    measure = Measure("m", "M", "tokens", "x")
    values = [1.0, 2.0, 300.0]
    samples = [Sample("m", "maru", x, value * x, 0) for x in (1.0, 2.0) for value in values]
    (axes,) = figure_of(document_of(*samples, measures=[measure])).axes
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert list(line.get_ydata()) == [2.0, 4.0]
    assert axes.get_ylim()[1] > 600.0


def test_bars_are_as_long_as_their_medians() -> None:
    samples = [Sample("m", "maru", name, value, 0) for name, value in (("a", 3.0), ("b", 5.0))]
    (axes,) = figure_of(document_of(*samples, measures=[Measure("m", "M", "tokens", "x", kind="bars")])).axes
    assert [bar.get_height() for bar in axes.patches] == [3.0, 5.0]


def test_the_value_of_a_lone_sample_is_written_whatever_it_is() -> None:
    # 2.5 - 1.5 times some of these is less than they are, by rounding.
    samples = [Sample("m", "maru", f"{number}", number / 1000, 0) for number in (3, 6, 7, 12, 13, 14)]
    (axes,) = figure_of(document_of(*samples, measures=[Measure("m", "M", "s", "x", kind="bars")])).axes
    assert [text.get_text() for text in axes.texts[:6]] == ["3", "6", "7", "12", "13", "14"]


def test_many_groups_of_bars_lie() -> None:
    panels = {one.figure: panels_of(one) for one in (bench_documents.forty(), bench_documents.tiers())}
    assert all(panel.is_lying for panel in panels["forty"])
    assert not any(panel.is_lying for panel in panels["tiers"])
    names = [label.get_text() for label in drawn("forty").axes[0].get_yticklabels()]
    assert len(names) == 40
    assert all(names)


def test_a_system_has_its_colour_in_every_document() -> None:
    def line_colours(figure: str) -> set[str]:
        return {to_hex(line.get_color()).upper() for axes in drawn(figure).axes for line in axes.lines}

    def bar_colours(figure: str) -> set[str]:
        return {to_hex(bar.get_facecolor()).upper() for axes in drawn(figure).axes for bar in axes.patches}

    ours = look_of("maru").colour
    assert all(ours in line_colours(figure) for figure in ("ttft", "chaos", "capacity", "crowd"))
    assert all(ours in bar_colours(figure) for figure in ("tiers", "workloads", "chaos", "crowd"))
    assert look_of("server").colour in line_colours("ttft") & line_colours("chaos") & line_colours("crowd")


def test_events_are_marks_on_the_timeline_and_no_panel() -> None:
    timeline, *others = drawn("chaos").axes
    assert len(others) == 2
    marks = [line.get_xdata()[0] for line in timeline.lines if line.get_marker() == "v"]
    assert marks == [12.0, 25.5, 41.0]
    assert "a process is killed" in [text.get_text() for text in drawn("chaos").legends[0].get_texts()]


def test_zeros_are_seen_on_logarithmic_axes() -> None:
    curve, bars = drawn("zeros").axes[:2]
    assert curve.get_yscale() == bars.get_yscale() == "symlog"
    assert "0" in [label.get_text() for label in curve.get_yticklabels()]
    assert curve.get_xlim()[0] < 0.0 < curve.get_xlim()[1]


def test_a_curve_through_one_place_is_bars() -> None:
    assert [panel.kind for panel in panels_of(bench_documents.alone())] == ["bars", "bars", "timeline"]


def words_on(figure: str) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def test_a_quick_run_and_wrong_answers_are_seen_on_the_picture() -> None:
    assert "quick run" in words_on("workloads")
    assert "WRONG: 3 of 5,000 comparisons" in words_on("chaos")
    assert "WRONG" not in words_on("ttft")
    assert "full run" in words_on("ttft")


def test_the_foot_says_what_it_was_measured_on_and_who_is_absent() -> None:
    words = words_on("ttft")
    facts = (
        "AMD EPYC 7B13",
        "16 of 16 cores",
        "engine synthetic",
        "model Llama-3.1-8B",
        "commit 9290334c1d",
        "2026-03-04",
    )
    assert all(fact in words for fact in facts)
    assert "Not measured: Ray (needs ray" in words
    assert "Medians of 5 samples" in words
    assert "Nothing was measured." in words_on("empty")


def test_equal_documents_give_equal_bytes() -> None:
    assert draw(bench_documents.tiers()) == draw(bench_documents.tiers())


def test_samples_of_unlisted_systems_are_drawn_too() -> None:
    one = msgspec.structs.replace(bench_documents.tiers(), systems=[])
    assert {name for panel in panels_of(one) for name in panel.systems} == {"maru", "recompute", "files"}
    assert draw(one)


@pytest.mark.parametrize("room_in", [0.4, 1.0, 3.0])
def test_no_line_is_wider_than_its_room(room_in: float) -> None:
    text = f"short words and {'one' * 30} that is not, {'m' * 99}"
    lines = lines_of(text, room_in, 10.0)
    assert max(width_in(line, 10.0) for line in lines) <= room_in
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert shortened(text, room_in, 10.0).endswith("…")
    assert width_in(shortened(text, room_in, 10.0), 10.0) <= room_in
