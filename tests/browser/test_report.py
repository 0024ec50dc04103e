"""The report in a real browser: pictures are seen, nothing is loaded, nothing sticks out, links lead where they say."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import bench_documents
from maru.bench.document import Document
from maru.bench.drawing.page import page

pytestmark = pytest.mark.timeout(60)

DOCUMENTS = [*bench_documents.all_kinds(), bench_documents.wordy(), bench_documents.empty()]
WIDTHS = {"desk": 1280, "phone": 360}
VIEWS = list(itertools.product(WIDTHS, ("light", "dark")))

# Of every element with text of its own: the text, its size, its colour and that of the nearest ground behind it.
TEXT_COLOURS = """
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
  if (!own.length || !element.getClientRects().length) continue;
  let ground = element;
  while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const style = getComputedStyle(element);
  found.push([own[0].data.trim().slice(0, 40), style.color, getComputedStyle(ground).backgroundColor]);
}
return found;
"""
OUTSIDE_OF_BOXES = """
return [...document.querySelectorAll('body *')]
  .filter(element => !element.parentElement.closest('.scroll, figure, pre'))
  .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(DOCUMENTS))
    return path


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}, {view[1]}")
def view(request: pytest.FixtureRequest, browser: WebDriver, report: Path) -> WebDriver:
    """The report, opened at a desk or on a phone, in light or in dark."""
    device, scheme = request.param
    show(browser, report, WIDTHS[device], scheme)
    return browser


@pytest.fixture
def at_desk(browser: WebDriver, report: Path) -> WebDriver:
    show(browser, report, WIDTHS["desk"], "light")
    return browser


def show(browser: WebDriver, report: Path, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get_log("browser")  # What earlier pages said.
    browser.get(report.as_uri())
    # On a busy machine the browser was seen to answer before the end of a page of some MB was there.
    is_whole = "return location.href === arguments[0] && document.readyState === 'complete'"
    WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda _: browser.execute_script(is_whole, report.as_uri()))


def rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return red, green, blue


def luminance(colour: str) -> float:
    def linear(part: float) -> float:
        share = part / 255.0
        return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)

    red, green, blue = map(linear, rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_browser_has_nothing_to_complain_about(view: WebDriver) -> None:
    assert [entry["message"] for entry in view.get_log("browser")] == []


def test_nothing_is_loaded_but_the_file(view: WebDriver) -> None:
    names: list[str] = view.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name[:60] for name in names if not name.startswith("data:")] == []


def test_every_picture_is_seen(view: WebDriver) -> None:
    images = view.find_elements(By.TAG_NAME, "img")
    assert len(images) == len(DOCUMENTS)
    for image in images:
        assert view.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 1600
        assert image.is_displayed()
        assert image.size["width"] >= 300
        assert image.get_attribute("alt")


def test_a_picture_keeps_its_proportions(view: WebDriver) -> None:
    for image in view.find_elements(By.TAG_NAME, "img"):
        natural = view.execute_script("return arguments[0].naturalHeight / arguments[0].naturalWidth", image)
        assert image.size["height"] / image.size["width"] == pytest.approx(natural, rel=0.01)


def test_the_page_does_not_scroll_sideways(view: WebDriver) -> None:
    view.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    wide, room = view.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room
    assert view.execute_script(OUTSIDE_OF_BOXES) == []


def test_wide_tables_scroll_in_boxes_of_their_own(browser: WebDriver, report: Path) -> None:
    show(browser, report, WIDTHS["phone"], "light")
    box = browser.find_element(By.CSS_SELECTOR, "details[open] .scroll")
    browser.execute_script("arguments[0].scrollLeft = 60", box)
    assert browser.execute_script("return [arguments[0].scrollLeft, document.scrollingElement.scrollLeft]", box) == [
        60,
        0,
    ]


def test_every_text_stands_out_from_what_is_behind_it(view: WebDriver) -> None:
    found: list[list[str]] = view.execute_script(TEXT_COLOURS)
    assert len(found) > 500
    faint = [(text, round(contrast(ink, ground), 1)) for text, ink, ground in found if contrast(ink, ground) < 4.5]
    assert faint == []


@pytest.mark.parametrize(("scheme", "is_light"), [("light", True), ("dark", False)])
def test_light_is_light_and_dark_is_dark_but_pictures_stay_on_white(
    browser: WebDriver, report: Path, scheme: str, is_light: bool
) -> None:
    show(browser, report, WIDTHS["desk"], scheme)
    body, ink, card = browser.execute_script(
        "const of = (one, what) => getComputedStyle(document.querySelector(one))[what];"
        "return [of('body', 'backgroundColor'), of('body', 'color'), of('figure', 'backgroundColor')]"
    )
    assert (luminance(body) > 0.5) is is_light
    assert contrast(ink, body) >= 7.0
    assert luminance(card) == 1.0


def test_each_link_of_the_contents_leads_to_its_figure(at_desk: WebDriver) -> None:
    links = at_desk.find_elements(By.CSS_SELECTOR, "nav a")
    assert [link.text for link in links] == [" ".join(one.title.split()) for one in DOCUMENTS]
    for link, one in zip(links, DOCUMENTS, strict=True):
        at_desk.execute_script("scrollTo(0, 0); arguments[0].click()", link)
        hash_, top, title = at_desk.execute_script(
            "const at = document.querySelector(':target');"
            "return [location.hash, at.getBoundingClientRect().top, at.querySelector('h2').textContent]"
        )
        assert hash_ == f"#{link.get_attribute('href').partition('#')[2]}"
        assert title.startswith(one.title)
        is_at_end = at_desk.execute_script("return scrollY + innerHeight >= document.body.scrollHeight - 2")
        assert abs(top) < 2 or is_at_end


def test_the_json_that_is_downloaded_is_the_document(at_desk: WebDriver) -> None:
    links = at_desk.find_elements(By.CSS_SELECTOR, "a[download]")
    assert [link.get_attribute("download") for link in links][:2] == ["ttft-synthetic.json", "tiers-transformers.json"]
    found = [decoded(link.get_attribute("href")) for link in links]
    assert found == DOCUMENTS


def decoded(address: Any) -> Document:
    kind, _, data = str(address).partition(";base64,")
    assert kind == "data:application/json"
    return msgspec.json.decode(base64.b64decode(data), type=Document)


def test_wrong_answers_are_red_and_seen_before_anything_else(view: WebDriver) -> None:
    alarm = view.find_element(By.CSS_SELECTOR, "main p, main h1")
    assert "3 of 5,000 comparisons were wrong" in alarm.text
    red, green, blue = rgb(view.execute_script("return getComputedStyle(arguments[0]).color", alarm))
    assert red > 1.3 * max(green, blue)
    assert alarm.location["y"] < 100


def test_a_picture_is_not_one_colour(at_desk: WebDriver) -> None:
    counts: list[int] = at_desk.execute_script("""
        return [...document.images].map(image => {
          const canvas = document.createElement('canvas');
          canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
          const context = canvas.getContext('2d');
          context.drawImage(image, 0, 0);
          const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
          const colours = new Set();
          for (let at = 0; at < data.length; at += 4) colours.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
          return colours.size;
        })""")
    assert min(counts) > 20
