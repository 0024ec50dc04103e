"""Prompts of a given length that share no chunk with each other, the same in every run.

With a model they are real source code (this Python's own library) in the model's tokens; without one, numbers.
"""

from __future__ import annotations

import random
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

VOCABULARY = 32_000
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "__pycache__")


class Prompts(ABC):
    """Each prompt has a name; equal names are equal prompts."""

    @abstractmethod
    def prompt(self, name: str, tokens: int) -> list[int]:
        """So many tokens that begin unlike those of every other name."""

    @abstractmethod
    def words(self, text: str) -> list[int]:
        """A text in tokens."""

    @abstractmethod
    def ends(self, text: str) -> list[int]:
        """Where in the text each of these tokens ends, in characters."""


def prompts_for(model: Path | None) -> Prompts:
    """For a model's folder; without one, of numbers."""
    return TextPrompts(model) if model else NumberPrompts()


class NumberPrompts(Prompts):
    """For engines that compute nothing."""

    def prompt(self, name: str, tokens: int) -> list[int]:
        return random.Random(name).choices(range(VOCABULARY), k=tokens)

    def words(self, text: str) -> list[int]:
        """Four characters a token, as real tokenizers have about."""
        return [random.Random(text[at : at + 4]).randrange(VOCABULARY) for at in range(0, len(text), 4)]

    def ends(self, text: str) -> list[int]:
        return [min(at + 4, len(text)) for at in range(0, len(text), 4)]


class TextPrompts(Prompts):
    """Source code, each prompt from another place of it, with its own name in its first line."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._texts: list[list[int]] = []
        self._files = source_files()

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._model / "tokenizer.json"))

    def words(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ends(self, text: str) -> list[int]:
        return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def prompt(self, name: str, tokens: int) -> list[int]:
        chosen = random.Random(name)
        found = self.words(f"# {name}\n")
        while len(found) < tokens:
            found += self._text(chosen.randrange(64))
        return found[:tokens]

    def _text(self, number: int) -> list[int]:
        while len(self._texts) <= number:
            self._texts.append(self.words(next(self._files)))
        return self._texts[number]


def source_files() -> Iterator[str]:
    """The Python library's own modules, in the order of their names, without tests; again and again."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path for path in sorted(library.rglob("*.py"))
        if not set(path.relative_to(library).parts) & set(_LEFT_OUT) and path.stat().st_size
    ]  # fmt: skip
    while True:
        for path in files:
            try:
                yield f"# {path.relative_to(library)}\n{path.read_text(encoding='utf-8')}\n"
            except UnicodeDecodeError:
                continue
