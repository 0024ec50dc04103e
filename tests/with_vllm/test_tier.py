"""Promises of `MaruTier`, called as vLLM's tiering manager calls it; whole engines are in test_tier_engine.py."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tier_instance import CONFIG, ROW_BYTES, ROWS, Instance, key_of, keys_of, request_of, spec_of
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import LookupResult

import maru
from maru.engine.vllm.row_identity import WeightsUnknown
from maru.errors import BadUrl, MaruError
from maru.testing.crash import spawn

PROMPT = range(8)


@pytest.fixture(autouse=True)
def a_hash_that_nobody_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes that tests start: LMCache, imported by other tests, has put a number there."""
    monkeypatch.delattr(kv_cache_utils, "NONE_HASH", raising=False)


@pytest.fixture
def url(pool_name: str) -> str:
    return f"maru:///{pool_name}?size=8MiB&slots=1024&gate=off"


@pytest.fixture
def instances(url: str) -> Iterator[Callable[..., Instance]]:
    made: list[Instance] = []

    def make(at: str = url, **params: Any) -> Instance:
        made.append(Instance(at, **params))
        return made[-1]

    yield make
    for instance in made:
        instance.tier.shutdown()


@pytest.fixture
def one(instances: Callable[..., Instance]) -> Instance:
    return instances()


def pins(url: str) -> int:
    with maru.Pool.attach(url) as pool:
        return sum(row["pins"] for row in pool.stats()["processes"])


def fill_up(instance: Instance, prompt: str) -> None:
    """Store three times what the pool holds."""
    for first in range(0, 400, ROWS):
        instance.store(range(first, min(first + ROWS, 400)), f"{prompt}{first}")


# Storing and finding


def test_what_one_instance_stored_another_finds_and_loads_bit_by_bit(instances: Callable[..., Instance]) -> None:
    a, b = instances(), instances()
    assert a.store(PROMPT).success
    request = request_of()
    assert b.lookup(range(12), request=request) == list(PROMPT)
    assert b.load(PROMPT, request=request) == list(PROMPT)
    assert (a.tier.counters.chunks_stored, b.tier.counters.chunks_loaded) == (8, 8)


def test_storing_what_is_there_already_succeeds_and_moves_nothing(instances: Callable[..., Instance]) -> None:
    a, b = instances(), instances()
    a.store(range(4))
    result = b.store(range(6))
    assert (result.success, result.transfer_bytes) == (True, 2 * ROW_BYTES)
    assert (b.tier.counters.chunks_present, b.tier.counters.chunks_stored) == (4, 2)


def test_a_chunk_that_is_being_written_is_a_miss(one: Instance, url: str) -> None:
    with maru.Pool.attach(url) as pool, pool.reserve(one.tier._rows._key(key_of(0)), ROW_BYTES) as reservation:
        assert one.lookup([0]) == []
        reservation.buffer[:] = bytes(ROW_BYTES)
        reservation.seal()
        assert one.lookup([0]) == [0]


def test_every_job_has_one_result_however_many_there_are(one: Instance) -> None:
    jobs = {one.submit_store([number], f"r{number}") for number in range(60)}
    assert one.tier.has_pending_work()
    one.tier.drain_jobs()
    assert {result.job_id for result in one.tier.get_finished_jobs()} == jobs
    assert list(one.tier.get_finished_jobs()) == []
    assert not one.tier.has_pending_work()


def test_what_is_left_of_a_prompt_is_its_beginning_though_keys_come_as_a_set(one: Instance, url: str) -> None:
    """Evicted one after the other, it is never a beginning that is missing; and the second job continues the first."""
    request = request_of()
    for part in (range(30), range(30, 60)):
        one.result_of(one.submit_store(part, request=request))
    packed = [one.tier._rows._key(key_of(number)) for number in range(60)]
    lengths = set()
    with maru.Pool.attach(url) as pool:
        for number in range(120):
            one.store([0], f"other {number}")
            is_there = [pool.exists(key) for key in packed]
            assert sorted(is_there, reverse=True) == is_there
            lengths.add(sum(is_there))
    assert len(lengths & set(range(1, 60))) > 20


def test_kv_groups_are_told_apart(one: Instance) -> None:
    one.store([0])
    assert one.tier.lookup(key_of(0, group=1), request_of()) is LookupResult.MISS


# Pins


def test_what_a_lookup_found_stays_until_it_is_loaded(instances: Callable[..., Instance], url: str) -> None:
    a, b = instances(), instances()
    a.store(PROMPT)
    request = request_of()
    for _ in range(3):
        assert b.lookup(PROMPT, request=request) == list(PROMPT)
    assert pins(url) == 8, "one for each, however often it was asked"
    fill_up(a, "x")
    assert b.load(PROMPT, request=request) == list(PROMPT)
    assert pins(url) == 0


