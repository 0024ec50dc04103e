"""Promises of the worker's side: blocks get the whole of what their key says or are reported; chunks come whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

import maru
from maru.engine.vllm.blocks import Blocks
from maru.engine.vllm.connector import copies_for
from maru.engine.vllm.fit import ModelRefused, Shape
from maru.engine.vllm.host_copies import HostCopies
from maru.engine.vllm.plan import Done, Load, Save
from maru.engine.vllm.worker import WorkerSide

SHAPE = Shape(block_tokens=4, blocks_per_chunk=2, layer_names=("a", "b", "c"))
BLOCKS = 12


def keys(count: int, first: int = 1) -> bytes:
    return b"".join(number.to_bytes(16, "big") for number in range(first, first + count))


class Engine:
    """A worker's side over layers of blocks [block, heads, tokens, 2 x head size] filled at random."""

    made: ClassVar[list[Engine]] = []

    def __init__(
        self, pool: maru.Pool, seed: int, rank: int = 0, ranks: int = 1, heads: int = 2, in_background: bool = True
    ) -> None:
        namespace = pool.namespace(maru.Identity(model="m", kv_layout="test"))
        self.failures: list[str] = []
        self.side = WorkerSide(pool, namespace, SHAPE, rank, ranks, lambda what, _: self.failures.append(what))
        generator = torch.Generator().manual_seed(seed)
        self.layers = {
            name: torch.randn(BLOCKS, heads, SHAPE.block_tokens, 16, generator=generator) for name in SHAPE.layer_names
        }
        self.made.append(self)
        self.side.register(HostCopies(pool, Blocks(SHAPE, self.layers, BLOCKS), in_background))

    def load(self, loads: list[Load]) -> None:
        """A step that only loads, and comes to no layer."""
        self.side.begin(loads)
        self.side.end([])

    def save(self, saves: list[Save]) -> None:
        self.side.end(saves)

    def compute(self, loads: list[Load], saves: list[Save]) -> None:
        """A step in which vLLM comes to all layers."""
        self.side.begin(loads)
        for name in SHAPE.layer_names:
            self.side.before_layer(name, saves)
            self.side.after_layer(name, saves)
        self.side.end(saves)

    def has(self, mine: int, other: Engine, theirs: int) -> bool:
        """Is my block the other's, in every layer?"""
        return all(torch.equal(self.layers[name][mine], other.layers[name][theirs]) for name in SHAPE.layer_names)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    while Engine.made:
        Engine.made.pop().side.close()


def test_what_one_stored_another_loads_bit_by_bit(pool: maru.Pool) -> None:
    a, b = Engine(pool, 1), Engine(pool, 2)
    untouched = b.layers["a"][0].clone()
    a.save([Save("r", keys(3), None, (3, 1, 4, 7, 5, 9))])
    b.load([Load("s", keys(3), (2, 6, 5, 3, 8, 11))])
    assert all(b.has(mine, a, theirs) for mine, theirs in zip((2, 6, 5, 3, 8, 11), (3, 1, 4, 7, 5, 9), strict=True))
    assert torch.equal(b.layers["a"][0], untouched)
    assert b.side.take_invalid() == set()
    assert b.side.take_done() == Done({"s": 1})
    assert b.side.take_done() is None
    assert (a.side.counters.tokens_stored, b.side.counters.tokens_loaded) == (24, 24)


def test_the_first_chunk_may_be_wanted_from_its_middle(pool: maru.Pool) -> None:
    a, b = Engine(pool, 1), Engine(pool, 2)
    a.save([Save("r", keys(2), None, (0, 1, 2, 3))])
    kept = b.layers["b"][5].clone()
    b.load([Load("s", keys(2), (7, 8, 9), skip_blocks=1)])
    assert [b.has(7, a, 1), b.has(8, a, 2), b.has(9, a, 3)] == [True] * 3
    assert torch.equal(b.layers["b"][5], kept)


def test_a_chunk_that_is_gone_is_reported_with_all_after_it(pool: maru.Pool) -> None:
    a, b = Engine(pool, 1), Engine(pool, 2)
    a.save([Save("r", keys(3), None, (0, 1, 2, 3, 4, 5))])
    assert pool.remove(keys(1, first=2))
    b.load([Load("s", keys(3), (6, 7, 8, 9, 10, 11))])
    assert [b.has(6, a, 0), b.has(7, a, 1)] == [True, True]
    assert b.side.take_invalid() == {8, 9, 10, 11}
    assert b.side.take_invalid() == set()
    assert b.side.counters.blocks_failed == 4


