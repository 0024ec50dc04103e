"""vLLM's own types read what we tell of a pool, and one reader reads vLLM's publisher and ours alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from vllm.distributed import kv_events as theirs

import maru
from maru.daemon import kv_events as ours
from maru.daemon.kv_publisher import END_NUMBER, EventPublisher, EventSettings
from maru.testing.content import key_of
from router_view import Router

ANY_PORT = "tcp://127.0.0.1:0"
FORMS = [ours.BlockStored, ours.BlockRemoved, ours.AllBlocksCleared]


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as one:
        yield one


@pytest.fixture
def publisher(pool: maru.Pool, context: zmq.Context[Any]) -> Iterator[EventPublisher]:
    settings = EventSettings(ANY_PORT, ANY_PORT, interval_s=0.01, heartbeat_s=0.05, chunk_tokens=256)
    with EventPublisher(pool, settings, context) as running:
        yield running


@pytest.fixture
def router(publisher: EventPublisher, context: zmq.Context[Any]) -> Iterator[Router]:
    """Decodes with vLLM's types."""
    one = Router(context, publisher.endpoint, publisher.replay_endpoint, theirs.KVEventBatch)
    yield one
    one.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_each_field_of_ours_is_one_of_theirs_and_none_that_they_need_is_missing(form: type[Any]) -> None:
    mine = {one.name: one for one in msgspec.structs.fields(form)}
    yours = {one.name: one for one in msgspec.structs.fields(getattr(theirs, form.__name__))}
    assert set(mine) <= set(yours)
    assert {name for name, one in yours.items() if one.required} <= set(mine)


def test_vllms_types_read_every_kind_of_event(pool: maru.Pool, router: Router) -> None:
    ns = pool.namespace(maru.Identity(model="m", kv_layout="l"))
    first, second, third = (key_of(number) for number in range(3))
    pool.put(first, b"x", namespace=ns)
    pool.put(second, b"x", namespace=ns, parent=first)
    router.wait_for({first, second})
    assert router.view.parents == {first: None, second: first}
    pool.remove(second)
    router.wait_for({first})
    pool.put(third, b"x", namespace=ns, parent=first)
    router.wait_for({first, third})
    events = [event for _, batch in router.ask(bytes(8)) for event in batch.events]
    assert {type(event) for event in events} <= {theirs.BlockStored, theirs.BlockRemoved, theirs.AllBlocksCleared}
    stored = [event for event in events if isinstance(event, theirs.BlockStored)]
    assert {(event.medium, event.block_size, event.ownership) for event in stored} == {
        (theirs.MEDIUM_CPU, 256, f"maru:{ns.digest.hex()}")
    }
    assert all(hash(event) is not None for event in stored)  # vLLM's aggregator counts them by hash.


def test_the_same_event_is_sent_as_vllm_sends_it() -> None:
    fields: dict[str, Any] = {
        "block_hashes": [b"k" * 16], "parent_block_hash": b"p" * 16, "token_ids": [], "block_size": 256,
        "lora_id": None, "medium": "CPU", "lora_name": None, "group_idx": 0, "locality": "LOCAL", "ownership": "maru",
    }  # fmt: skip
    gone = {name: fields[name] for name in ("block_hashes", "medium", "group_idx", "locality", "ownership")}
    mine = [ours.BlockStored(**fields), ours.BlockRemoved(**gone), ours.AllBlocksCleared()]
    yours = [theirs.BlockStored(**fields), theirs.BlockRemoved(**gone), theirs.AllBlocksCleared()]
    sent, expected = (
        msgspec.msgpack.decode(msgspec.msgpack.encode(batch))
        for batch in (ours.KVEventBatch(1.5, mine), theirs.KVEventBatch(1.5, yours))
    )
    assert sent == expected


def test_one_reader_reads_vllms_own_publisher_as_it_reads_ours(context: zmq.Context[Any], tmp_path: Any) -> None:
    """So that what our tests call a router is one of vLLM's."""
    live, replay = f"ipc://{tmp_path}/live", f"ipc://{tmp_path}/replay"
    publisher = theirs.ZmqEventPublisher(0, live, replay)
    router = Router(context, live, replay, theirs.KVEventBatch)
    try:
        stored = theirs.BlockStored([b"a" * 16, b"b" * 16], None, [], 256, None, "CPU", None)
        publisher.publish(theirs.KVEventBatch(1.5, [stored]))
        while not router.catch_up():
            pass
        assert router.view.parents == {b"a" * 16: None, b"b" * 16: b"a" * 16}
        assert theirs.ZmqEventPublisher.END_SEQ == END_NUMBER
    finally:
        router.close()
        publisher.shutdown()
