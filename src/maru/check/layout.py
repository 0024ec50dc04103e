"""The byte layout as data: structs, packed words and constants of src/maru/pool_format.json.

The JSON is generated from the core's headers; nothing here knows an offset by itself, and nothing here asks the core.
"""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from pathlib import Path

FORMAT_FILE = Path(__file__).resolve().parents[1] / "pool_format.json"
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Word:
    """Bit fields of one packed 64-bit word: `word.get("state", value)`."""

    def __init__(self, parts: list[str]) -> None:
        self.spare = 0
        """Mask of the bits that mean nothing and are zero."""
        self._fields: dict[str, tuple[int, int]] = {}
        shift = 0
        for part in parts:
            name, width = part.split(":")
            mask = (1 << int(width)) - 1
            if name == "spare":
                self.spare |= mask << shift
            else:
                self._fields[name] = (shift, mask)
            shift += int(width)
        if shift != 64:
            raise ValueError(f"a packed word has {shift} bits")

    def field(self, name: str) -> tuple[int, int]:
        """(shift, mask after shifting) of a field, for loops that cannot afford a call."""
        return self._fields[name]

    def get(self, name: str, value: int) -> int:
        shift, mask = self._fields[name]
        return value >> shift & mask

    def make(self, **values: int) -> int:
        """The word with these fields and zero elsewhere."""
        return sum((value & self._fields[name][1]) << self._fields[name][0] for name, value in values.items())


class Layout:
    """One format's structs, words, state names and constants."""

    def __init__(self, text: str) -> None:
        described = json.loads(text)
        self.format: int = described["format"]
        # The core takes its CRC over the description it was generated from, which is this JSON on one line.
        self.crc = zlib.crc32(json.dumps(described).encode())
        self.sizes: dict[str, int] = {item["name"]: item["bytes"] for item in described["structs"]}
        self.places: dict[str, dict[str, tuple[int, int]]] = {
            item["name"]: {part["name"]: (part["offset"], part["bytes"]) for part in item["fields"]}
            for item in described["structs"]
        }
        self.words = {name: Word(parts) for name, parts in described["words"].items()}
        self.constants: dict[str, int] = described["constants"]
        self.slot_states: list[str] = described["slot_states"]
        self.slab_states: list[str] = described["slab_states"]
        self.owner_kinds: list[str] = described["owner_kinds"]
        self.segment_states: list[str] = described["segment_states"]

    def offset(self, name: str, field: str) -> int:
        return self.places[name][field][0]

    def row(self, name: str, *fields: str) -> struct.Struct:
        """A struct.Struct as long as struct `name` that unpacks only these fields, in the order of their offsets.

        Fields of 1, 2, 4 and 8 bytes come as unsigned numbers, all others as bytes.
        """
        code, at = "<", 0
        for field in fields:
            offset, size = self.places[name][field]
            if offset < at:
                raise ValueError(f"{name}.{field} is not in the order of offsets")
            code += f"{offset - at}x{_CODES.get(size, f'{size}s')}"
            at = offset + size
        return struct.Struct(f"{code}{self.sizes[name] - at}x")


@cache
def layout() -> Layout:
    """The layout of this version's pools."""
    return Layout(FORMAT_FILE.read_text())
