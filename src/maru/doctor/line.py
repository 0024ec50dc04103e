"""One line of `maru doctor`: a figure, how good it is, and what to do when it is not good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "improve", "bad"]
"""`improve`: Maru works, and could work better. `bad`: it does not work here, or not as it should."""


@dataclass(frozen=True)
class Line:
    """`figure` is for programs and keeps its unit in its name or is a plain fact; `text` is for people."""

    section: str
    name: str
    verdict: Verdict
    text: str
    figure: Any = None
    advice: str = ""
    """The exact command or setting; empty when all is well."""

    def document(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "verdict": self.verdict,
            "text": self.text,
            "figure": self.figure,
            "do": self.advice,
        }


def worst(lines: list[Line]) -> Verdict:
    """The verdict on the whole."""
    found = {line.verdict for line in lines}
    return "bad" if "bad" in found else "improve" if "improve" in found else "ok"
