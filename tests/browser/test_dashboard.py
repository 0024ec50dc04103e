"""The dashboard in a real browser: it lives, reads well everywhere, and says so when it has nothing new to say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import maru
from fake_daemon import HISTOGRAM, FakeFacts
from http_asking import TOKENS, serving
from maru.bench.drawing.colours import luminance
from maru.daemon.facts import quantile
from maru.daemon.web import WebServer

pytestmark = pytest.mark.timeout(90)

DEADLINE_S = 20
WIDTHS = {"wide": 1440, "phone": 360}
VIEWS = list(itertools.product(WIDTHS, ("light", "dark")))

# Of every element with text of its own: the text, its colour and that of the nearest ground behind it.
TEXT_COLOURS = """
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
  if (!own.length || !element.getClientRects().length || element.closest('svg, noscript, .skip')) continue;
  let ground = element;
  while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  found.push([own[0].data.trim(), getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]);
}
return found;
"""
FADED = """
return [...document.querySelectorAll('main *')]
  .filter(element => Number(getComputedStyle(element).opacity) < 1).map(element => element.tagName.toLowerCase());
"""
OUTSIDE = """
return [...document.querySelectorAll('body *')]
  .filter(element => !element.closest('.scroll, .skip') && element.getClientRects().length)
  .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture
def facts(pool: maru.Pool) -> FakeFacts:
    space = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="<b>blue</b>"))
    for number in range(3):
        pool.put(bytes([number]) * 16, b"x" * 65536, namespace=space)
    return FakeFacts(pools={"kv": pool})


@pytest.fixture
def server(facts: FakeFacts) -> Iterator[WebServer]:
    with serving(facts) as running:
        yield running


@pytest.fixture
def page(browser: WebDriver) -> Iterator[WebDriver]:
    """The browser, with nothing of another test in it, and left so that no page goes on asking."""
    browser.get("about:blank")
    browser.get_log("browser")
    yield browser
    browser.get("about:blank")


def show(page: WebDriver, server: WebServer, width: int = 1440, scheme: str = "light", path: str = "/") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.get(server.url + path)


def soon(page: WebDriver, is_so: Callable[[], Any]) -> Any:
    """What `is_so` gives as soon as it is true; a page's own change is waited for, with a deadline."""
    return WebDriverWait(page, DEADLINE_S, poll_frequency=0.05).until(lambda _: is_so())


def text(page: WebDriver, selector: str) -> str:
    found: str = page.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
    return found


def state(page: WebDriver) -> str:
    return page.find_element(By.ID, "state").get_attribute("data-state") or ""


def rgb(colour: str) -> str:
    parts = [round(float(part)) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return "#{:02X}{:02X}{:02X}".format(*parts)


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(rgb(one)), luminance(rgb(other))))
    return (high + 0.05) / (low + 0.05)


def test_what_happens_in_the_pool_is_seen_without_a_reload(page: WebDriver, server: WebServer, pool: maru.Pool) -> None:
    show(page, server)
    soon(page, lambda: text(page, "#state-text") == "Live")
    assert "3 chunks are there" in text(page, "#tile-stored")
    pool.put(b"n" * 16, b"x" * 65536)
    soon(page, lambda: "4 chunks are there" in text(page, "#tile-stored"))
    with pool.pin(b"n" * 16) as prefix:
        assert len(prefix) == 1
        soon(page, lambda: text(page, "#tile-pins dd") == "1")
        assert "64 KiB" in text(page, "#pins")
    soon(page, lambda: text(page, "#hits-chart .legend b") == "100.0 %")
    soon(
        page, lambda: page.find_element(By.CSS_SELECTOR, "#hits-chart path.first[d^='M']").get_attribute("d") != "M0 0"
    )


