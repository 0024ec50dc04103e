"""Other ways of choosing who goes, simulated on a trace, and the best that any way could do.

Each function serves the requests of a trace in order with room for `capacity` chunks: the leading run that is there
hits, what is missing is stored, and chunks of the request being served are never evicted for it. They know no pool.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from maru.bench.prefix_trace import PrefixTrace, Saved, Tally

Simulated = Callable[[PrefixTrace, int], Saved]

_NEVER = 1 << 60


def lru(trace: PrefixTrace, capacity: int) -> Saved:
    """The least recently used chunk goes."""
    held: OrderedDict[int, None] = OrderedDict()
    tally = Tally(trace)
    for chain in trace.requests:
        hits = _leading(chain, held)
        tally.hit(hits)
        for chunk in chain[:hits]:
            held.move_to_end(chunk)
        mine = set(chain)
        for chunk in chain[hits:]:
            if chunk in held:
                held.move_to_end(chunk)
                continue
            if len(held) >= capacity:
                victim = next((one for one in held if one not in mine), None)
                if victim is None:
                    break
                del held[victim]
            held[chunk] = None
    return tally.saved()


def _leading(chain: tuple[int, ...], held: OrderedDict[int, None] | dict[int, int]) -> int:
    for at, chunk in enumerate(chain):
        if chunk not in held:
            return at
    return len(chain)


_SMALL_SHARE, _GHOST_SHARE, _HITS_MAX, _HITS_TO_STAY = 0.1, 0.9, 3, 2


def s3_fifo(trace: PrefixTrace, capacity: int) -> Saved:
    """Three queues: new chunks pass a small one, those hit there a large one, and the names of the rest are remembered.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """
    hits: dict[int, int] = {}  # Of every chunk held.
    small: OrderedDict[int, None] = OrderedDict()
    large: OrderedDict[int, None] = OrderedDict()
    ghosts: OrderedDict[int, None] = OrderedDict()
    tally = Tally(trace)

    def from_small(mine: set[int]) -> int | None:
        for _ in range(len(small)):
            chunk, _none = small.popitem(last=False)
            if hits[chunk] >= _HITS_TO_STAY:
                hits[chunk] = 0
                large[chunk] = None
            elif chunk in mine:
                small[chunk] = None
            else:
                ghosts[chunk] = None
                while len(ghosts) > _GHOST_SHARE * capacity:
                    ghosts.popitem(last=False)
                return chunk
        return None

    def from_large(mine: set[int]) -> int | None:
        for _ in range((_HITS_MAX + 1) * len(large)):
            chunk, _none = large.popitem(last=False)
            if chunk in mine or hits[chunk] > 0:
                hits[chunk] = max(0, hits[chunk] - (chunk not in mine))
                large[chunk] = None
            else:
                return chunk
        return None

    for chain in trace.requests:
        run = _leading(chain, hits)
        tally.hit(run)
        mine = set(chain)
        for at, chunk in enumerate(chain):
            if chunk in hits:
                hits[chunk] = min(_HITS_MAX, hits[chunk] + 1)
                continue
            if at < run:
                continue
            if len(hits) >= capacity:
                first, second = from_large, from_small
                if len(small) >= _SMALL_SHARE * capacity or not large:
                    first, second = from_small, from_large
                victim = first(mine)
                if victim is None:
                    victim = second(mine)
                if victim is None:
                    break
                del hits[victim]
            hits[chunk] = 0
            if ghosts.pop(chunk, _NEVER) is None:
                large[chunk] = None
            else:
                small[chunk] = None
    return tally.saved()


def optimum(trace: PrefixTrace, capacity: int) -> Saved:
    """Knows the future: after each request, those chunks stay whose next use is nearest.

    A parent is used again no later than what continues it, so what stays is always whole prefixes, and no other choice
    hits more tokens (Belady with bypass). Prefill is only counted: it is not what is maximised.
    """
    next_use: list[list[int]] = []
    latest: dict[int, int] = {}
    for number in range(len(trace.requests) - 1, -1, -1):
        chain = trace.requests[number]
        next_use.append([latest.get(chunk, _NEVER) for chunk in chain])
        latest.update(dict.fromkeys(chain, number))
    next_use.reverse()
    due: dict[int, int] = {}  # Of every chunk held: the request that uses it next.
    furthest: list[tuple[int, int, int]] = []  # (-next use, -depth, chunk); stale entries are skipped.
    tally = Tally(trace)
    for chain, uses in zip(trace.requests, next_use, strict=True):
        tally.hit(_leading(chain, due))
        for chunk, use in zip(chain, uses, strict=True):
            due[chunk] = use
            heapq.heappush(furthest, (-use, -trace.depth[chunk], chunk))
        while furthest and (len(due) > capacity or furthest[0][0] == -_NEVER):
            use, _depth, chunk = heapq.heappop(furthest)
            if due.get(chunk) == -use:
                del due[chunk]
    return tally.saved()


POLICIES: dict[str, Simulated] = {"LRU": lru, "S3-FIFO": s3_fifo, "optimum": optimum}
"""By the name that tables show."""
