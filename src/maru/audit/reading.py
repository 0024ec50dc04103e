"""Entries of a log that match, oldest first. Says nothing of whether they are genuine: that is `verify`'s."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.audit.chain import read_line
from maru.audit.log import file_name, numbered_files
from maru.errors import AuditError


@dataclass(frozen=True)
class Wanted:
    """Which entries: all that is given has to agree."""

    who: str = ""
    """Anywhere in tenant, client or process."""
    what: str = ""
    namespace: str = ""
    """How its hex digest begins."""
    since_unix_ns: int = 0
    after_seq: int = 0

    def agrees(self, fields: dict[str, Any]) -> bool:
        people = " ".join(str(fields.get(name, "")) for name in ("tenant", "client", "process"))
        at = fields.get("at_unix_ns")
        return (
            self.who in people
            and self.what in ("", fields.get("what"))
            and str(fields.get("namespace", "")).startswith(self.namespace)
            and isinstance(at, int)
            and at >= self.since_unix_ns
            and fields["seq"] > self.after_seq
        )


def entries_in(folder: Path, wanted: Wanted | None = None) -> Iterator[dict[str, Any]]:
    """The fields of every line that agrees; lines that cannot be read are left out. Raises AuditError."""
    wanted = wanted or Wanted()
    try:
        files = numbered_files([path.name for path in folder.iterdir()])
    except OSError as error:
        raise AuditError(f"cannot read {folder}: {error.strerror}", path=str(folder)) from None
    if not files:
        raise AuditError(f"{folder} holds no audit log", path=str(folder))
    for number in files:
        try:
            content = (folder / file_name(number)).read_bytes()
        except FileNotFoundError:  # Removed by the log's own bound since we looked.
            continue
        except OSError as error:
            raise AuditError(f"cannot read {folder}: {error.strerror}", path=str(folder)) from None
        for raw in content.split(b"\n"):
            line = read_line(raw)
            if line is not None and wanted.agrees(line.fields):
                yield line.fields
