"""The remote storage door in a real LMCache, on CPU tensors: whole engines, and what keeps a pool from being opened."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.exceptions import IrrecoverableException
from remote_settings import (
    CHUNK_BYTES,
    DEADLINE_S,
    by_class,
    by_plugin,
    config_of,
    connector_of,
    eventually,
    external,
    key_of,
    metadata_of,
    packed,
    plugin,
    published,
)

import maru
from engine import CHUNK_TOKENS, HEAD_DIM, HEADS, LAYERS, make_connector
from maru.errors import BadUrl, ChunkTooLarge, MaruError, NoDaemon
from maru_lmcache.remote import IdleConnector, MaruConnector, SettingRefused

_numbers = itertools.count()


@pytest.fixture
def url(pool_name: str) -> str:
    return f"maru:///{pool_name}?size=32MiB"


def engine_of(name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float16) -> Any:
    engine = LMCacheEngineBuilder.get_or_create(
        name,
        config_of(settings),
        metadata_of(dtype),
        make_connector(),
        lambda tensor, _: tensor,
        lambda thing, _: thing,
    )
    engine.post_init()
    return engine


@pytest.fixture
def engines() -> Iterator[Callable[..., Any]]:
    """Makes engines, each with memory of its own; all of them are gone after the test."""
    names = []

    def make(settings: dict[str, Any], dtype: torch.dtype = torch.float16) -> Any:
        names.append(f"engine-{next(_numbers)}")
        return engine_of(names[-1], settings, dtype)

    yield make
    for name in names:
        LMCacheEngineBuilder.destroy(name)


def kv_of(tokens: int, dtype: torch.dtype, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, LAYERS, tokens, HEADS * HEAD_DIM), generator=generator).to(dtype)


def sealed(url: str) -> int:
    with maru.Pool.attach(url) as pool:
        return int(pool.stats()["chunks"]["sealed"])


def retrieved(engine: Any, tokens: torch.Tensor, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
    """What lookup promised, and what arrived."""
    kv = torch.zeros((2, LAYERS, len(tokens), HEADS * HEAD_DIM), dtype=dtype)
    found = engine.lookup(tokens)
    got = engine.retrieve(tokens, kv=kv)
    assert int(got.sum()) == found
    return found, kv


@pytest.mark.parametrize("form", [published, by_plugin, by_class, external])
def test_one_engine_finds_what_another_stored(
    form: Callable[[str], dict[str, Any]], url: str, engines: Callable[..., Any]
) -> None:
    tokens, kv = torch.arange(4 * CHUNK_TOKENS), kv_of(4 * CHUNK_TOKENS, torch.float16)
    writer, reader = engines(form(url)), engines(form(url))
    writer.store(tokens, kv=kv)
    eventually(lambda: sealed(url) == 4, "four chunks in the pool")
    found, arrived = retrieved(reader, tokens, torch.float16)
    assert found == len(tokens)
    assert torch.equal(arrived, kv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_whole_and_partial_chunks_of_any_dtype_come_back_bit_by_bit(
    dtype: torch.dtype, url: str, engines: Callable[..., Any]
) -> None:
    count = 2 * CHUNK_TOKENS + CHUNK_TOKENS // 2 + 1
    tokens, kv = torch.arange(count), kv_of(count, torch.float32).mul(50).abs().to(dtype)
    settings = {**published(url), "save_unfull_chunk": True}
    writer, reader = engines(settings, dtype), engines(settings, dtype)
    writer.store(tokens, kv=kv)
    eventually(lambda: sealed(url) == 3, "two whole chunks and a part of one in the pool")
    found, arrived = retrieved(reader, tokens, dtype)
    assert found == count
    assert torch.equal(arrived.view(torch.uint8), kv.view(torch.uint8))


def retrieve_in_child(url: str, tokens: int, answers: Any) -> None:
    engine = engine_of("child", published(url))
    found, arrived = retrieved(engine, torch.arange(tokens), torch.float16)
    answers.send((found, bool(torch.equal(arrived, kv_of(tokens, torch.float16)))))
    os._exit(0)  # LMCache leaves threads that would keep the process.


def in_child(work: Callable[..., None], *args: Any) -> Any:
    """What `work(*args, answer)` answers in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=work, args=(*args, sender))
    child.start()
    sender.close()
    try:
        assert receiver.poll(120), "the child answers"
        return receiver.recv()
    finally:
        child.join(DEADLINE_S)
        if child.is_alive():
            child.kill()