def test_everything_that_an_operator_asks_for_is_there(page: WebDriver, server: WebServer, pool: maru.Pool) -> None:
    with pool.reserve(b"w" * 16, 4096):
        show(page, server)
        soon(page, lambda: "reserved" in text(page, "#waits"))
    assert "192 KiB" in text(page, "#namespaces")
    assert "64 KiB" in text(page, "#classes")
    assert "alive" in text(page, "#processes")
    assert "host-b" in text(page, "#leases")
    assert "https://other:7300" in text(page, "#peers")
    assert "lookup" in text(page, "#rpc")
    assert "3 clients" in text(page, "#rpc-about")
    assert "of 8 MiB" in text(page, "#tile-used")


def test_places_below_are_shown_with_what_they_took_and_where_they_fail(
    page: WebDriver, server: WebServer, facts: FakeFacts
) -> None:
    show(page, server)
    soon(page, lambda: "None" in text(page, "#places"))
    assert "before they leave the pool" in text(page, "#places-about")
    place = {"url": "file:///var/lib/maru", "state": "up", "stored_bytes": 3 << 30, "loaded_bytes": 1 << 20,
             "store_bytes_per_s": 2.0e9, "load_bytes_per_s": None,
             "timeouts": 0, "failures": 0, "full": 0, "torn": 0}  # fmt: skip
    down = {**place, "url": "s3://bucket/kv", "state": "down", "timeouts": 7}
    facts.below_figures = {
        "places": [place, down],
        "demoter": {"copied_bytes": 1 << 20, "resident_bytes": 4 << 20, "dropped": 5},
        "promoter": {"promoted": 12},
    }
    soon(page, lambda: "s3://bucket/kv" in text(page, "#places"))
    assert "3 GiB" in text(page, "#places")
    assert "✕ down" in text(page, "#places")
    assert "1 MiB of 4 MiB" in text(page, "#places-about")
    assert "12 chunks came up, 5 left without a copy" in text(page, "#places-about")


def test_rates_and_percentiles_are_of_what_happened_lately(
    page: WebDriver, server: WebServer, facts: FakeFacts
) -> None:
    show(page, server)
    soon(page, lambda: "lookup" in text(page, "#rpc"))
    facts.serve_more(requests=1000)
    soon(page, lambda: "1,009" in text(page, "#rpc"))
    assert "5.5 ms" in text(page, "#rpc")  # Half of these thousand; the ten before them were faster.
    soon(page, lambda: "/s" in text(page, "#tile-requests") and text(page, "#tile-requests dd") != "0 /s")


def test_a_name_out_of_shared_memory_is_text_and_never_markup(page: WebDriver, server: WebServer) -> None:
    show(page, server)
    soon(page, lambda: "<b>blue</b>" in text(page, "#namespaces"))
    assert page.find_elements(By.CSS_SELECTOR, "#namespaces b") == []


