"""Places below the pool in a figure: what it compares, and that nothing that was not moved is taken for a figure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maru.bench import below_child, raw_places
from maru.bench.below_child import PLACE, POOL, RAW, PlaceChild, PrefixChild, PutsChild
from maru.bench.document import Document
from maru.bench.figures import below, figure_named
from maru.bench.ground import MIB, bench_pool
from maru.bench.kv_child import KvChild
from maru.bench.rivals.contract import RivalFailed
from maru.bench.session import BadSetting, Options, opened
from maru.pool import Pool
from maru.tier.envelope import Unwrapping
from maru.tiering.demoter import Demoter
from maru.tiering.place import Loaded, Place

CHUNK_BYTES = 1 << 16
SMALL = {
    "chunks": "3", "put_seconds": "0.05", "every_ms": "5", "pool_mib": "4", "prefixes": "2", "prefix_chunks": "8",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(below_child, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(below_child, "last_level_cache_bytes", lambda: 1 << 18)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/place?direct={int(raw_places.takes_direct(tmp_path))}"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[str]:
    with bench_pool(f"below-{tmp_path.name[-24:]}", 4 * MIB, f"gate=off&slab_bytes={4 * CHUNK_BYTES}") as made:
        yield made.config.url


@pytest.fixture
def place(url: str) -> Iterator[PlaceChild]:
    child = PlaceChild()
    child.open(url, 5)
    yield child
    child.end()


@pytest.fixture
def prefixes(url: str, pool: str) -> Iterator[PrefixChild]:
    child = PrefixChild()
    child.open(pool, f"{url}&write=through", 2, 3)
    yield child
    child.end()


async def whole_at_once(*_: Any) -> Loaded:
    return Loaded.WHOLE


@pytest.mark.parametrize("way", [PLACE, RAW])
def test_what_was_stored_and_loaded_is_compared_and_taken_away(way: str, place: PlaceChild, tmp_path: Path) -> None:
    store_s, load_s, compared, wrong = place.trial(way)
    assert store_s > 0
    assert load_s > 0
    assert (compared, wrong) == (5, 0)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size >= CHUNK_BYTES]
    assert left == []


def test_a_place_that_gives_nothing_is_wrong(place: PlaceChild, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.trial(PLACE)[3] == 0  # So that right bytes lay in this memory before.
    monkeypatch.setattr(Place, "load", whole_at_once)
    assert place.trial(PLACE)[2:] == (5, 5)


def test_a_raw_read_that_reads_nothing_is_wrong(place: PlaceChild, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.trial(RAW)[3] == 0
    monkeypatch.setattr(raw_places.RawFiles, "load", lambda _raw, _name, landing: landing)
    assert place.trial(RAW)[2:] == (5, 5)


def test_a_place_that_takes_nothing_is_a_failure_and_no_sample(
    place: PlaceChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> bool:
        return False

    monkeypatch.setattr(Place, "store", refuse)
    with pytest.raises(RivalFailed, match="did not take a chunk"):
        place.trial(PLACE)


def test_raw_files_are_the_same_through_the_page_cache(tmp_path: Path) -> None:
    chunk = below_child._filled(1)
    raw = raw_places.RawFiles(tmp_path / "raw", is_direct=False)
    raw.store("one", chunk)
    assert np.array_equal(raw.load("one", below_child._pages(1)), chunk)


def test_puts_are_compared_also_those_that_come_from_below(url: str, pool: str) -> None:
    child = PutsChild()
    child.open(pool, f"{url}&write=through")
    try:
        seconds, compared, wrong = child.puts(0.05, 0.005)
        assert seconds
        assert compared > 0
        assert wrong == 0
    finally:
        child.end()


def test_puts_of_other_bytes_are_wrong(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    child = PutsChild()
    child.open(pool, "")
    try:
        assert child.puts(0.01, 0.0)[2] == 0
        monkeypatch.setattr(child, "_put", lambda key, _chunk: child._pool.put(key, bytes(CHUNK_BYTES)))
        _, compared, wrong = child.puts(0.01, 0.0)
        assert 0 < wrong == compared
    finally:
        child.end()


def test_puts_beside_a_ladder_that_copies_nothing_are_no_sample(
    url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Demoter, "_look", lambda *_: (b"", {}))
    child = PutsChild()
    try:
        child.open(pool, f"{url}&write=through")
        with pytest.raises(RivalFailed, match="nothing was copied below"):
            child.puts(0.01, 0.0)
    finally:
        child.end()


def test_a_prefix_is_compared_by_every_way(prefixes: PrefixChild) -> None:
    for prefix in (0, 1):
        for way in (PLACE, POOL, RAW):
            seconds, compared, wrong = prefixes.take(way, prefix)
            assert seconds > 0
            assert (compared, wrong) == (3, 0)
        prefixes.forget(prefix)


def test_a_prefix_that_is_in_the_pool_still_did_not_come_from_below(prefixes: PrefixChild) -> None:
    prefixes.take(PLACE, 0)
    with pytest.raises(RivalFailed, match="3 of 0 chunks"):
        prefixes.take(PLACE, 0)


def test_a_prefix_that_does_not_come_is_no_fast_one(prefixes: PrefixChild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes._pool, "pin", lambda packed: Pool.pin(prefixes._pool, packed))
    with pytest.raises(RivalFailed, match="0 of 3 chunks"):
        prefixes.take(PLACE, 0)


def test_a_prefix_that_comes_up_without_its_bytes_is_wrong(
    prefixes: PrefixChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unwrapping, "finish", lambda _: None)
    monkeypatch.setattr(Unwrapping, "begin", lambda reading, _out: setattr(reading, "_out", memoryview(bytearray(1))))
    monkeypatch.setattr(Unwrapping, "feed", _only_facts(Unwrapping.feed))
    assert prefixes.take(PLACE, 0)[1:] == (3, 3)


def _only_facts(feed: Any) -> Any:
    return lambda reading, piece: feed(reading, piece) if reading.facts is None else None


def test_a_hit_that_copies_nothing_is_wrong(prefixes: PrefixChild, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes.take(PLACE, 0)
    monkeypatch.setattr(below_child.core, "stream_copy", lambda _to, _view: None)
    assert prefixes.take(POOL, 0)[1:] == (3, 3)


def test_codecs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    child = KvChild()
    values = np.random.default_rng(1).normal(size=(2, 2, 1, 512, 64)).astype(np.float32)
    child.take((values.view(np.uint32) >> 16).astype(np.uint16), 256)
    for codec, most in (("none", 1.01), ("zstd", 1.0), ("blosc2", 0.9), ("int8:bf16:channels=64", 0.6)):
        share, wrap_rate, unwrap_rate, compared, wrong = child.measure(codec)
        assert 0.4 < share < most
        assert wrap_rate > 0
        assert unwrap_rate > 0
        assert (compared, wrong) == (2, 0)
    monkeypatch.setattr("maru.bench.kv_child.unwrap", lambda *_: None)
    assert [child.measure(codec)[3:] for codec in ("none", "int8:bf16:channels=64")] == [(2, 2), (2, 2)]


class InThisProcess:
    """A member of the figure that is no process."""

    def __init__(self, kind: str) -> None:
        self._child = getattr(below_child, kind.partition(":")[2])()

    def ask(self, do: str, **what: Any) -> Any:
        return self._child.answer({"do": do, **what})

    def await_end(self) -> None:
        self._child.end()

    def let_go(self) -> None:
        """Nothing to close."""


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> Document:
    monkeypatch.setattr(below, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(below, "SLAB_BYTES", 4 * CHUNK_BYTES)
    monkeypatch.setattr(below, "PUTS_FOLDER_BYTES", 8 * MIB)
    monkeypatch.setattr(below, "command_of", lambda _interpreter, kind: kind)
    monkeypatch.setattr(below, "Member", lambda kind, _log: InThisProcess(kind))
    figure = figure_named("below")
    options = Options(is_quick=True, path=tmp_path / "out", cache_dir=tmp_path / "cache", settings=SMALL | settings)
    with opened(figure, options) as run:
        figure.perform(run)
        return run.document()


def test_the_figure_leaves_nothing_and_finds_a_place_that_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(below.shutil, "which", lambda _: None)
    (tmp_path / "cache" / "maru-bench-99999999-killed" / "place").mkdir(parents=True)
    document = measured(tmp_path, monkeypatch, only="throughput,puts,promotion")
    assert document.checks.compared > 0
    assert document.checks.wrong == 0
    assert {one.measure for one in document.samples} == {measure.name for measure in document.measures}
    assert any(line.startswith("Redis was not measured") for line in document.remarks)
    assert any("maru-bench-99999999-killed" in line for line in document.remarks)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(Place, "load", whole_at_once)
    assert not measured(tmp_path, monkeypatch, only="throughput").checks.are_good


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_redis_is_measured_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = measured(tmp_path, monkeypatch, only="throughput,promotion")
    assert {one.x for one in document.samples if one.measure == "load"} == {"folder", "redis"}
    assert document.checks.are_good
    monkeypatch.setattr(raw_places.RawRedis, "load", lambda _raw, _name, landing: landing)
    assert not measured(tmp_path, monkeypatch, only="throughput").checks.are_good


def test_without_a_model_codecs_are_left_out_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = measured(tmp_path, monkeypatch, only="codecs")
    assert document.samples == []
    assert document.measures == []
    assert any(line.startswith("codecs were not measured") for line in document.remarks)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"only": "puts,speed"}, "no part speed"), ({"s3": "http://somewhere"}, "no place of the kind"),
     ({"folder": "/proc/1"}, "folder=/proc/1")],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused_by_its_name(
    settings: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadSetting, match=why):
        measured(tmp_path, monkeypatch, **settings)


def test_a_file_system_that_takes_no_direct_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuses(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(raw_places.os, "open", refuses)
    assert not raw_places.takes_direct(tmp_path)
    assert list(tmp_path.iterdir()) == []
