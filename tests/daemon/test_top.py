"""`maru top`: the same figures as the pool's own, live, in a terminal that textual's pilot looks at."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from textual.pilot import Pilot
from textual.widgets import Static
from typer.testing import CliRunner

import maru
from fake_daemon import FakeFacts
from http_asking import TOKENS, serving
from maru.stat_view import SeenPool
from maru.survey import look_at
from maru.top.screen import TILES, Top, over_time
from maru.top.sources import DaemonEvents, LocalPools, Lost, Moment, News, Past, PoolNow
from maru.top.trail import Rates, Trail
from maru.top_command import top

SIZE = (120, 50)
LOOKS_MAX = 1000


class Told:
    """A source that tells what a test hands in."""

    def __init__(self, *news: News) -> None:
        self.queue: queue.Queue[News | None] = queue.Queue()
        for one in news:
            self.queue.put(one)

    def news(self) -> Iterator[News]:
        while (one := self.queue.get()) is not None:
            yield one

    def close(self) -> None:
        self.queue.put(None)


@pytest.fixture
def filled(pool: maru.Pool) -> maru.Pool:
    space = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="[red]blue[/]"))
    for number in range(3):
        pool.put(bytes([number]) * 16, b"x" * 65536, namespace=space)
    return pool


def moment(pool: maru.Pool, at_s: float = 100.0, **changes: Any) -> Moment:
    return Moment("desk", at_s, [PoolNow("kv", {**pool.stats(), **changes})])


def on_screen(
    source: Any, look: Callable[[Top, Pilot[None]], Coroutine[Any, Any, None]], size: tuple[int, int] = SIZE
) -> Top:
    """Run the screen without a terminal, look at it, and end it."""
    screen = Top(source)

    async def run() -> None:
        async with screen.run_test(size=size) as pilot:
            await look(screen, pilot)

    asyncio.run(run())
    return screen


def text(screen: Top, name: str) -> str:
    """What a part of the screen says, as it is drawn."""
    part = screen.query_one(f"#{name}", Static)
    lines = (part.render_line(row).text.rstrip() for row in range(part.size.height))
    return "\n".join(lines).strip()


async def soon(pilot: Pilot[None], is_so: Callable[[], bool]) -> None:
    for _ in range(LOOKS_MAX):
        if is_so():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not come to be so")


def test_a_pool_of_this_host_is_shown_live(filled: maru.Pool) -> None:
    folder = Path(filled.folder)

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "192 KiB" in text(screen, "used"))
        assert "of 8 MiB" in text(screen, "used")
        filled.put(b"n" * 16, b"x" * 65536)
        await soon(pilot, lambda: "256 KiB" in text(screen, "used"))
        with filled.pin(b"n" * 16) as prefix:
            assert len(prefix) == 1
            await soon(pilot, lambda: text(screen, "pins") == "1")
        await soon(pilot, lambda: text(screen, "hit-rate").startswith("100.0 %"))
        await pilot.press("q")

    on_screen(LocalPools(lambda: [SeenPool(folder, look_at(folder))]), look)


def test_a_daemon_is_shown_with_its_hosts_and_comes_back_after_it_was_lost(filled: maru.Pool) -> None:
    facts = FakeFacts(pools={"kv": filled})
    first = serving(facts, authenticate=TOKENS.get)
    server = first.__enter__()

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "kv on desk" in text(screen, "status"))
        await pilot.press("h")
        await soon(pilot, lambda: "host-b" in text(screen, "hosts"))
        assert "https://other:7300" in text(screen, "hosts")
        assert "833 µs" in text(screen, "hosts")  # The median of the fake's histogram.
        await asyncio.to_thread(first.__exit__, None, None, None)
        await soon(pilot, lambda: "Connection lost" in text(screen, "status"))
        assert "Figures of" in text(screen, "status")
        second = serving(facts, authenticate=TOKENS.get, port=server.port)
        await asyncio.to_thread(second.__enter__)
        await soon(pilot, lambda: "kv on desk" in text(screen, "status"))
        assert not screen.query_one("#status").has_class("is-lost")
        await pilot.press("q")
        await asyncio.to_thread(second.__exit__, None, None, None)

    on_screen(DaemonEvents(server.url, "reader-token"), look)


@pytest.mark.parametrize(("token", "told"), [(None, "MARU_TOKEN"), ("wrong", "wrong token")])
def test_without_a_valid_token_it_ends_and_says_so(filled: maru.Pool, token: str | None, told: str) -> None:
    with serving(FakeFacts(pools={"kv": filled}), authenticate=TOKENS.get) as server:
        (only,) = list(DaemonEvents(server.url, token).news())
    assert isinstance(only, Lost)
    assert only.again_s is None
    assert told in only.why

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: screen.return_code == 1)

    on_screen(Told(only), look)


def test_names_out_of_shared_memory_are_text_and_never_markup(filled: maru.Pool) -> None:
    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "[red]blue[/]" in text(screen, "pool"))

    source = Told(Moment("desk [bold]", 1.0, [PoolNow("[link]", filled.stats())]))
    assert "[link] on desk [bold]" in status_of(source)
    on_screen(Told(moment(filled)), look)


def status_of(source: Told) -> str:
    seen = []

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "Looking" not in text(screen, "status"))
        seen.append(text(screen, "status"))

    on_screen(source, look)
    return seen[0]


def test_the_next_pool_is_a_key_away_and_a_lost_one_is_told(filled: maru.Pool) -> None:
    pools = [PoolNow("kv", filled.stats()), PoolNow("zz", error="pool zz was destroyed")]

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "kv (1 of 2)" in text(screen, "status"))
        await pilot.press("n")
        await soon(pilot, lambda: "zz (2 of 2)" in text(screen, "status"))
        await soon(pilot, lambda: "pool zz was destroyed" in text(screen, "pool"))
        assert text(screen, "used") == "-"
        await pilot.press("n")
        await soon(pilot, lambda: "kv (1 of 2)" in text(screen, "status"))

    on_screen(Told(Moment("desk", 1.0, pools)), look)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (Told(Moment("desk", 1.0, [])), "no pools"),
        (Told(Lost("no answer", 2.0)), "Connection lost (no answer); trying again in 2 s"),
    ],
)
def test_when_there_is_nothing_to_show_it_says_why(source: Told, told: str) -> None:
    assert told in status_of(source)


def test_a_look_that_fails_is_told_and_tried_again(filled: maru.Pool) -> None:
    looks: list[Any] = [maru.MaruError("cannot look into it"), [SeenPool(Path(filled.folder), filled.stats())]]

    def look() -> list[SeenPool]:
        one = looks.pop(0) if len(looks) > 1 else looks[0]
        if isinstance(one, maru.MaruError):
            raise one
        return one

    source = LocalPools(look)
    news = source.news()
    assert next(news) == Lost("cannot look into it", 1.0)
    assert isinstance(next(news), Moment)
    source.close()
    assert list(news) == []


def test_what_was_before_is_in_the_first_rates(filled: maru.Pool) -> None:
    stats = filled.stats()
    sample = {"uuid": stats["uuid"], "now_ns": stats["now_ns"] - 10**9, **dict.fromkeys(stats["counters"], 0)}

    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: text(screen, "stored") == "192 KiB/s")

    on_screen(
        Told(Past([{"unix_s": 99.0, "pools": {"kv": sample}}]), Moment("desk", 100.0, [PoolNow("kv", stats)])), look
    )


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_every_figure_is_whole_in_a_terminal_of_any_usual_width(filled: maru.Pool, columns: int) -> None:
    async def look(screen: Top, pilot: Pilot[None]) -> None:
        await soon(pilot, lambda: "of 8 MiB" in text(screen, "used"))
        for tile in TILES:
            place = screen.query_one(f"#{tile}").region
            assert place.width >= 15
            assert place.right <= columns

    on_screen(Told(moment(filled)), look, (columns, 40))


@pytest.mark.parametrize(
    ("values", "highest", "drawn"),
    [
        ([0.0, 0.5, 1.0, None, 1.0], 1.0, "   ▁▅█ █"),
        ([1.0] * 20, 2.0, "▅" * 8),
        ([0.0, 0.0], 0.0, "      ▁▁"),
        ([], 1.0, " " * 8),
    ],
)
def test_a_line_over_time_is_as_wide_as_its_place_and_newest_at_the_right(
    values: list[float | None], highest: float, drawn: str
) -> None:
    assert over_time(values, highest, 8) == drawn


# ---- Rates ---------------------------------------------------------------------------------------------------------


def look_of(now_s: float, uuid: str = "a", **counters: int) -> dict[str, Any]:
    names = dict.fromkeys(("lookup_keys", "hit_keys", "pinned_bytes", "stored_bytes"), 0)
    return {"uuid": uuid, "now_ns": round(now_s * 1e9), "counters": {**names, **counters}}


def test_rates_are_counted_by_the_pool_s_own_clock() -> None:
    trail = Trail()
    trail.add(1000.0, look_of(10.0))
    trail.add(1007.0, look_of(12.0, lookup_keys=8, hit_keys=6, pinned_bytes=4096, stored_bytes=1024))
    assert trail.lately() == Rates(0.75, 4.0, 2048.0, 512.0)


def test_rates_are_smoothed_over_the_last_seconds() -> None:
    trail = Trail()
    for second in range(20):
        trail.add(second, look_of(second, lookup_keys=10 * second if second < 10 else 100))
    assert trail.lately(seconds=5).lookups == 0
    assert trail.lately(seconds=60).lookups == pytest.approx(100 / 19)
    assert len(trail.series(8)) == 8


def test_a_pool_made_anew_begins_anew() -> None:
    trail = Trail()
    trail.add(1.0, look_of(1.0, lookup_keys=100))
    trail.add(2.0, look_of(2.0, uuid="b", lookup_keys=500))
    assert trail.lately() == Rates()
    trail.add(2.5, look_of(2.0, uuid="b", lookup_keys=900))  # Not newer.
    assert trail.lately() == Rates()


# ---- The command ---------------------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    app = typer.Typer()
    app.command()(top)
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("address", ["https://", "https://user:word@host:1", "http://host/?token=x"])
def test_an_address_with_a_secret_or_without_a_host_is_refused(address: str) -> None:
    done = run(address)
    assert done.exit_code == 2
    assert "MARU_TOKEN" in done.output


def test_a_pool_that_is_not_there_is_an_error_at_once() -> None:
    done = run("no-such-pool-anywhere")
    assert isinstance(done.exception, maru.MaruError)