@pytest.mark.parametrize(("device", "scheme"), VIEWS)
def test_text_stands_out_and_nothing_sticks_out(page: WebDriver, server: WebServer, device: str, scheme: str) -> None:
    show(page, server, WIDTHS[device], scheme)
    soon(page, lambda: state(page) == "live" and "alive" in text(page, "#processes"))
    wide, inner = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner
    assert page.execute_script(OUTSIDE) == []
    seen = page.execute_script(TEXT_COLOURS)
    assert len(seen) > 60
    assert [row for row in seen if contrast(row[1], row[2]) < 4.5] == []
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(rgb(ground)) < 0.2) is (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_lost_connection_is_told_plainly_and_comes_back_by_itself(
    page: WebDriver, facts: FakeFacts, pool: maru.Pool, scheme: str
) -> None:
    with ExitStack() as first:
        server = first.enter_context(serving(facts))
        show(page, server, scheme=scheme)
        soon(page, lambda: state(page) == "live")
    soon(page, lambda: "Connection lost" in text(page, "#state-text"))
    assert "Figures of" in text(page, "#state-text")
    faded = page.execute_script(FADED)
    assert faded
    assert set(faded) <= {"path", "rect"}  # Lines and bars; faded text would be hard to read.
    assert "3 chunks are there" in text(page, "#tile-stored")
    seen = page.execute_script(TEXT_COLOURS)
    assert [row for row in seen if contrast(row[1], row[2]) < 4.5] == []
    pool.put(b"n" * 16, b"x" * 65536)
    with serving(facts, port=server.port):
        soon(page, lambda: state(page) == "live" and "4 chunks are there" in text(page, "#tile-stored"))
        page.get("about:blank")


def test_signing_in_shows_figures_and_keeps_the_token_in_this_tab_only(page: WebDriver, facts: FakeFacts) -> None:
    with serving(facts, authenticate=TOKENS.get) as server:
        show(page, server)
        field = page.find_element(By.ID, "token")
        soon(page, field.is_displayed)
        assert not page.find_element(By.ID, "figures").is_displayed()
        field.send_keys("wrong", Keys.ENTER)
        soon(page, lambda: "not valid here" in text(page, "#sign-in-error"))
        field.send_keys("client-token", Keys.ENTER)
        soon(page, lambda: "may not look" in text(page, "#sign-in-error"))
        field.send_keys("reader-token", Keys.ENTER)
        soon(page, lambda: state(page) == "live" and "alive" in text(page, "#processes"))
        kept = page.execute_script("return [{...sessionStorage}, {...localStorage}, document.cookie, location.href]")
        assert kept == [{"maru-token": "reader-token"}, {}, "", server.url + "/"]
        page.refresh()
        soon(page, lambda: state(page) == "live")
        page.find_element(By.ID, "sign-out").click()
        soon(page, page.find_element(By.ID, "token").is_displayed)
        assert not page.find_element(By.ID, "figures").is_displayed()
        assert page.execute_script("return {...sessionStorage}") == {}


def test_a_token_that_ends_leads_back_to_signing_in(page: WebDriver, facts: FakeFacts) -> None:
    tokens = dict(TOKENS)
    with serving(facts, authenticate=tokens.get) as server:
        show(page, server)
        soon(page, page.find_element(By.ID, "token").is_displayed)
        page.find_element(By.ID, "token").send_keys("reader-token", Keys.ENTER)
        soon(page, lambda: state(page) == "live")
        del tokens["reader-token"]
        soon(page, page.find_element(By.ID, "token").is_displayed)


def test_the_keyboard_reaches_everything_and_reads_a_chart(page: WebDriver, server: WebServer, pool: maru.Pool) -> None:
    show(page, server)
    soon(page, lambda: state(page) == "live")
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    reached = []
    for _ in range(30):
        reached.append(page.execute_script("return document.activeElement.closest('[id]')?.id || 'skip'"))
        page.switch_to.active_element.send_keys(Keys.TAB)
    assert reached[0] == "skip"
    assert {"hits-chart", "bandwidth-chart"} <= set(reached)
    pool.lookup(b"\0" * 16)
    soon(page, lambda: text(page, "#hits-chart .legend b") == "100.0 %")
    chart = page.find_element(By.CSS_SELECTOR, "#hits-chart > svg")
    assert "Hit rate 100.0 %" in (chart.get_attribute("aria-label") or "")
    chart.send_keys(Keys.HOME)
    assert page.find_elements(By.CSS_SELECTOR, "#hits-chart .cursor")
    chart.send_keys(Keys.ESCAPE)
    assert not page.find_elements(By.CSS_SELECTOR, "#hits-chart .cursor")


def test_a_pool_is_chosen_and_one_that_is_gone_is_told(
    page: WebDriver, facts: FakeFacts, server: WebServer, pool_url: str
) -> None:
    other_url = pool_url.replace("maru:///", "maru:///zz-")
    with maru.Pool.create(other_url) as other:
        facts.pools["other"] = other
        show(page, server, path="/#other")
        soon(page, lambda: "0 chunks are there" in text(page, "#tile-stored"))
        maru.Pool.destroy(other_url, force=True)
        soon(page, lambda: "was destroyed" in text(page, "#pool-error"))
    page.execute_script(
        "const s = document.getElementById('pool'); s.value = 'kv'; s.dispatchEvent(new Event('change'))"
    )
    soon(page, lambda: "3 chunks are there" in text(page, "#tile-stored"))
    assert not page.find_element(By.ID, "pool-error").is_displayed()


def test_what_is_not_ready_is_told(page: WebDriver, facts: FakeFacts, server: WebServer) -> None:
    facts.ready = (False, "pool kv is being rebuilt")
    show(page, server)
    soon(page, lambda: text(page, "#not-ready") == "Not ready: pool kv is being rebuilt")


FIGURES = """
const done = arguments[arguments.length - 1];
import('/dashboard/figures.js').then(figures => {
  const looks = [[0, 10, 8, 0], [2, 20, 16, 4096]].map(([s, lookup_keys, hit_keys, pinned_bytes]) =>
    figures.point(s, {uuid: 'a', now_ns: s * 1e9, counters: {lookup_keys, hit_keys, pinned_bytes, stored_bytes: 0}}));
  const anew = {...looks[1], uuid: 'b'};
  done({
    sizes: [0, 1023, 1024, 1536, 5 * 2 ** 30, 123.4 * 2 ** 40].map(figures.size),
    seconds: [0.000833, 0.0055, 1.25, 90, 7200, 200000, -3, null].map(figures.seconds),
    rates: [0, 0.5, 1234.5, null].map(figures.perSecond),
    shares: [0, 0.945, 1, null].map(figures.percent),
    quantiles: [0.3, 0.6, 0.75, 0.99].map(share => figures.quantile([[0.001, 6], [0.01, 3], [null, 1]], share)),
    ofNothing: figures.quantile([[0.001, 0], [null, 0]], 0.5),
    since: figures.since([[0.001, 7], [null, 1]], [[0.001, 5], [null, 1]]),
    restarted: figures.since([[0.001, 2], [null, 0]], [[0.001, 5], [null, 1]]),
    between: figures.between(...looks),
    anew: figures.between(looks[0], anew),
  });
});
"""


def test_figures_are_told_as_people_read_them(page: WebDriver, server: WebServer) -> None:
    show(page, server)
    told = page.execute_async_script(FIGURES)
    assert told["sizes"] == ["0 B", "1023 B", "1 KiB", "1.5 KiB", "5 GiB", "123 TiB"]
    assert told["seconds"] == ["833 µs", "5.5 ms", "1.3 s", "1.5 min", "2.0 h", "2.3 d", "−3.0 s", "–"]
    assert told["rates"] == ["0/s", "0.5/s", "1,235/s", "–"]
    assert told["shares"] == ["0.0 %", "94.5 %", "100.0 %", "–"]
    assert told["quantiles"] == pytest.approx([quantile(HISTOGRAM.buckets, share) for share in (0.3, 0.6, 0.75, 0.99)])
    assert told["ofNothing"] is None
    assert told["since"] == [[0.001, 2], [None, 0]]
    assert told["restarted"] == [[0.001, 2], [None, 0]]
    assert told["between"] == {"hitShare": 0.8, "lookups": 5, "read": 2048, "stored": 0}
    assert set(told["anew"].values()) == {None}


def test_lines_and_states_differ_by_more_than_their_colour(page: WebDriver, server: WebServer) -> None:
    show(page, server)
    soon(page, lambda: state(page) == "live")
    dashes = page.execute_script("""
      const lines = ['first', 'second'].map(name => document.querySelector(`#bandwidth-chart path.${name}`));
      return lines.map(line => getComputedStyle(line).strokeDasharray);
    """)
    assert dashes[0] == "none"
    assert dashes[1] != "none"
    shapes = page.execute_script("""
      const sign = document.querySelector('.state .sign'), found = [];
      for (const state of ['live', 'connecting', 'lost']) {
        document.getElementById('state').dataset.state = state;
        const style = getComputedStyle(sign);
        found.push([style.borderRadius, style.backgroundColor, style.transform].join());
      }
      return found;
    """)
    assert len(set(shapes)) == 3


def test_the_page_asks_its_own_origin_alone_and_breaks_no_rule_of_it(page: WebDriver, server: WebServer) -> None:
    show(page, server)
    soon(page, lambda: state(page) == "live" and "alive" in text(page, "#processes"))
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert [name for name in asked if not name.startswith(server.url + "/")] == []
    assert page.get_log("browser") == []
