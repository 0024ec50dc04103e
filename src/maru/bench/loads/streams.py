"""Streams of requests of several kinds, made here or read from files in their published formats.

Every stream is a list of sessions (see `drive`); what is not a conversation is a session of one turn. Equal names give
equal prompts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maru.bench.loads.contexts import QUESTIONS
from maru.bench.loads.drive import Turn
from maru.bench.loads.prompts import Prompts
from maru.errors import MaruError

TRACE_BLOCK_TOKENS = 512
"""Of a Mooncake trace: one hash id stands for so many tokens."""


class BadStream(MaruError):
    """A file is not in the format that it should be in."""

    hint = "docs/benchmarks.md describes the formats that are read"


def _alone(prompts: list[list[int]]) -> list[list[Turn]]:
    return [[Turn(number, 0, tuple(prompt))] for number, prompt in enumerate(prompts)]


def high_reuse(prompts: Prompts, requests: int, tokens: int) -> list[list[Turn]]:
    """Many questions about a few long documents, in any order: a document for every four requests."""
    documents = [prompts.prompt(f"document {n}", tokens) for n in range(max(1, requests // 4))]
    chosen = random.Random("high reuse")
    return _alone([_asked(prompts, chosen.choice(documents), n) for n in range(requests)])


def low_reuse(prompts: Prompts, requests: int, tokens: int) -> list[list[Turn]]:
    """Short prompts that share nothing: what a cache can only lose time with."""
    return _alone([prompts.prompt(f"short {n}", max(16, tokens // 4)) for n in range(requests)])


def retrieval(prompts: Prompts, requests: int, tokens: int) -> list[list[Turn]]:
    """A system prompt that all share, and three retrieved passages in an order of their own: half of it is shared."""
    system = prompts.prompt("the assistant's instructions", tokens // 2)
    passages = [prompts.prompt(f"passage {n}", tokens // 6) for n in range(8)]
    chosen = random.Random("retrieval")
    found = []
    for number in range(requests):
        picked = chosen.sample(passages, 3)
        found.append(_asked(prompts, [*system, *(token for passage in picked for token in passage)], number))
    return _alone(found)


def _asked(prompts: Prompts, context: list[int], number: int) -> list[int]:
    return [*context, *prompts.words(QUESTIONS[number % len(QUESTIONS)]), *prompts.words(f"\n({number})\n")]


def long_set(prompts: Prompts, path: Path, requests: int, tokens_max: int) -> list[list[Turn]]:
    """A long-context set (LV-Eval, LongBench, ...): a line is JSON with `context` and `input` or `question`.

    Questions about one context follow each other there. Raises BadStream, OSError.
    """
    found = []
    for number, row in enumerate(_rows(path)):
        if number == requests:
            break
        question = row.get("input") or row.get("question")
        if not isinstance(row.get("context"), str) or not isinstance(question, str):
            raise BadStream(f"{path}, line {number + 1}: no `context` and `input` (or `question`), both texts")
        asked = prompts.words(f"\n\n{question}\n")
        found.append([*prompts.words(row["context"])[: max(0, tokens_max - len(asked))], *asked])
    return _alone(found)


def trace(prompts: Prompts, path: Path, requests: int, tokens_max: int, speed: float) -> list[list[Turn]]:
    """A trace in Mooncake's format: a line is JSON with `timestamp` (ms), `input_length` and `hash_ids`.

    A hash id becomes 512 tokens, the same for equal ids. Requests come when they came, `speed` times as fast. Raises
    BadStream, OSError.
    """
    sessions = []
    for number, row in enumerate(_rows(path)):
        if number == requests:
            break
        try:
            at_ms, length, ids = float(row["timestamp"]), int(row["input_length"]), list(row["hash_ids"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadStream(f"{path}, line {number + 1}: {type(error).__name__} {error}") from None
        blocks = [token for one in ids for token in prompts.prompt(f"block {one}", TRACE_BLOCK_TOKENS)]
        wait_s = at_ms / 1e3 / speed
        sessions.append([Turn(number, 0, tuple(blocks[: min(length, tokens_max)] or [0]), wait_s=wait_s)])
    return sessions


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadStream(f"{path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise BadStream(f"{path}, line {number}: not an object")
            yield row
