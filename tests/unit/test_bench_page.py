"""The report: one well-formed file that needs nothing else, with every text escaped and what was wrong first."""

from __future__ import annotations

import base64
import re
from functools import cache
from xml.etree import ElementTree

import msgspec
import pytest

import bench_documents
from maru.bench.document import Disturbance, Document
from maru.bench.drawing.colours import luminance
from maru.bench.drawing.page import page
from maru.bench.drawing.page_sections import contention, text
from maru.bench.drawing.page_style import STYLE

HOSTILE = """<script>alert("1")</script> & 'more' </main> \x1b[31m"""


@cache
def report() -> str:
    return page(bench_documents.all_kinds())


def tree_of(html: str) -> ElementTree.Element:
    """The page is well-formed XML too, which says more than a forgiving parser."""
    return ElementTree.fromstring(html)


def words_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def test_the_page_is_well_formed() -> None:
    assert report().startswith("<!DOCTYPE html>")
    assert tree_of(report()).tag == "html"
    assert tree_of(page([])).tag == "html"
    assert tree_of(page([bench_documents.empty(), bench_documents.alone()])).tag == "html"


def test_the_page_needs_nothing_but_itself() -> None:
    resources = [
        value for element in tree_of(report()).iter() for name, value in element.attrib.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "style")
    ]  # fmt: skip
    assert resources
    assert {re.split(r"[:,]", value)[0] if not value.startswith("#") else "#" for value in resources} == {
        "data", "#", "background",
    }  # fmt: skip
    assert not re.search(r"https?://|@import|url\(|<script|<iframe|<object", report())


def test_every_text_is_escaped() -> None:
    one = bench_documents.tiers()
    hostile = msgspec.structs.replace(
        one, title=HOSTILE, question=HOSTILE, engine=HOSTILE, model=HOSTILE, command=HOSTILE, taken=HOSTILE,
        figure=HOSTILE, remarks=[HOSTILE], settings={HOSTILE: HOSTILE}, machine={"cpu": HOSTILE},
        versions={HOSTILE: HOSTILE}, disturbances=[Disturbance(HOSTILE, 1.0, 0.5, 0.5)],
        checks=msgspec.structs.replace(one.checks, wrong=1, what=HOSTILE),
        systems=[
            msgspec.structs.replace(system, title=HOSTILE, configuration=HOSTILE, version=HOSTILE, absent=HOSTILE)
            for system in one.systems
        ],
        measures=[msgspec.structs.replace(m, title=HOSTILE, x_title=HOSTILE, note=HOSTILE) for m in one.measures],
        samples=[msgspec.structs.replace(sample, x=HOSTILE) for sample in one.samples],
    )  # fmt: skip
    html = page([hostile])
    root = tree_of(html)
    assert "<script" not in html
    assert "\x1b" not in html
    assert len(list(root.iter("main"))) == 1
    assert words_of(root).count(HOSTILE.replace("\x1b", "")) > 10


def test_a_text_without_escapes_stays_as_it_is() -> None:
    assert text("a < b & c\x00") == "a &lt; b &amp; c"


@pytest.mark.parametrize("one", bench_documents.all_kinds(), ids=lambda one: one.figure)
def test_a_section_says_all_about_its_figure(one: Document) -> None:
    (found,) = [
        element for element in tree_of(report()).iter("section") if element.get("id", "").startswith(one.figure)
    ]
    words = words_of(found)
    assert one.title in words
    assert one.question in words
    assert one.command in words
    assert f"{len(one.samples):,} samples" in words
    for system in one.systems:
        assert system.title in words
        assert system.configuration in words
        assert system.absent in words
    for measure in one.measures:
        assert measure.name.endswith("-events") or measure.title in words
    for remark in one.remarks:
        assert remark in words
    (image,) = found.iter("img")
    assert one.title in image.get("alt", "")
    assert base64.b64decode(image.get("src", "").partition("base64,")[2]).startswith(b"\x89PNG")


def test_the_data_that_can_be_downloaded_is_the_document() -> None:
    links = [link for link in tree_of(report()).iter("a") if link.get("download")]
    documents = [
        msgspec.json.decode(base64.b64decode(link.get("href", "").partition("base64,")[2]), type=Document)
        for link in links
    ]
    assert documents == bench_documents.all_kinds()
    assert len({link.get("download") for link in links}) == len(documents)


def test_what_was_wrong_comes_first_on_the_page_and_in_its_section() -> None:
    root = tree_of(report())
    (main,) = root.iter("main")
    first = next(element for element in main.iter() if element.tag in ("p", "h1", "h2"))
    assert first.get("class") == "alarm"
    assert "3 of 5,000 comparisons were wrong" in words_of(first)
    (section,) = [element for element in root.iter("section") if element.get("id") == "chaos-synthetic"]
    assert section[0].get("class") == "alarm"
    assert sum(element.get("class") == "alarm" for element in root.iter()) == 2


def test_the_contents_lead_to_every_section_once() -> None:
    root = tree_of(page([bench_documents.alone(), bench_documents.alone(), bench_documents.empty()]))
    links = [link.get("href", "") for nav in root.iter("nav") for link in nav.iter("a")]
    assert [link.removeprefix("#") for link in links] == [section.get("id") for section in root.iter("section")]
    assert len(set(links)) == 3


def test_only_the_best_of_a_place_is_marked() -> None:
    (section,) = [one for one in tree_of(report()).iter("section") if one.get("id") == "tiers-transformers"]
    best = [words_of(row) for row in section.iter("tr") if row.get("class") == "best"]
    assert len(best) == 6
    assert all("Maru" in row for row in best)


def test_contention_says_how_many_steps_and_which_was_the_worst() -> None:
    steps = [
        Disturbance("calm", 1.0, 0.02, 0.0),
        Disturbance("stolen", 2.0, 0.0, 0.4),
        Disturbance("busy", 1.0, 0.2, 0.0),
    ]
    said = contention(bench_documents.document("f", "t", "q", disturbances=steps))
    assert said.startswith("2 of 3 steps were disturbed")
    assert "“stolen”, 2.00 s long: 0.0% went to other processes, 40.0% to" in said
    assert contention(bench_documents.document("f", "t", "q", disturbances=steps[:1])).startswith("None of 1 steps was")
    assert contention(bench_documents.document("f", "t", "q", disturbances=[])).startswith("Nothing was recorded")


def test_machines_that_differ_are_told_apart() -> None:
    other = msgspec.structs.replace(bench_documents.ttft(), machine={"cpu": "another processor"})
    words = words_of(next(tree_of(page([bench_documents.tiers(), other])).iter("header")))
    assert "another processor" in words
    assert "AMD EPYC 7B13" in words


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", STYLE.split("@media (prefers-color-scheme: dark)")[scheme]))
    assert contrast(colours["ink"], colours["page"]) >= 7.0
    assert contrast(colours["ink"], colours["card"]) >= 7.0
    for mark in ("quiet", "link"):
        assert contrast(colours[mark], colours["page"]) >= 4.5
    for mark in ("alarm", "best", "quick"):
        assert contrast(colours[mark], colours[f"{mark}-page"]) >= 4.5
