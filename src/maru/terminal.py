"""What every command shares: where people read, where programs read, and how a pool is named on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.text import Text

from maru.config import PoolConfig, parse_url, shared_memory_root
from maru.survey import url_in

SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
PlaceOption = Annotated[
    Path | None,
    typer.Option("--dir", metavar="PLACE", help="Folder of the pools, when not this user's own in /dev/shm."),
]


def console(json_output: bool = False) -> Console:
    """Where people read: stdout, or stderr when stdout carries JSON."""
    return Console(stderr=json_output, highlight=False)


def complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(Text(f"maru: {message}", style="red"), soft_wrap=True)


def print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2))


def config_of(pool: str, place: Path | None) -> PoolConfig:
    """A pool as people name it: NAME (in this user's folder or in `place`), or a whole maru:/// URL."""
    if "://" not in pool:
        query = f"?dir={quote(str(place.absolute()))}" if place else ""
        return parse_url(f"maru:///{quote(pool)}{query}")
    if place:
        raise typer.BadParameter("a URL says where the pool is by itself (dir=); leave --dir out")
    return parse_url(pool)


def url_of(config: PoolConfig) -> str:
    """A URL that names the pool and says nothing else; it holds no secret."""
    return url_in(config.folder)


def say_none(place: Path | None) -> None:
    console().print(f"No pools in {place or shared_memory_root()}.", style="yellow", markup=False)
    console().print("[cyan]maru pool create 'maru:///kv?size=4GiB'[/cyan] makes one.")


# ---- maru stat --------------------------------------------------------------------------------------------
