"""`maru selftest gpu`, against a fake driver: it finds its steps right, and would find them wrong. Not run on a GPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from children import ask

import maru
from fake_gpu import Fake
from maru.engine.device_copy import DeviceCopier
from maru.errors import PoolNotFound
from maru.selftest.content import bytes_of, chunk_bytes_in, key_of
from maru.selftest.gpu import run
from maru.selftest.kills import Killed, _look

STEPS = ["registration", "pool to GPU", "GPU to pool", "across an edge", "bandwidth", "kills"]


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + "?size=16MiB&slab_bytes=1MiB"


@pytest.mark.crash
def test_a_sound_machine_passes_every_step(loaded_fake: Fake, url: str) -> None:
    environment = {"LD_LIBRARY_PATH": str(loaded_fake.folder), "FAKE_CUDA_SLOW": "1"}
    code, told = ask(environment, "selftest", "gpu", "--kills", "3", "--pool", url)
    assert [line["name"] for line in told["lines"]] == STEPS
    assert code == 0
    assert told["verdict"] in ("ok", "improve")
    assert told["gpu"]["devices"][0]["name"] == "Fake GPU"
    kills = told["lines"][-1]["figure"]
    assert (kills["kills"], kills["wrong_chunks"], kills["findings"]) == (3, 0, 0)
    assert kills["chunks_checked"] > 0
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(url)  # Nothing is left.


def test_without_a_driver_it_says_what_is_missing_and_exits_with_3() -> None:
    code, told = ask({"LD_LIBRARY_PATH": ""}, "selftest", "gpu")
    assert (code, told["verdict"], told["lines"]) == (3, "missing", [])
    assert "no CUDA driver" in told["gpu"]["problem"]


def test_a_gpu_that_is_not_there_is_missing_too(loaded_fake: Fake, url: str) -> None:
    code, told = ask({"LD_LIBRARY_PATH": str(loaded_fake.folder)}, "selftest", "gpu", "--device", "5", "--pool", url)
    assert code == 3
    assert "no GPU 5" in told["gpu"]["problem"]


def steps(url: str, kills: int = 0) -> dict[str, Any]:
    return {line.name: line for line in run(url, 0, kills, lambda *_: None)}


def test_copies_that_arrive_wrong_are_bad(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sort = DeviceCopier._sort

    def turned(self: DeviceCopier, rows: Any, is_load: bool) -> Any:
        offsets = [offset for offset, _, _ in rows]
        moved = zip([*offsets[1:], *offsets[:1]], rows, strict=True)
        return sort(self, [(offset, address, size) for offset, (_, address, size) in moved], is_load)

    monkeypatch.setattr(DeviceCopier, "_sort", turned)
    told = steps(url)
    assert told["pool to GPU"].verdict == told["GPU to pool"].verdict == "bad"
    assert told["pool to GPU"].figure["wrong"] == 32


def test_a_driver_that_refuses_ends_it_with_what_it_said(fake: Fake, url: str) -> None:
    fake.fail("cuMemcpyBatchAsync", 1)
    told = steps(url)
    assert list(told) == ["registration", "driver"]
    assert told["driver"].verdict == "bad"
    assert "CUDA_ERROR_INVALID_VALUE" in told["driver"].text
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(url)


def test_a_driver_that_registers_nothing_is_told_and_the_detour_is_tested(fake: Fake, url: str) -> None:
    fake.fail("cuMemHostRegister", 2, nth=0)
    told = steps(url)
    assert told["registration"].verdict == "improve"
    assert told["pool to GPU"].verdict == told["GPU to pool"].verdict == "ok"


def test_a_chunk_with_other_bytes_than_its_workers_is_found(gpu_pool: maru.Pool) -> None:
    size = chunk_bytes_in(gpu_pool.stats()["slab_bytes"])
    right, wrong = key_of("victim-0", 3), key_of("victim-0", 5)
    gpu_pool.put(right, bytes_of(right, size))
    result = Killed()
    _look(gpu_pool, 0, [], random.Random(1), result)
    assert (result.problem, result.chunks_sealed_by_victims) == ("", 1)
    torn = bytes_of(wrong, size)[: size // 2] + bytes(size // 2)
    gpu_pool.put(wrong, torn)
    _look(gpu_pool, 0, [], random.Random(1), result)
    assert "1 chunks hold other bytes" in result.problem


@pytest.mark.crash
def test_a_worker_that_does_not_start_is_said(
    fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    told = steps(url, kills=1)
    assert told["kills"].verdict == "bad"
    assert "worker 0 did not start" in told["kills"].text
    assert "no CUDA driver" in told["kills"].text


def test_pieces_that_changed_places_show_in_the_content() -> None:
    content = bytes_of(key_of("a", 1), 1 << 20)
    assert len({content[at : at + 64] for at in range(0, 1 << 20, 64)}) == 1 << 14
    assert bytes_of(key_of("a", 2), 64) != content[:64]
