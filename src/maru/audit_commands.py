"""`maru audit …`: read an audit log, follow it, and find out whether somebody changed it.

Holds what a person types and reads; `maru.audit` does it. `verify` ends with 0 when nothing is wrong and with 1 when
something is, or when there is no log to be read.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from maru.audit import Wanted, entries_in, make_key, verify_log
from maru.audit.log import default_key
from maru.config import format_size
from maru.terminal import SETTINGS, JsonFlag, console, print_json

audit_app = typer.Typer(**SETTINGS)

FOLLOW_S = 0.5
SHOWN_MAX = 1000
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the log lies.")]


@audit_app.callback()
def _audit() -> None:
    """Who stored, hit, was refused, removed or changed what; and whether the log of it is as it was written.

    [bold]Examples[/bold]

    [cyan]maru audit key /etc/maru/audit.key[/cyan]   a key, so that nobody without it can write another chain
    [cyan]maru serve kv --audit /var/log/maru --audit-key /etc/maru/audit.key[/cyan]   keep one
    [cyan]maru audit verify /var/log/maru --key /etc/maru/audit.key[/cyan]   is it as it was written?
    [cyan]maru audit show /var/log/maru --what removed --since 2h[/cyan]   read it
    """


@audit_app.command("key")
def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; it gets mode 0600.")]) -> None:
    """Make a key for a log's chain. Keep it where the log's readers have it, and its forgers do not."""
    made = make_key(file)
    console().print(f"made the key {made.id} in {escape(str(file))}", soft_wrap=True)


@audit_app.command("verify")
def verify(
    folder: FolderArgument,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The chain's key, when not FOLDER/audit.key.")
    ] = None,
    held: Annotated[
        str, typer.Option("--held", metavar="SEQ:HASH", help="A line that an earlier verify ended with.")
    ] = "",
    json_output: JsonFlag = False,
) -> None:
    """Walk the chain and name what was changed, cut off, swapped or lost.

    Note the last line that it tells somewhere else, and give it with --held next time: then not even who has the key
    can have made another log since.
    """
    verdict = verify_log(folder, default_key(folder, key), _held(held) if held else None)
    if json_output:
        print_json({**asdict(verdict), "is_good": verdict.is_good})
    else:
        out = console()
        for note in verdict.notes:
            out.print(escape(note), style="yellow", soft_wrap=True)
        for damage in verdict.damages:
            out.print(f"[red]{damage.kind}[/red]  {escape(damage.file)}  {escape(damage.text)}", soft_wrap=True)
        kept = "with its key" if verdict.is_keyed else "without a key"
        told = "as they were written" if verdict.is_good else f"[red]{len(verdict.damages)} things are wrong[/red]"
        out.print(f"{verdict.lines} lines in {verdict.files} files, {kept}: {told}", soft_wrap=True)
        out.print(f"the last line is {verdict.last_seq}:{verdict.last_hash}", soft_wrap=True)
    if not verdict.is_good:
        raise typer.Exit(1)


@audit_app.command("show")
def show(
    folder: FolderArgument,
    who: Annotated[str, typer.Option(help="Anything of tenant, client or process.")] = "",
    what: Annotated[str, typer.Option(help="stored, hit, missed, refused, removed, expired, policy, keys …")] = "",
    namespace: Annotated[str, typer.Option(help="How its digest begins, in hex.")] = "",
    since: Annotated[str, typer.Option(help="30s, 15m, 2h, 7d; or 2026-01-31T12:00.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """Show the lines that agree with everything given, the newest last. `maru audit verify` says if they are genuine.

    A table shows the newest thousand, --json all.
    """
    wanted = Wanted(who, what, namespace, _since_ns(since) if since else 0)
    found = list(entries_in(folder, wanted))
    if json_output:
        print_json(found)
        return
    table = Table("when", "what", "who", "door", "namespace", "calls", "chunks", "bytes", "outcome")
    for fields in found[-SHOWN_MAX:]:
        table.add_row(*map(escape, _row(fields)))
    console().print(table)
    if len(found) > SHOWN_MAX:
        console().print(f"the newest {SHOWN_MAX} of {len(found)}; --json shows all")


@audit_app.command("tail")
def tail(
    folder: FolderArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
) -> None:
    """Show the newest lines, one a row."""
    wanted = Wanted()
    try:
        found = list(entries_in(folder, wanted))
        shown = found[len(found) - min(lines, len(found)) :]
        while True:
            for fields in shown:
                typer.echo("  ".join(cell for cell in _row(fields) if cell))
            if not follow:
                return
            wanted = replace(wanted, after_seq=found[-1]["seq"] if found else wanted.after_seq)
            time.sleep(FOLLOW_S)
            found = shown = list(entries_in(folder, wanted))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _row(fields: dict[str, Any]) -> list[str]:
    """One line's cells, as plain text: what a client called itself holds no control characters any more."""
    people = [str(fields.get(name, "")) for name in ("tenant", "client", "process")]
    size = fields.get("bytes", 0)
    told = [str(fields.get(name, "")) for name in ("outcome", "reason")]
    return [
        "".join(char if char.isprintable() else "?" for char in cell)
        for cell in (
            datetime.fromtimestamp(fields["at_unix_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            str(fields.get("what", "")),
            " ".join(one for one in people if one),
            str(fields.get("door", "")),
            str(fields.get("namespace", ""))[:12],
            str(fields.get("calls", "")),
            str(fields.get("chunks", "")),
            format_size(size) if isinstance(size, int) and size else "",
            ", ".join(one for one in told if one and one != "done"),
        )
    ]


def _held(text: str) -> tuple[int, str]:
    seq, colon, digest = text.partition(":")
    if not colon or not seq.isascii() or not seq.isdigit() or not re.fullmatch("[0-9a-f]{64}", digest):
        raise typer.BadParameter("--held takes SEQ:HASH, as `maru audit verify` tells the last line")
    return int(seq), digest


def _since_ns(text: str) -> int:
    span = _SPAN.fullmatch(text)
    if span:
        return time.time_ns() - int(span[1]) * _SPAN_SECONDS[span[2]] * 10**9
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        raise typer.BadParameter(f"--since {text}: write 30s, 15m, 2h, 7d, or 2026-01-31T12:00") from None
