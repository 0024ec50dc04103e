"""Long contexts of packed real source code, and conversations about them.

Whole files are packed into contexts of a given size, best fit first with the largest file first, as published agentic
benchmarks do with repositories. What is asked and answered in each turn is given beforehand, so that every system gets
the same prompts: a turn's prompt is the context and all that was said before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from maru.bench.loads.drive import Turn
from maru.bench.loads.prompts import Prompts, source_files

FILES_MAX = 600
ANSWER_TOKENS = 40
QUESTIONS = (
    "\n\nWhat does this code do? Answer in one sentence.\n",
    "\n\nWhich function is the longest, and could it be cut in two?\n",
    "\n\nWhere are errors handled, and what is done about them?\n",
    "\n\nWrite a test for the first function that you see.\n",
    "\n\nWhich of these names would you change?\n",
    "\n\nWhat happens when the input is empty?\n",
    "\n\nIs anything here shared between threads?\n",
    "\n\nWhat would you take out?\n",
)


@dataclass(frozen=True)
class Packed:
    """One context: which files, and its tokens."""

    files: int
    tokens: tuple[int, ...]


def pack(sizes: Sequence[int], room: int, bins: int) -> list[list[int]]:
    """Which items go into which bin: the largest first, each where it leaves the least room."""
    free, found = [room] * bins, [list[int]() for _ in range(bins)]
    for item in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        fitting = [bin_ for bin_ in range(bins) if free[bin_] >= sizes[item]]
        if fitting and sizes[item]:
            best = min(fitting, key=lambda bin_: (free[bin_], bin_))
            free[best] -= sizes[item]
            found[best].append(item)
    return found


def packed_contexts(prompts: Prompts, count: int, tokens: int, name: str) -> list[Packed]:
    """`count` contexts of so many tokens each, the same for equal names; no file lies in two of them."""
    files: list[list[int]] = []
    held = 0
    for text in islice(source_files(), FILES_MAX):
        words = prompts.words(text[: 8 * tokens])
        if len(words) <= tokens:
            files.append(words)
            held += len(words)
        if held > 3 * count * tokens:
            break
    found = []
    for number, items in enumerate(pack([len(words) for words in files], tokens, count)):
        whole = prompts.words(f"# context {number}, {name}\n")
        for item in items:
            whole += files[item]
        whole += prompts.prompt(
            f"the rest of context {number}, {name}", tokens
        )  # The bins are nearly full; all are equal.
        found.append(Packed(len(items), tuple(whole[:tokens])))
    return found


def conversations(prompts: Prompts, count: int, tokens: int, turns: int, name: str) -> list[list[Turn]]:
    """One session for each context. The last turn's prompt is the longest: `turns` questions beyond the context."""
    sessions = []
    for number, context in enumerate(packed_contexts(prompts, count, tokens, name)):
        said, session = list(context.tokens), list[Turn]()
        for turn in range(turns):
            said = said + prompts.words(QUESTIONS[turn % len(QUESTIONS)])
            session.append(Turn(number, turn, tuple(said)))
            said = said + prompts.prompt(f"answer {turn} in session {number}, {name}", ANSWER_TOKENS)
        sessions.append(session)
    return sessions
