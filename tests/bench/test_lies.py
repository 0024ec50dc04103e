"""No figure takes a wrong answer, a silent one or a fast miss for a result: shown with systems that give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_systems import ToySystem, replicas_that

from maru.bench.document import Document
from maru.bench.figures import bandwidth, figure_named
from maru.bench.media_child import MediaChild
from maru.bench.rivals.contract import Rival, RivalFailed
from maru.bench.session import Options, Session, opened
from maru.bench.systems import stores_child
from maru.bench.systems.children import Question
from maru.bench.systems.models import KvModel
from maru.bench.systems.stores_child import StoresChild
from maru.pool import Pool

SYNTHETIC = [
    (name, "synthetic") for name in ("ttft", "concurrency", "multiturn", "workloads", "tiers", "bandwidth", "hosts")
]
COMPUTING = [
    (name, "transformers")
    for name in ("ttft", "concurrency", "energy", "multiturn", "workloads", "tiers", "chaos", "cost")
]
BRIEFLY = {"chaos": {"seconds": "0.5", "every": "5"}, "cost": {"shares": "0.1"}}


def measured(name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **habits: bool) -> Document:
    """The whole figure, with `good` in front of a system that has these habits; all in this process."""
    figure = figure_named(name)
    chunk_tokens = 256 if engine == "synthetic" else 64
    names = ("recompute", "maru") if name == "cost" else ("good", "bad")
    good, bad = ({"generates": engine != "synthetic", **more} for more in ({}, habits))
    takes = [
        ToySystem(one, make=replicas_that(chunk_tokens, **how)) for one, how in zip(names, (good, bad), strict=True)
    ]
    monkeypatch.setattr(type(figure), "systems", lambda *_: takes)
    monkeypatch.setattr(Session, "_model", lambda _run: (KvModel("toy", 1, 1, 1, 1), None))
    if name == "bandwidth":  # Its raw part moves no chunk of a system's.
        monkeypatch.setattr(bandwidth, "_ceiling", lambda *_: 1.0)
        monkeypatch.setattr(type(figure), "perform", lambda self, run: self._stores(run))
    options = Options(engine=engine, is_quick=True, path=tmp_path, settings=BRIEFLY.get(name, {}))
    with opened(figure, options) as run:
        figure.perform(run)
        return run.document()


@pytest.mark.parametrize(("name", "engine"), SYNTHETIC + COMPUTING)
def test_right_answers_are_compared_and_right(
    name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = measured(name, engine, tmp_path, monkeypatch)
    assert document.checks.compared > 0
    assert document.checks.wrong == 0
    assert not any(system.absent for system in document.systems)


@pytest.mark.parametrize(("name", "engine"), SYNTHETIC + COMPUTING)
def test_a_wrong_answer_to_a_hit_is_found(
    name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not measured(name, engine, tmp_path, monkeypatch, lies=True).checks.are_good


@pytest.mark.parametrize(("name", "engine"), COMPUTING)
def test_an_engine_that_says_nothing_is_wrong(
    name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not measured(name, engine, tmp_path, monkeypatch, is_silent=True).checks.are_good


@pytest.mark.parametrize("name", ["ttft", "concurrency", "multiturn", "tiers", "bandwidth", "hosts"])
def test_where_nothing_is_computed_a_miss_is_no_fast_hit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = measured(name, "synthetic", tmp_path, monkeypatch, forgets=True)
    good, bad = document.systems
    assert good.absent == ""
    assert "a miss is no fast hit" in bad.absent
    assert not [sample for sample in document.samples if sample.system == "bad"]


def test_a_stream_takes_no_time_of_a_miss_where_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = measured("workloads", "synthetic", tmp_path, monkeypatch, forgets=True)
    assert {s.system for s in document.samples if s.measure == "ttft"} == {"good"}


def test_where_it_is_computed_a_miss_among_hits_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = measured("ttft", "transformers", tmp_path, monkeypatch, forgets=True)
    assert any(line.startswith("bad: some answers that were to be hits were computed") for line in document.remarks)


class DictStore(Rival):
    """A store in this process, which can lie, lose, or find that somebody else was first."""

    def __init__(self, lies: bool = False) -> None:
        self.held: dict[bytes, bytes] = {}
        self.lies = lies
        self.rival_puts = 0

    def version(self) -> str:
        return "a dictionary"

    def setup(self, _place: Path, _capacity_bytes: int) -> str:
        return "here"

    def attach(self, _address: str) -> None:
        return

    def put(self, key: bytes, data: Any) -> None:
        if self.rival_puts:
            self.rival_puts -= 1
            self.held[key] = bytes(data)
        if key in self.held:
            raise RivalFailed("it is there")
        self.held[key] = bytes(data)

    def get_view(self, key: bytes) -> Any:
        return self.held[key]

    def release(self, _key: bytes, _view: Any) -> None:
        return

    def lookup(self, keys: bytes) -> int:
        packed = [keys[at : at + 16] for at in range(0, len(keys), 16)]
        return next((n for n, key in enumerate(packed) if key not in self.held), len(packed))

    def read_into(self, keys: bytes, landing: Any) -> None:
        data = bytearray(b"".join(self.held[keys[at : at + 16]] for at in range(0, len(keys), 16)))
        if self.lies:
            data[-1] ^= 1
        landing[:] = np.frombuffer(data, dtype=np.uint8)

    def teardown(self) -> None:
        return


def child_of(store: DictStore, tmp_path: Path) -> StoresChild:
    child = StoresChild(store)
    child.begin(
        address="", place=str(tmp_path), capacity_bytes=1 << 20, chunk_tokens=4, chunk_bytes=4096,
        context_tokens_max=64, source_bytes=1 << 20, options="",
    )  # fmt: skip
    return child


ASKED = Question(1, 0, is_checked=True)


def test_one_wrong_byte_of_a_load_is_a_wrong_chunk(tmp_path: Path) -> None:
    child = child_of(DictStore(lies=True), tmp_path)
    prompt = list(range(13))
    assert child.respond(prompt, ASKED)["wrong"] == 0
    told = child.respond(prompt, ASKED)
    assert (told["cached_tokens"], told["compared"], told["wrong"]) == (12, 3, 1)


def test_a_load_that_writes_nothing_is_wrong_and_not_what_lay_there(tmp_path: Path) -> None:
    store = DictStore()
    child = child_of(store, tmp_path)
    child.respond([1, 2, 3, 4], ASKED)
    store.read_into = lambda _keys, _landing: None  # type: ignore[method-assign]
    assert child.respond([1, 2, 3, 4], ASKED)["wrong"] == 1


def test_a_chunk_that_another_replica_stored_first_is_no_failure_and_not_counted_as_stored(tmp_path: Path) -> None:
    store = DictStore()
    store.rival_puts = 1
    told = child_of(store, tmp_path).respond(list(range(8)), ASKED)
    assert told["stored_bytes"] == 4096
    assert store.lookup(b"".join(store.held)) == 2


def test_a_chunk_that_is_not_stored_and_does_not_come_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores_child, "SOMEBODY_ELSE_S", 0.0)
    store = DictStore()
    child = child_of(store, tmp_path)

    def refuse(_key: bytes, _data: Any) -> None:
        raise RivalFailed("full")

    store.put = refuse  # type: ignore[method-assign]
    with pytest.raises(RivalFailed, match="full"):
        child.respond([1, 2, 3, 4], ASKED)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.bench.media_child.CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr("maru.bench.media_child.last_level_cache_bytes", lambda: 1 << 18)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("what", ["read", "write"])
def test_raw_copies_are_compared(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "segment"
    file.write_bytes(bytes(1 << 20))
    child = MediaChild()
    child.open([str(file)], "", 0, 1)
    child.fill("")
    assert child.move(what, 0, 5, "")[2:] == (5, 0)
    monkeypatch.setattr("maru.bench.media_child._copy_all", lambda _pairs: None)
    child.fill("")
    assert child.move(what, 0, 5, "")[3] > 0


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("what", ["read", "write"])
def test_copies_through_the_pool_are_compared(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"maru:///bench-lies-{os.getpid()}"
    keys = bytes(range(16)) + bytes(range(16, 32))
    try:
        with Pool.create(f"{url}?size=4MiB&gate=off"):
            child = MediaChild()
            child.open([], url, 0, 1)
            child.fill(keys.hex())
            assert child.move(what, 0, 3, keys.hex())[2:] == (3, 0)
            child._contents = child._contents[1:]
            monkeypatch.setattr("maru.bench.media_child._store", lambda pool, key, _data: pool.put(key, bytes(1 << 16)))
            assert child.move(what, 0, 3, keys.hex())[3] == 3
            child.end()
    finally:
        Pool.destroy(url, force=True)
