"""Writes what others read about the pool's byte layout, from the one truth about it.

    python scripts/generate_pool_format.py            write src/maru/pool_format.json and docs/pool-format.md
    python scripts/generate_pool_format.py --check    write nothing; exit 1 when one of them is not current

Offsets and sizes come from the compiled core, types and the reasons beside the fields from pool/layout.h. The
prose of docs/pool-format.md, down to the marker line, is written by hand and kept as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from maru.native import core

CHECKOUT = Path(__file__).resolve().parents[1]
LAYOUT_HEADER = CHECKOUT / "pool" / "layout.h"
JSON_FILE = CHECKOUT / "src" / "maru" / "pool_format.json"
DOC_FILE = CHECKOUT / "docs" / "pool-format.md"
MARKER = "<!-- From here on written by scripts/generate_pool_format.py -->"

_STRUCT = re.compile(
    r"(?P<about>(?:^//[^\n]*\n)+)^struct (?:alignas\(\d+\) )?(?P<name>\w+) \{\n(?P<body>.*?)^\};", re.M | re.S
)
_FIELD = re.compile(
    r"(?:alignas\(\d+\)\s+)?(?P<type>Atomic<\w+>|u?int\d+_t|char)\s+(?P<name>\w+)(?:\[\w+\])?;"
    r"(?P<why>[ \t]*//[^\n]*(?:\n[ \t]{8,}//[^\n]*)*)?"
)
_LOCK_BYTE = re.compile(r"kLockByte(\w+) = (\d+);\s*//\s*([^\n]*)")
_KINDS_OF_STATE = {
    "slot_states": "Slot states",
    "slab_states": "Slab states",
    "owner_kinds": "Owner kinds",
    "segment_states": "Segment states",
}


def _told(comment: str | None) -> str:
    """The text of `//` lines, as one line."""
    lines = (line.strip().removeprefix("//").strip() for line in (comment or "").splitlines())
    return " ".join(line for line in lines if line).replace("|", "\\|")


def _type_name(source: str) -> str:
    atomic = source.startswith("Atomic<")
    inner = re.sub(r"Atomic<|>|_t", "", source).replace("uint", "u").replace("int", "i")
    return f"atomic {inner}" if atomic else inner


def read_header() -> dict[str, tuple[str, dict[str, tuple[str, str]]]]:
    """Struct name -> (what it is, field name -> (type, reason)), from the comments of pool/layout.h."""
    structs = {}
    for struct in _STRUCT.finditer(LAYOUT_HEADER.read_text()):
        fields = {
            field["name"]: (_type_name(field["type"]), _told(field["why"])) for field in _FIELD.finditer(struct["body"])
        }
        structs[struct["name"]] = (_told(struct["about"]), fields)
    return structs


def _struct_section(struct: dict[str, Any], about: str, fields: dict[str, tuple[str, str]]) -> list[str]:
    lines = [f"### {struct['name']}", "", f"{about} {struct['bytes']} bytes.", ""]
    lines += ["| Field | Offset | Bytes | Type | Meaning |", "|---|--:|--:|---|---|"]
    for field in struct["fields"]:
        kind, why = fields[field["name"]]
        lines.append(f"| `{field['name']}` | {field['offset']} | {field['bytes']} | {kind} | {why} |")
    return [*lines, ""]


def _word_section(name: str, parts: list[str]) -> list[str]:
    lines = [f"### {name} word", "", "| Bits | Part |", "|---|---|"]
    first = 0
    for part in parts:
        title, width = part.split(":")
        last = first + int(width) - 1
        lines.append(f"| {first}-{last} | {title} |" if last > first else f"| {first} | {title} |")
        first = last + 1
    return [*lines, ""]


def format_json() -> str:
    """The text of src/maru/pool_format.json."""
    return json.dumps(json.loads(core.layout_description()), indent=2) + "\n"


def format_tables() -> str:
    """The generated half of docs/pool-format.md."""
    layout, header = json.loads(core.layout_description()), read_header()
    lines = [f"Format {layout['format']}, layout CRC `{core.layout_crc():08x}`.", "", "## Structs", ""]
    for struct in layout["structs"]:
        lines += _struct_section(struct, *header[struct["name"]])
    lines += ["## Packed words", "", "Bit 0 is the lowest. `spare` bits are zero.", ""]
    for name, parts in layout["words"].items():
        lines += _word_section(name.capitalize(), parts)
    lines += ["## Numbers", ""]
    for kind, title in _KINDS_OF_STATE.items():
        states = ", ".join(f"{number} {state}" for number, state in enumerate(layout[kind]))
        lines.append(f"- {title}: {states}")
    lines += ["", "| Constant | Value |", "|---|--:|"]
    for name, value in layout["constants"].items():
        lines.append(f"| `{name}` | {f'0x{value:016x}' if name.endswith('_magic') else value} |")
    lines += ["", "## Bytes of the lock file", "", "| Byte | Name | Meaning |", "|--:|---|---|"]
    for name, byte, why in _LOCK_BYTE.findall(LAYOUT_HEADER.read_text()):
        lines.append(f"| {byte}{' + n' if name == 'Process' else ''} | {name.lower()} | {why} |")
    return "\n".join(lines) + "\n"


def format_doc() -> str:
    """The text of docs/pool-format.md: the prose that is there, and the tables of now."""
    prose, marker, _ = DOC_FILE.read_text().partition(MARKER)
    if not marker:
        raise SystemExit(f"{DOC_FILE} has lost its marker line: {MARKER}")
    return f"{prose}{MARKER}\n\n{format_tables()}"


def main() -> int:
    stale = 0
    for file, text in ((JSON_FILE, format_json()), (DOC_FILE, format_doc())):
        if file.exists() and file.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            stale += 1
            print(f"{file.relative_to(CHECKOUT)} is not current; run scripts/generate_pool_format.py")
        else:
            file.write_text(text)
            print(f"wrote {file.relative_to(CHECKOUT)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
