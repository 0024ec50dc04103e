"""Traces are read whole or refused, simulated rivals are what they say, and a real pool keeps what will be wanted."""

from __future__ import annotations

import itertools
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maru
from maru.bench.fragmentation import month
from maru.bench.hit_rates import TRACES, replay
from maru.bench.prefix_trace import BadTrace, PrefixTrace, read_trace
from maru.bench.simulated import POLICIES, lru, optimum, s3_fifo
from maru.testing.content import bytes_of, key_of

CHUNK = 16


def trace_file(folder: Path, parents: list[int], leaves: list[int], tokens: list[int], magic: bytes = b"PCT1") -> Path:
    steps = [node - 1 - parent for node, parent in enumerate(parents)]
    path = folder / "small.pct"
    path.write_bytes(
        struct.pack("<4sII", magic, len(parents), len(leaves))
        + struct.pack(f"<{len(steps)}i", *steps)
        + struct.pack(f"<{len(leaves)}i", *leaves)
        + struct.pack(f"<{len(tokens)}i", *tokens)
        + bytes(len(leaves))
    )
    return path


def chains(*requests: tuple[int, ...]) -> PrefixTrace:
    """Requests written as chains of chunk numbers; a chunk stands at the same depth wherever it is asked for."""
    depth: dict[int, int] = {}
    for chain in requests:
        for at, chunk in enumerate(chain):
            assert depth.setdefault(chunk, at) == at
    tokens = tuple(CHUNK * len(chain) + 1 for chain in requests)
    count = max(depth, default=-1) + 1
    return PrefixTrace("hand", CHUNK, count, tuple(depth[n] for n in range(count)), requests, tokens)


def hit_chunks(share: float, trace: PrefixTrace) -> int:
    return round(share * sum(trace.prompt_tokens) / CHUNK)


def test_a_trace_gives_the_chunks_that_requests_share(tmp_path: Path) -> None:
    # Two prompts of 3 and 2 nodes that share the first; the last token of a prompt belongs to no chunk.
    path = trace_file(tmp_path, [-1, 0, 1, 0], [2, 3], [49, 33])
    trace = read_trace(path, 16)
    assert trace.requests == ((0, 1, 2), (0, 3))
    assert trace.depth == (0, 1, 2, 1)
    assert read_trace(path, 32).requests == ((0,), (1,))


def test_a_compressed_trace_is_read_too(tmp_path: Path) -> None:
    plain = trace_file(tmp_path, [-1], [0], [17])
    packed = tmp_path / "small.pct.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert read_trace(packed, 16) == read_trace(plain, 16)


@pytest.mark.parametrize(("parents", "leaves", "tokens"), [([0], [0], [17]), ([-1], [1], [17]), ([-1], [0], [40])])
def test_a_trace_that_contradicts_itself_is_refused(
    tmp_path: Path, parents: list[int], leaves: list[int], tokens: list[int]
) -> None:
    with pytest.raises(BadTrace):
        read_trace(trace_file(tmp_path, parents, leaves, tokens), 16)


def test_what_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    path = trace_file(tmp_path, [-1], [0], [17], magic=b"ELF?")
    with pytest.raises(BadTrace, match=str(path)):
        read_trace(path, 16)
    path.write_bytes(b"PCT1\x05\x00\x00\x00")
    with pytest.raises(BadTrace, match="cut short"):
        read_trace(path, 16)
    path = path.with_suffix(".pct.xz")
    path.write_bytes(b"not compressed")
    with pytest.raises(BadTrace):
        read_trace(path, 16)
    with pytest.raises(BadTrace, match="multiples of 16"):
        read_trace(path, 100)


def test_lru_forgets_what_was_used_longest_ago() -> None:
    trace = chains((0,), (1,), (0,), (2,), (0,), (1,))
    # With room for two: 0 hits twice, and 2 pushed 1 out.
    assert hit_chunks(lru(trace, 2).tokens, trace) == 2


def test_s3_fifo_keeps_what_was_hit_while_new_chunks_pass() -> None:
    hot = [(0,), (0,), (0,)]
    scan = [(n,) for n in range(1, 40)]
    trace = chains(*hot, *scan, (0,))
    assert hit_chunks(s3_fifo(trace, 10).tokens, trace) == 3
    assert hit_chunks(lru(trace, 10).tokens, trace) == 2


@st.composite
def forests(draw: st.DrawFn) -> PrefixTrace:
    paths = [(0,), (0, 1), (0, 1, 2), (0, 3), (4,), (4, 5), (6,)]
    requests = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=7))
    numbers = {chunk: n for n, chunk in enumerate(sorted({chunk for chain in requests for chunk in chain}))}
    return chains(*(tuple(numbers[chunk] for chunk in chain) for chain in requests))


