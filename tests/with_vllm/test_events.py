"""Promises of KV events: announced is what was seen in the pool, once; what left, or is not watched, is taken back."""

from __future__ import annotations

from typing import Any

import pytest
from requests_of_vllm import Request

from maru.engine.vllm import events
from maru.engine.vllm.events import Announcer
from maru.engine.vllm.fit import Shape

SHAPE = Shape(block_tokens=4, blocks_per_chunk=2, layer_names=("a",))
CHUNK = SHAPE.chunk_tokens
TOKENS = list(range(100, 100 + 5 * CHUNK + 3))


@pytest.fixture(autouse=True)
def hashes_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM publishes its hashes as they are, or as numbers; here they are to be read."""
    monkeypatch.setenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")


def keys(count: int, first: int = 1) -> bytes:
    return b"".join(number.to_bytes(16, "big") for number in range(first, first + count))


def request(tokens: list[int] = TOKENS, **more: Any) -> Request:
    hashes = [f"block {number}".encode() for number in range(len(tokens) // SHAPE.block_tokens)]
    return Request("r", tokens, block_hashes=hashes, **more)


class Stored:
    """What is in the pool, and how often it was asked."""

    def __init__(self, *present: bytes) -> None:
        self.present = set(present)
        self.questions = 0

    def exists(self, key: bytes) -> bool:
        self.questions += 1
        return key in self.present


def test_what_is_expected_is_announced_when_it_is_there_and_once() -> None:
    stored = Stored()
    announcer = Announcer(stored.exists, SHAPE)
    announcer.expect(request(), keys(5), 0, 2)
    assert announcer.take() == []
    stored.present.add(keys(1))
    (first,) = announcer.take()
    stored.present.add(keys(1, first=2))
    (second,) = announcer.take()
    announcer.expect(request(), keys(5), 0, 2)
    assert announcer.take() == []
    assert (first.token_ids, second.token_ids) == (TOKENS[:CHUNK], TOKENS[CHUNK : 2 * CHUNK])
    assert (first.block_hashes, first.parent_block_hash) == ([b"block 0", b"block 1"], None)
    assert (second.block_hashes, second.parent_block_hash) == ([b"block 2", b"block 3"], b"block 1")
    assert (first.block_size, first.medium, first.ownership) == (4, "CPU", "maru")


def test_what_left_the_pool_is_taken_back_and_may_come_again() -> None:
    stored = Stored(keys(1), keys(1, first=2))
    announcer = Announcer(stored.exists, SHAPE)
    announcer.expect(request(), keys(5), 0, 2)
    assert len(announcer.take()) == 2
    stored.present.clear()
    gone = announcer.take()
    assert [type(one).__name__ for one in gone] == ["BlockRemoved"] * 2
    assert [one.block_hashes for one in gone] == [[b"block 0", b"block 1"], [b"block 2", b"block 3"]]
    stored.present.add(keys(1))
    announcer.expect(request(), keys(5), 0, 1)
    assert [type(one).__name__ for one in announcer.take()] == ["BlockStored"]


def test_what_never_comes_is_forgotten() -> None:
    stored = Stored()
    announcer = Announcer(stored.exists, SHAPE)
    announcer.expect(request(), keys(5), 0, 1)
    for _ in range(events.TRIES + 1):
        announcer.take()
    asked = stored.questions
    announcer.take()
    assert stored.questions == asked


def test_a_step_asks_no_more_than_it_may() -> None:
    count = 3 * events.LOOKS_A_STEP
    tokens = list(range(count * CHUNK))
    stored = Stored(*(keys(1, first=number) for number in range(1, count + 1)))
    announcer = Announcer(stored.exists, SHAPE)
    announcer.expect(request(tokens), keys(count), 0, count)
    for _ in range(8):
        before = stored.questions
        announcer.take()
        assert stored.questions - before <= events.LOOKS_A_STEP
    stored.present.clear()
    taken_back = sum(len(announcer.take()) for _ in range(4))
    assert taken_back == count


def test_who_is_not_watched_any_more_is_taken_back() -> None:
    stored = Stored(*(keys(1, first=number) for number in range(1, 6)))
    announcer = Announcer(stored.exists, SHAPE, watched=3)
    announcer.expect(request(), keys(5), 0, 5)
    told = announcer.take()
    assert [type(one).__name__ for one in told] == ["BlockStored"] * 5 + ["BlockRemoved"] * 2


def test_requests_whose_hashes_hang_on_more_than_tokens_are_not_announced() -> None:
    stored = Stored(keys(1))
    announcer = Announcer(stored.exists, SHAPE)
    for one in (request(cache_salt="s"), request(lora_request=object()), request(mm_features=[object()])):
        announcer.expect(one, keys(5), 0, 1)
    bare = request()
    bare.block_hashes = []
    announcer.expect(bare, keys(5), 0, 1)
    assert announcer.take() == []
