"""Traces of prefixes: which requests came in which order, and what of their prompts they shared. No text, no tokens.

A trace is a tree of 16-token nodes and, for each request in order of arrival, the deepest node of its prompt and the
prompt's token count. Chunks of 16, 64 or 256 tokens are the nodes at the depths that are multiples of 1, 4 and 16, so
one file serves them all. A prompt's last token is always computed, so it is never part of a chunk asked for.

File format `.pct`, or `.pct.xz` compressed, little-endian: u32 "PCT1", u32 nodes, u32 requests, i32 for each node
(node - 1 - its parent; a root's parent is -1), i32 leaf of each request, i32 prompt tokens of each, u8 tenant of each.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass
from pathlib import Path

NODE_TOKENS = 16
_MAGIC = b"PCT1"


class BadTrace(ValueError):
    """A file that is no trace of prefixes, or is cut short; the message names it."""


@dataclass(frozen=True)
class PrefixTrace:
    """Requests as chains of chunk numbers, root first; a chunk's number says which prefix it ends."""

    name: str
    chunk_tokens: int
    chunk_count: int
    """Different chunks in the whole trace."""
    depth: tuple[int, ...]
    """Of each chunk: how many chunks of its prefix come before it."""
    requests: tuple[tuple[int, ...], ...]
    prompt_tokens: tuple[int, ...]

    @property
    def references(self) -> int:
        return sum(map(len, self.requests))


def read_trace(path: Path, chunk_tokens: int = 256) -> PrefixTrace:
    """Raises BadTrace; OSError when the file cannot be read."""
    if chunk_tokens % NODE_TOKENS:
        raise BadTrace(f"{chunk_tokens} tokens a chunk: a trace knows multiples of {NODE_TOKENS}")
    try:
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        magic, node_count, request_count = struct.unpack_from("<4sII", data)
        if magic != _MAGIC:
            raise BadTrace(f"{path} is no trace of prefixes: it begins with {magic!r}")
        steps = struct.unpack_from(f"<{node_count}i", data, 12)
        leaves = struct.unpack_from(f"<{request_count}i", data, 12 + 4 * node_count)
        prompt_tokens = struct.unpack_from(f"<{request_count}i", data, 12 + 4 * (node_count + request_count))
    except (struct.error, lzma.LZMAError, EOFError) as error:
        raise BadTrace(f"{path} is no trace of prefixes, or it is cut short: {error}") from error
    parents = [node - 1 - step for node, step in enumerate(steps)]
    if any(not -1 <= parent < node for node, parent in enumerate(parents)):
        raise BadTrace(f"{path}: a node comes before its parent")
    if any(not 0 <= leaf < node_count for leaf in leaves):
        raise BadTrace(f"{path}: a request ends at a node that is not there")
    return _cut(path.name.split(".")[0], chunk_tokens, parents, leaves, prompt_tokens)


def _cut(
    name: str, chunk_tokens: int, parents: list[int], leaves: tuple[int, ...], prompt_tokens: tuple[int, ...]
) -> PrefixTrace:
    nodes_a_chunk = chunk_tokens // NODE_TOKENS
    numbers: dict[int, int] = {}
    depth: list[int] = []
    requests = []
    for leaf, tokens in zip(leaves, prompt_tokens, strict=True):
        path = []
        node = leaf
        while node >= 0:
            path.append(node)
            node = parents[node]
        path.reverse()
        chain = []
        for at in range(max(0, tokens - 1) // chunk_tokens):
            last = (at + 1) * nodes_a_chunk - 1
            if last >= len(path):
                raise BadTrace(f"{name}: a prompt of {tokens} tokens ends at depth {len(path)}")
            number = numbers.setdefault(path[last], len(numbers))
            if number == len(depth):
                depth.append(at)
            chain.append(number)
        requests.append(tuple(chain))
    return PrefixTrace(name, chunk_tokens, len(numbers), tuple(depth), tuple(requests), prompt_tokens)


@dataclass
class Saved:
    """What hits saved, as shares of the whole trace."""

    tokens: float = 0.0
    """Prompt tokens that were not computed."""
    prefill: float = 0.0
    """Prefill work that was not done: a token at position p counts 1 + p / HALF_TOKENS."""


# The position at which attention costs a token as much as all the rest. Fitted to SmolLM2-135M on a CPU; a larger
# model on a GPU has it later (some 30,000 tokens for 8 billion parameters), and then the two shares are closer.
HALF_TOKENS = 3115.0


class Tally:
    """Adds up what the hits of a trace save."""

    def __init__(self, trace: PrefixTrace) -> None:
        self._tokens = trace.chunk_tokens
        self._all_tokens = sum(trace.prompt_tokens)
        self._all_prefill = sum(_work(0, tokens) for tokens in trace.prompt_tokens)
        self._hit_tokens = 0
        self._hit_prefill = 0.0

    def hit(self, chunks: int) -> None:
        """The first so many chunks of a prompt were there."""
        self._hit_tokens += chunks * self._tokens
        self._hit_prefill += _work(0, chunks * self._tokens)

    def saved(self) -> Saved:
        return Saved(self._hit_tokens / max(1, self._all_tokens), self._hit_prefill / max(1.0, self._all_prefill))


def _work(first: int, end: int) -> float:
    return (end - first) + (end * end - first * first) / (2 * HALF_TOKENS)