def best_by_trying_everything(trace: PrefixTrace, capacity: int) -> int:
    """Hits of the best choice of what to keep after each request, over all choices."""
    reached = {frozenset[int](): 0}
    for chain in trace.requests:
        after: dict[frozenset[int], int] = {}
        for held, hits in reached.items():
            run = sum(1 for _ in itertools.takewhile(lambda chunk, held=held: chunk in held, chain))  # type: ignore[misc]
            could_keep = sorted(held | set(chain))
            for count in range(min(capacity, len(could_keep)) + 1):
                for kept in map(frozenset, itertools.combinations(could_keep, count)):
                    after[kept] = max(after.get(kept, 0), hits + run)
        reached = after
    return max(reached.values())


@given(forests(), st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_the_optimum_is_what_trying_everything_finds(trace: PrefixTrace, capacity: int) -> None:
    assert hit_chunks(optimum(trace, capacity).tokens, trace) == best_by_trying_everything(trace, capacity)


@pytest.mark.parametrize("name", ["bfcl8", "ctx_rr", "phases"])
def test_no_policy_hits_more_than_the_optimum(name: str) -> None:
    trace = read_trace(TRACES / f"{name}.pct.xz")
    capacity = trace.chunk_count // 5
    best = POLICIES["optimum"](trace, capacity).tokens
    assert all(policy(trace, capacity).tokens <= best for policy in POLICIES.values())
    assert replay(trace, capacity).saved.tokens <= best


def test_sessions_hit_nearly_what_the_optimum_does_and_more_than_lru() -> None:
    trace = read_trace(TRACES / "bfcl32.pct.xz")
    capacity = trace.chunk_count // 5
    ours = replay(trace, capacity)
    assert ours.saved.tokens > 0.82 * optimum(trace, capacity).tokens
    assert ours.saved.tokens > 1.03 * lru(trace, capacity).tokens
    assert ours.looks_per_eviction < 16
    assert ours.orphaning == 0


def test_a_loop_larger_than_the_pool_keeps_hitting_a_part_of_it() -> None:
    trace = read_trace(TRACES / "ctx_rr.pct.xz")
    capacity = int(0.4 * trace.chunk_count)
    gated, plain = replay(trace, capacity), replay(trace, capacity, gate=False)
    assert plain.saved.tokens < 0.1 * optimum(trace, capacity).tokens
    assert gated.saved.tokens > 0.9 * optimum(trace, capacity).tokens
    assert gated.stored < plain.stored / 4
    assert gated.refused > 0


def test_what_the_gate_refuses_is_counted_and_answered_as_full(pool: maru.Pool) -> None:
    size, room, loop = 400_000, 16, 40
    for turn in range(6):
        for n in range(loop):
            with pool.pin(key_of(n)) as found:
                missing = len(found) == 0
            if missing:
                answer = pool.put(key_of(n), bytes_of(key_of(n), size))
                assert turn > 0 or answer == maru.Outcome.STORED
    assert len([n for n in range(loop) if pool.exists(key_of(n))]) == room
    counters = pool.stats()["counters"]
    assert counters["full"] == counters["gate_refused"] > 0
    # The loop is over: what comes new, and once, is stored again before long.
    answers = [pool.put(key_of(1000 + n), bytes(size)) for n in range(200)]
    assert answers[-1] == maru.Outcome.STORED


def test_where_chunk_sizes_are_mixed_the_gate_stays_open(pool: maru.Pool) -> None:
    for _ in range(6):
        for n in range(40):
            with pool.pin(key_of(n)) as found:
                missing = len(found) == 0
            if missing:
                assert pool.put(key_of(n), bytes_of(key_of(n), 400_000 if n % 2 else 200_000)) == maru.Outcome.STORED
    assert pool.stats()["counters"]["gate_refused"] == 0


def test_after_a_chunk_without_room_the_rest_of_a_prefix_is_not_stored(pool: maru.Pool) -> None:
    keys = [key_of(n) for n in range(40)]
    answers = pool.put_many(b"".join(keys), [bytes(400_000)] * 40)
    assert answers == [maru.Outcome.STORED] * 16 + [maru.Outcome.FULL] * 24
    assert pool.lookup(b"".join(keys)) == 16


def test_chunk_sizes_that_come_and_go_do_not_take_slabs_from_each_other_in_turn() -> None:
    days = month(64 << 20, 3.0, days=4, seed=3)
    stored_a_day = 3.0 * (64 << 20) / 500_000
    assert sum(day.slabs_cut_anew for day in days) < stored_a_day / 2
    assert all(day.occupied > 0.5 for day in days)