def test_another_process_finds_what_this_one_stored(url: str, engines: Callable[..., Any]) -> None:
    count = 4 * CHUNK_TOKENS
    engines(published(url)).store(torch.arange(count), kv=kv_of(count, torch.float16))
    eventually(lambda: sealed(url) == 4, "four chunks in the pool")
    assert in_child(retrieve_in_child, url, count) == (count, True)


def test_the_plugins_own_backend_stands_aside_for_remote_url(url: str, engines: Callable[..., Any]) -> None:
    backends = engines(published(url)).storage_manager.storage_backends
    doors = {
        name: type(backend.connection.getWrappedConnector())
        for name, backend in backends.items()
        if name.startswith("RemoteBackend")
    }
    assert doors == {"RemoteBackend-maru": IdleConnector, "RemoteBackend": MaruConnector}
    with maru.Pool.attach(url) as pool:
        assert len(pool.stats()["processes"]) == 2, "one attachment of the engine and this one"


# Opening


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (published("maru://10.1.2.3:6555?pool_size=64G"), NoDaemon),
        (by_plugin("maru://cache.example:6555"), NoDaemon),
        (published("maru:///test-remote?size=lots"), BadUrl),
        (by_plugin("redis://localhost"), BadUrl),
        ({"remote_storage_plugins": ["maru"], "extra_config": plugin()}, BadUrl),
        ({**published("maru:///test-remote"), "remote_serde": "cachegen"}, SettingRefused),
    ],
    ids=["other host", "other host by name", "bad size", "other scheme", "no address", "other serde"],
)
def test_what_cannot_be_opened_is_an_error_that_names_it(settings: dict[str, Any], error: type[MaruError]) -> None:
    with pytest.raises(IrrecoverableException, match=error.__name__) as caught:
        connector_of(settings)
    assert isinstance(caught.value.__cause__, error)


def test_a_pool_with_slabs_smaller_than_a_chunk_is_refused(url: str) -> None:
    maru.Pool.create(url + "&slab_bytes=16384").close()
    with pytest.raises(IrrecoverableException, match="slabs of 16 KiB") as caught:
        connector_of(published(url), dtype=torch.float32)
    assert isinstance(caught.value.__cause__, ChunkTooLarge)


def start_in_child(url: str, answers: Any) -> None:
    try:
        engine_of("child", published(url))
    except IrrecoverableException as error:
        answers.send(str(error))
    os._exit(0)  # LMCache leaves a thread that would keep the process.


def test_an_engine_whose_pool_cannot_be_had_does_not_start_quietly() -> None:
    assert in_child(start_in_child, "maru://10.1.2.3:6555").startswith("NoDaemon: ")


def test_lmcache_has_no_way_from_the_url_alone_to_a_class_outside_its_tree() -> None:
    with pytest.raises(ValueError, match="No adapter found for URL: maru://localhost:6555"):
        connector_of({"remote_url": "maru://localhost:6555?pool_size=64G", "remote_serde": "naive"})


def test_a_scheduler_without_buffers_looks_up(url: str) -> None:
    connector = connector_of(published(url), role="scheduler")
    with maru.Pool.attach(url) as pool:
        key = key_of(1)
        assert connector.batched_contains([key]) == 0
        pool.put(packed(pool, key), bytes(CHUNK_BYTES))
        assert connector.batched_contains([key, key_of(2)]) == 1
    asyncio.run(connector.close())


def test_plugins_of_two_names_have_two_pools(url: str, engines: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"remote_storage_plugins": ["maru.a", "maru.b"], "extra_config": {}}
    for name, size in (("maru.a", "16MiB"), ("maru.b", "64MiB")):
        keys = {key.replace("plugin.maru", f"plugin.{name}"): value for key, value in plugin().items()}
        keys[f"remote_storage_plugin.{name}.url"] = url.replace("?size=32MiB", f"-{name[-1]}?size={size}")
        settings["extra_config"] |= keys
    try:
        backends = engines(settings).storage_manager.storage_backends
        pools = [
            backends[f"RemoteBackend-{name}"].connection.getWrappedConnector().copies for name in ("maru.a", "maru.b")
        ]
        assert [pool.stats()["size_bytes"] >> 20 for pool in pools] == [16, 64]
    finally:
        for end in "ab":
            maru.Pool.destroy(url.replace("?", f"-{end}?"), force=True)


def test_a_plugin_whose_pool_cannot_be_had_leaves_an_engine_without_it(engines: Callable[..., Any]) -> None:
    engine = engines(by_plugin("maru://10.1.2.3:6555"))
    assert list(engine.storage_manager.storage_backends) == ["LocalCPUBackend"]
