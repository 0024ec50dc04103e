"""The screen of `maru top`: figures of one pool in a row, two lines over time, and below them everything about it.

Promises:   what it shows is of now, or it says since when it is not. Names out of shared memory are shown as text.
Leaves:     figures to a source, and the tables to `stat_view` and `host_view`.
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Static, TabbedContent, TabPane

from maru.config import format_size
from maru.stat_view import plain, share, view_of_pool
from maru.top.host_view import view_of_hosts
from maru.top.sources import Lost, Moment, News, Past, PoolNow, Source
from maru.top.trail import Trail

SHORTLY_S = 60.0
SERIES_MAX = 240
_BLOCKS = "▁▂▃▄▅▆▇█"
TILES = {
    "used": "in use",
    "hit-rate": "hit rate",
    "lookups": "asked for",
    "read": "read",
    "stored": "stored",
    "chunks": "chunks",
    "in-flight": "in flight",
    "pins": "pins",
}


class Top(App[None]):
    """`maru top` itself. It ends with code 1 and a message when its source says that there is no use in trying."""

    TITLE = "maru top"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012  # textual's own type is no ClassVar.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("n", "next_pool(1)", "Next pool"),
        Binding("p", "next_pool(-1)", "Previous pool", show=False),
        Binding("h", "turn", "Pool or hosts"),
    ]
    CSS = """
    #status { height: 1; padding: 0 1; }
    #status.is-lost { background: $error; color: $text; text-style: bold; }
    #tiles { layout: grid; grid-size: 8; height: 4; }
    .-narrow #tiles { grid-size: 4; height: 8; }
    .tile { border: round $foreground 40%; border-title-color: $foreground 80%; padding: 0 1; height: 4; }
    #lines { height: 3; }
    .line { width: 1fr; padding: 0 1; height: 3; }
    .over-time { height: 1; color: $accent; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; }
    VerticalScroll { padding: 0 1; }
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._moment: Moment | None = None
        self._trails: dict[str, Trail] = {}
        self._chosen = ""

    def compose(self) -> ComposeResult:
        yield Static("Looking …", id="status", markup=False)
        with Container(id="tiles"):
            for name, title in TILES.items():
                tile = Static("-", id=name, classes="tile", markup=False)
                tile.border_title = title
                yield tile
        with Horizontal(id="lines"):
            for name, title in (("hits", "hit rate, 0 to 100 %"), ("bandwidth", "read in place")):
                with Vertical(classes="line"):
                    yield Static(title, id=f"{name}-title", markup=False)
                    yield Static("", id=f"{name}-line", classes="over-time", markup=False)
        with TabbedContent(id="tabs"):
            with TabPane("Pool", id="pool-tab"), VerticalScroll():
                yield Static("", id="pool", markup=False)
            with TabPane("Hosts", id="hosts-tab"), VerticalScroll():
                yield Static("Seen from beside the pool there are no other hosts.", id="hosts", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.run_worker(self._follow, thread=True, exclusive=True, name="source")

    def on_unmount(self) -> None:
        self._source.close()

    def _follow(self) -> None:
        """In a thread of its own: sources block."""
        for news in self._source.news():
            if not self.is_running:
                return
            try:
                self.call_from_thread(self.take, news)
            except (RuntimeError, CancelledError):
                if self.is_running:
                    raise
                return  # The screen ended meanwhile.

    def take(self, news: News) -> None:
        """Show what came."""
        if isinstance(news, Past):
            for sample in news.samples:
                for name, figures in sample["pools"].items():
                    self._trail(name).add(sample["unix_s"], figures)
        elif isinstance(news, Lost):
            self._say_lost(news)
        else:
            self._moment = news
            for pool in news.pools:
                if pool.stats:
                    self._trail(pool.name).add(news.unix_s, pool.stats)
            self._show()

    def action_next_pool(self, by: int) -> None:
        names = [pool.name for pool in self._moment.pools] if self._moment else []
        if names:
            self._chosen = names[(names.index(self._shown(names)) + by) % len(names)]
            self._show()

    def action_turn(self) -> None:
        tabs = self.query_one("#tabs", TabbedContent)
        tabs.active = "hosts-tab" if tabs.active == "pool-tab" else "pool-tab"

    def _trail(self, name: str) -> Trail:
        return self._trails.setdefault(name, Trail())

    def _shown(self, names: list[str]) -> str:
        return self._chosen if self._chosen in names else names[0]

    def _say_lost(self, lost: Lost) -> None:
        if lost.again_s is None:
            self.exit(return_code=1, message=f"maru: {lost.why}")
            return
        since = f" Figures of {_clock(self._moment.unix_s)}." if self._moment else ""
        told = f"Connection lost ({lost.why}); trying again in {lost.again_s:g} s.{since}"
        status = self.query_one("#status", Static)
        status.update(plain(told))
        status.add_class("is-lost")

    def _show(self) -> None:
        moment = self._moment
        if moment is None:
            return
        status = self.query_one("#status", Static)
        status.remove_class("is-lost")
        names = [pool.name for pool in moment.pools]
        if not names:
            status.update(plain(f"{moment.title}: no pools. {_clock(moment.unix_s)}"))
            return
        name = self._shown(names)
        pool = moment.pools[names.index(name)]
        which = f" ({names.index(name) + 1} of {len(names)})" if len(names) > 1 else ""
        told = f"{name}{which} on {moment.title}, {_clock(moment.unix_s)}"
        status.update(plain(told + (f"; {moment.notice}" if moment.notice else "")))
        if pool.stats:
            self._show_pool(pool)
        else:
            self.query_one("#pool", Static).update(Text.assemble((plain(pool.error).plain, "red")))
            for tile in TILES:
                self.query_one(f"#{tile}", Static).update("-")
        if moment.hosts is not None:
            self.query_one("#hosts", Static).update(view_of_hosts(moment.hosts))

    def _show_pool(self, pool: PoolNow) -> None:
        stats, trail = pool.stats, self._trail(pool.name)
        now, shortly = trail.lately(), trail.lately(SHORTLY_S)
        for tile, told in _tiles(stats).items():
            self.query_one(f"#{tile}", Static).update(told)
        hit_rate = "no lookups" if shortly.hit_share is None else share(round(1000 * shortly.hit_share), 1000)
        self.query_one("#hit-rate", Static).update(f"{hit_rate}\nof a minute")
        self.query_one("#lookups", Static).update(f"{now.lookups:,.0f}\nkeys/s")
        self.query_one("#read", Static).update(f"{format_size(round(now.read_bytes))}/s")
        self.query_one("#stored", Static).update(f"{format_size(round(now.stored_bytes))}/s")
        series = trail.series(SERIES_MAX)
        highest = max((rates.read_bytes for rates in series), default=0.0)
        self.query_one("#bandwidth-title", Static).update(f"read in place, 0 to {format_size(round(highest))}/s")
        hits, bandwidth = self.query_one("#hits-line", Static), self.query_one("#bandwidth-line", Static)
        hits.update(over_time([rates.hit_share for rates in series], 1.0, hits.size.width))
        bandwidth.update(over_time([rates.read_bytes for rates in series], highest, bandwidth.size.width))
        self.query_one("#pool", Static).update(view_of_pool(stats))


def _tiles(stats: dict[str, Any]) -> dict[str, str]:
    used_bytes, size_bytes = stats["used_bytes"], stats["size_bytes"]
    return {
        "used": f"{format_size(used_bytes)}\nof {format_size(size_bytes)}",
        "chunks": f"{stats['chunks']['sealed']:,}",
        "in-flight": f"{stats['chunks']['reserved']:,}",
        "pins": f"{sum(row['pins'] for row in stats['processes']):,}",
    }


def over_time(values: list[float | None], highest: float, columns: int) -> str:
    """The latest values as blocks from nothing to `highest`, one a column, the newest at the right; None is a gap."""
    blocks = []
    for value in values[-columns:] if columns > 0 else []:
        height = 0 if value is None or highest <= 0 else round(value / highest * (len(_BLOCKS) - 1))
        blocks.append(" " if value is None else _BLOCKS[max(0, min(height, len(_BLOCKS) - 1))])
    return "".join(blocks).rjust(columns)


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
