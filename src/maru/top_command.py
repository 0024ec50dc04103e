"""`maru top`: which figures are meant, and who to trust; the screen itself is in `top`, loaded only when it runs."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from maru.errors import MaruError
from maru.stat_view import SeenPool
from maru.survey import look_at, survey
from maru.terminal import PlaceOption, complain, config_of

if TYPE_CHECKING:
    from maru.top.sources import Source

TOKEN_VARIABLE = "MARU_TOKEN"


def top(
    of: Annotated[
        str | None, typer.Argument(metavar="[POOL|URL]", help="A pool, or a daemon: https://HOST:PORT.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Certificates to trust, when the daemon's is our own.")
    ] = None,
    place: PlaceOption = None,
) -> None:
    """Watch pools live: occupancy, hit rate, bandwidth, who pins what.

    Without POOL: every pool of yours, one at a time; n shows the next. With the address of a daemon its pools, and the
    hosts that use them. A daemon that wants a token gets the one in MARU_TOKEN.

    [bold]Examples[/bold]

    [cyan]maru top[/cyan]   the pools of this host
    [cyan]maru top kv[/cyan]   one of them
    [cyan]MARU_TOKEN=… maru top https://cache-1:6556 --ca maru.pem[/cyan]   those of another host
    """
    try:
        from maru.top.screen import Top
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("textual"):
            raise
        complain("maru top needs textual: pip install 'maru-kvcache[top]'")
        raise typer.Exit(1) from None
    screen = Top(_source(of, ca, place))
    screen.run()
    if screen.return_code:
        raise typer.Exit(screen.return_code)


def _source(of: str | None, ca: Path | None, place: Path | None) -> Source:
    from maru.top.sources import DaemonEvents, LocalPools

    if of is not None and of.partition("://")[0] in ("http", "https"):
        parts = urlsplit(of)
        if not parts.hostname or parts.username or parts.password or parts.query:
            raise typer.BadParameter("a daemon's address is https://HOST:PORT; its token goes into MARU_TOKEN")
        context = ssl.create_default_context(cafile=str(ca) if ca else None) if parts.scheme == "https" else None
        return DaemonEvents(of, os.environ.get(TOKEN_VARIABLE), context)
    if of is None:
        survey(place)  # A folder that cannot be looked into is an error now, and a line on the screen later.
        return LocalPools(lambda: survey(place))
    folder = config_of(of, place).folder
    look_at(folder)  # So is a pool that is not there.

    def look() -> list[SeenPool]:
        try:
            return [SeenPool(folder, look_at(folder))]
        except MaruError as error:
            return [SeenPool(folder, error=error)]

    return LocalPools(look)