def test_a_chunk_of_another_size_is_reported_and_never_taken(pool: maru.Pool) -> None:
    a, b = Engine(pool, 1, heads=4), Engine(pool, 2)
    a.save([Save("r", keys(1), None, (0, 1))])
    before = b.layers["c"][6].clone()
    b.load([Load("s", keys(1), (6, 7))])
    assert b.side.take_invalid() == {6, 7}
    assert torch.equal(b.layers["c"][6], before)


def test_what_was_computed_upon_blocks_that_failed_is_not_stored(pool: maru.Pool) -> None:
    a = Engine(pool, 1)
    saves = [Save("r", keys(1, first=2), keys(1), (2, 3)), Save("s", keys(1, first=9), None, (4, 5))]
    a.compute([Load("r", keys(1), (0, 1))], saves)
    assert not pool.exists(keys(1, first=2))
    assert pool.exists(keys(1, first=9))
    a.save([Save("r", keys(1, first=2), keys(1), (2, 3))])
    assert pool.exists(keys(1, first=2))


def test_a_pool_that_failed_is_reported_and_told_once_a_step(pool: maru.Pool) -> None:
    a = Engine(pool, 1)
    pool.close()
    a.load([Load("r", keys(2), (0, 1, 2, 3))])
    a.save([Save("s", keys(1), None, (4, 5))])
    assert a.side.take_invalid() == {0, 1, 2, 3}
    assert a.failures == ["load a prefix", "store a prompt"]


def test_a_full_pool_ends_a_chain_and_no_reservation_stays(pool: maru.Pool) -> None:
    drafts = []
    while (draft := pool.allocate(512 << 10)) is not None:
        drafts.append(draft)
    a = Engine(pool, 1)
    a.save([Save("r", keys(3), None, (0, 1, 2, 3, 4, 5))])
    assert a.side.counters.tokens_stored == 0
    drafts.clear()
    assert pool.stats()["reservations"] == []
    assert pool.check() == []


def test_storing_a_second_time_goes_on_with_what_is_missing(pool: maru.Pool) -> None:
    a = Engine(pool, 1)
    a.save([Save("r", keys(1), None, (0, 1))])
    a.save([Save("s", keys(2), None, (0, 1, 2, 3))])
    assert pool.lookup(keys(2)) == 2
    assert a.side.counters.tokens_stored == 16


def test_ranks_write_parts_of_one_chunk_and_each_reads_its_own(pool: maru.Pool) -> None:
    ranks = [Engine(pool, rank + 1, rank, 2) for rank in (0, 1)]
    readers = [Engine(pool, rank + 10, rank, 2) for rank in (0, 1)]
    ranks[0].save([Save("r", keys(1), None, (0, 1))])
    assert not pool.exists(keys(1))
    ranks[1].save([Save("r", keys(1), None, (0, 1))])
    assert pool.exists(keys(1))
    for rank, reader in zip(ranks, readers, strict=True):
        reader.load([Load("s", keys(1), (4, 5))])
        assert reader.has(4, rank, 0)
        assert reader.has(5, rank, 1)


@pytest.mark.parametrize("what", ["a layer is missing", "not contiguous", "layers of different sizes"])
def test_layers_that_do_not_fit_are_refused_at_start(pool: maru.Pool, what: str) -> None:
    a = Engine(pool, 1)
    layers = dict(a.layers)
    if what == "a layer is missing":
        del layers["b"]
    elif what == "not contiguous":
        layers["b"] = layers["b"].repeat_interleave(2, dim=2)[:, :, ::2]
    else:
        layers["b"] = torch.zeros(BLOCKS, 3, SHAPE.block_tokens, 16)
    with pytest.raises(ModelRefused):
        Blocks(SHAPE, layers, BLOCKS)


@pytest.mark.parametrize(
    ("kinds", "allow_gpu", "told"),
    [({"cuda"}, False, "allow_gpu"), ({"xpu"}, True, "KV caches on xpu"), ({"cpu", "cuda"}, True, "cpu, cuda")],
)
def test_caches_that_nobody_ran_this_on_are_refused_at_start(
    pool: maru.Pool, kinds: set[str], allow_gpu: bool, told: str
) -> None:
    blocks = Blocks(SHAPE, Engine(pool, 1).layers, BLOCKS)
    with pytest.raises(ModelRefused, match=told):
        copies_for(kinds, pool, blocks, True, allow_gpu)
    assert isinstance(copies_for({"cpu"}, pool, blocks, True, False), HostCopies)