def test_what_two_requests_found_is_pinned_for_each(instances: Callable[..., Instance], url: str) -> None:
    a, b = instances(), instances()
    a.store(PROMPT)
    first, second = request_of(name="first"), request_of(name="second")
    for request in (first, second):
        assert b.lookup(PROMPT, request=request) == list(PROMPT)
    assert b.load(PROMPT, request=first) == list(PROMPT)
    assert pins(url) == 8
    fill_up(a, "x")
    assert b.load(PROMPT, request=second) == list(PROMPT)
    assert pins(url) == 0


def test_what_a_step_found_and_did_not_load_is_let_go_at_its_end(one: Instance, url: str) -> None:
    one.store(PROMPT)
    request = request_of()
    one.lookup(PROMPT, request=request)
    assert pins(url) == 8
    one.tier.on_schedule_end(None)
    assert pins(url) == 0
    assert one.lookup(PROMPT, request=request) == list(PROMPT)
    one.tier.on_schedule_end(None)
    fill_up(one, "x")
    assert one.lookup(PROMPT, request=request) == []


def test_a_load_that_runs_keeps_its_chunks_when_the_step_and_the_request_end(
    instances: Callable[..., Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = instances(), instances()
    a.store(PROMPT)
    request = request_of()
    b.lookup(PROMPT, request=request)
    may_copy, load_row = threading.Event(), b.tier._rows.load
    monkeypatch.setattr(b.tier._rows, "load", lambda *job: may_copy.wait(60) and load_row(*job))
    job = b.job(keys_of(PROMPT), range(8), request, True)
    b.tier.submit_load(job)
    b.tier.on_schedule_end(None)
    b.tier.on_request_finished(request)
    fill_up(a, "x")
    may_copy.set()
    assert b.result_of(job.job_id).success


def test_a_touch_pins_nothing(one: Instance, url: str) -> None:
    one.store(PROMPT)
    one.tier.touch(keys_of(range(12)), request_of())
    assert pins(url) == 0


# What fails


def test_a_chunk_that_went_is_a_failed_key_and_the_others_are_loaded(one: Instance, url: str) -> None:
    one.store(PROMPT)
    request = request_of()
    one.lookup(PROMPT, request=request)
    one.tier.on_schedule_end(None)  # They are not pinned any more.
    with maru.Pool.attach(url) as pool:
        assert pool.remove(one.tier._rows._key(key_of(3)))
        assert pool.remove(one.tier._rows._key(key_of(6)))
    assert one.load(PROMPT, request=request) == [0, 1, 2, 4, 5, 7]
    assert one.tier.counters.chunks_not_loaded == 2


def test_what_failed_once_is_a_miss_for_that_request_and_for_no_other(one: Instance) -> None:
    request = request_of(name="unlucky")
    assert one.load([0], request=request) == []
    one.store([0])
    assert one.lookup([0], request=request) == []
    assert one.lookup([0]) == [0]


def test_eviction_while_others_load_costs_misses_and_never_a_wrong_byte(instances: Callable[..., Instance]) -> None:
    a, b = instances(), instances()
    numbers = random.Random(5)
    for turn in range(40):
        a.submit_store(range(ROWS), f"prompt {turn}")
        prompt = f"prompt {numbers.randrange(turn + 1)}"
        request = request_of(prompt)
        found = b.lookup(range(ROWS), prompt, request)
        assert b.load(found, prompt, request) == found, "what was found is pinned"
        b.load(range(ROWS), prompt)  # Nobody asked before: these may go at any time. Instance.load looks at each bit.
        b.tier.on_request_finished(request)
        a.tier.drain_jobs()
    assert b.tier.counters.chunks_not_loaded > 0
    assert b.tier.counters.chunks_loaded > 0


def test_a_chunk_of_another_size_is_a_miss(one: Instance, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.put(one.tier._rows._key(key_of(0)), bytes(ROW_BYTES // 2))
        pool.put(one.tier._rows._key(key_of(1)), bytes(ROW_BYTES * 2))
    assert one.lookup([0, 1]) == []
    assert one.load([0, 1]) == []
    assert one.tier.counters.wrong_sizes == 4


def test_a_full_pool_fails_the_store_and_nothing_else(one: Instance, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        drafts = []
        while (draft := pool.allocate(ROW_BYTES)) is not None:
            drafts.append(draft)
        assert not one.store(range(3)).success
        assert one.tier.counters.chunks_refused == 3
        assert one.lookup(range(3)) == []
        drafts.clear()
        del draft
        assert one.store(range(3)).success


def test_a_job_that_makes_no_sense_is_answered_too(one: Instance) -> None:
    one.store([0, 1])
    job = one.job(keys_of([0, 1]), [0, ROWS + 5], request_of(), True)
    one.tier.submit_load(job)
    assert not one.result_of(job.job_id).success
    job = one.job(keys_of([2]), [ROWS + 5], request_of(), False)
    one.tier.submit_store(job)
    assert not one.result_of(job.job_id).success
    assert one.lookup([2]) == []


def store_eight(url: str) -> None:
    instance = Instance(url)
    instance.store(PROMPT)
    os._exit(0)


@pytest.mark.crash
@pytest.mark.parametrize("point", ["put.before_copy", "put.after_copy", "seal.after_word"])
def test_killed_in_a_store_it_leaves_whole_chunks_and_nothing_else(one: Instance, url: str, point: str) -> None:
    with spawn(store_eight, url, die_at=point, after=4) as victim:
        assert victim.wait(120) == -signal.SIGKILL
    found = one.lookup(PROMPT)
    assert found == list(range(4 if point == "seal.after_word" else 3))
    assert one.load(found) == found
    with maru.Pool.attach(url) as pool:
        pool.reap()
        assert pool.check() == []
        assert pool.stats()["reservations"] == []
    assert one.store(PROMPT).success
    assert one.load(PROMPT) == list(PROMPT)


def test_a_pool_that_cannot_be_opened_is_one_line_and_misses(
    instances: Callable[..., Instance], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with maru.Pool.create(url.partition("?")[0] + "?size=8MiB&slab_bytes=32KiB"), caplog.at_level(logging.INFO):
        instance = instances()
        assert not instance.store(PROMPT).success
        assert instance.lookup(PROMPT) == []
        assert instance.load(PROMPT) == []
        instance.tier.touch(keys_of(PROMPT), request_of())
    lines = [record.getMessage() for record in caplog.records if record.name == "maru.vllm"]
    assert len(lines) == 1
    assert "does not fit the slabs" in lines[0]


def test_a_pool_destroyed_under_it_is_one_line_and_misses(
    one: Instance, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    one.store(PROMPT)
    request = request_of(name="finds them before")
    assert one.lookup(range(4), request=request) == [0, 1, 2, 3]
    maru.Pool.destroy(url, force=True)
    assert one.lookup(range(4, 8), request=request_of(name="asks too late")) == []
    assert not one.store(range(20, 24)).success
    assert one.load(range(8), request=request) == [0, 1, 2, 3], "what it holds is still what it was"
    assert [record.getMessage() for record in caplog.records if "destroyed" in record.getMessage()] == [
        "the offloading tier is off: its pool was destroyed; vLLM goes on without it"
    ]


# The end


def test_a_shutdown_leaves_no_thread_and_no_pin_and_lets_vllm_unmap_its_rows(url: str) -> None:
    with maru.Pool.open(url):
        instance = Instance(url)
        instance.store(PROMPT)
        instance.lookup(PROMPT, request=request_of())
        for number in range(20):
            instance.submit_store(PROMPT, f"late {number}")
        instance.tier.shutdown()
        instance.tier.shutdown()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("maru-tier")] == []
        assert pins(url) == 0
        memory = weakref.ref(instance.memory)
        del instance.memory
        instance.view.release()
        assert memory() is None, "vLLM closes its mapping now, which it cannot while anybody has a view of it"
        with maru.Pool.attach(url) as pool:
            assert pool.stats()["reservations"] == []
            assert pool.check() == []


def test_a_shutdown_ends_no_copy_in_its_middle(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(url)
    begun, never, ended = threading.Event(), threading.Event(), []

    def slowly(*job: object) -> tuple[int, int]:
        begun.set()
        never.wait(0.3)
        ended.append(job)
        return 0, 0

    monkeypatch.setattr(instance.tier._rows, "store", slowly)
    instance.submit_store(PROMPT)
    assert begun.wait(60)
    instance.tier.shutdown()
    assert len(ended) == 1


# Who shares with whom

PARALLEL, MODEL, CACHE = CONFIG.parallel, CONFIG.model, CONFIG.cache


@pytest.mark.parametrize(
    "change",
    [
        {"engine_id": "two"},
        {"extra_config": {"cpu_bytes_to_use": 5}},
        {"enable_kv_cache_events": True},
        {"parallel": replace(PARALLEL, data_parallel_index=1, data_parallel_size=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_only_names_an_instance_parts_nobody(instances: Callable[..., Instance], change: dict[str, Any]) -> None:
    a, b = instances(), instances(spec=spec_of(**change))
    a.store(PROMPT)
    assert b.lookup(PROMPT) == list(PROMPT)


@pytest.mark.parametrize(
    "change",
    [
        {"model": replace(MODEL, name="owner/another")},
        {"model": replace(MODEL, dtype="fp8")},
        {"parallel": replace(PARALLEL, tp_size=2, world_size=2)},
        {"cache": replace(CACHE, tokens_per_hash=32)},
        {"groups": (replace(CONFIG.groups[0], layer_names=("model.0",)),)},
        {"kv_cache_layout": "LBHNC"},
        {"canonical_layout": True},
        {"worker_kv_bytes_per_block": 12},
    ],
    ids=lambda change: " ".join(change),
)
def test_what_decides_a_rows_bytes_parts_instances(instances: Callable[..., Instance], change: dict[str, Any]) -> None:
    a, b = instances(), instances(spec=spec_of(**change))
    a.store(PROMPT)
    assert b.lookup(PROMPT) == []


def test_tenants_revisions_and_row_sizes_part_instances(instances: Callable[..., Instance], url: str) -> None:
    instances().store(PROMPT)
    assert instances(tenant="b").lookup(PROMPT) == []
    assert instances(url + "&tenant=b").lookup(PROMPT) == []
    assert instances(revision="s").lookup(PROMPT) == []
    assert instances(row_bytes=ROW_BYTES // 2).lookup(PROMPT) == []
    assert instances(tenant="default").lookup(PROMPT) == list(PROMPT)


def test_another_hash_algorithm_or_seed_is_a_miss(one: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache_utils, "NONE_HASH", b"a" * 32, raising=False)
    one.store(PROMPT)
    assert one.lookup(PROMPT) == list(PROMPT)
    for other in (b"b" * 32, 0):  # LMCache in the same process puts a number there.
        monkeypatch.setattr(kv_cache_utils, "NONE_HASH", other)
        assert one.lookup(PROMPT) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_vllms_hashes_begin_alike_in_every_process(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, instances share nothing unless PYTHONHASHSEED is set: docs/vllm.md says otherwise."""
    from vllm.utils.hashing import get_hash_fn_by_name

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    for name in ("NONE_HASH", "_NONE_HASH_SEED"):
        monkeypatch.setattr(kv_cache_utils, name, None, raising=False)
    hash_function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(hash_function)
    assert hash_function("vllm-none-hash") == kv_cache_utils.NONE_HASH


def test_of_a_local_folder_the_weights_count_and_not_where_it_lies(
    instances: Callable[..., Instance], tmp_path: Path
) -> None:
    def of(place: str, weights: bytes, config: str = '{"layers": 2}') -> Instance:
        folder = tmp_path / place / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
        (folder / "model.safetensors").write_bytes(weights)
        return instances(spec=spec_of(model=replace(MODEL, name=str(folder))))

    of("here", bytes(900)).store(PROMPT)
    assert of("there", bytes(900)).lookup(PROMPT) == list(PROMPT)
    assert of("tuned", b"\1" * 900).lookup(PROMPT) == []
    assert of("deeper", bytes(900), '{"layers": 3}').lookup(PROMPT) == []


def test_nothing_is_shared_without_a_word_for_what_vllm_does_not_tell(url: str) -> None:
    with pytest.raises(WeightsUnknown, match="--quantization"):
        Instance(url, revision="")


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"pool": "maru:///x?size=lots"}, BadUrl),
        ({"threads": 0}, BadUrl),
        ({"threads": "many"}, BadUrl),
    ],
    ids=["a bad size", "no threads", "not a number"],
)
def test_what_will_never_work_is_refused_at_start(url: str, params: dict[str, Any], error: type[MaruError]) -> None:
    with pytest.raises(error):
        Instance(params.pop("pool", url), **params)


def test_an_unknown_setting_is_refused_by_name(url: str) -> None:
    with pytest.raises(TypeError, match="chunktokens"):
        Instance(url, chunktokens=3)


# A request's marker


@pytest.mark.parametrize(("marker", "finds"), [("off", False), ("read", True), ("nonsense", False)])
def test_a_marked_request_is_not_stored_and_is_looked_up_only_to_read(
    one: Instance, url: str, marker: str, finds: bool
) -> None:
    one.store(PROMPT)
    request = request_of()
    request.kv_transfer_params = {"maru.cache": marker}
    assert one.lookup(PROMPT, request=request) == (list(PROMPT) if finds else [])
    one.tier.on_schedule_end(None)
    fresh = request_of("fresh")
    fresh.kv_transfer_params = {"maru.cache": marker}
    result = one.result_of(one.submit_store(PROMPT, "fresh", request=fresh))
    assert not result.success
    assert one.lookup(PROMPT, "fresh", request=request_of("fresh")) == []
    one.store(PROMPT, "fresh")
    assert one.lookup(PROMPT, "fresh", request=request_of("fresh", name="later")) == list(PROMPT)
