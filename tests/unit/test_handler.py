"""Promises of the drop-in handler: the contract that LMCache's MaruBackend and the reference's users rely on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from handler_kit import CHUNK, config, content, counters, put, read

import maru
from maru import AllocHandle, MaruConfig, MaruHandler
from maru.handler_config import show_log

# Configuration


def test_the_configuration_has_the_references_order_and_defaults() -> None:
    made = MaruConfig()
    assert (made.server_url, made.pool_size, made.chunk_size_bytes) == ("tcp://localhost:5555", 104857600, 1048576)
    assert (made.auto_connect, made.timeout_ms, made.use_async_rpc, made.max_inflight) == (True, 2000, True, 64)
    assert (made.eager_map, made.auto_expand, made.expand_size, made.rm_address) == (True, True, None, "127.0.0.1:9850")
    assert made.enable_stats is False
    positional = MaruConfig("tcp:///x", "me", 1 << 20, 1 << 10)
    assert (positional.instance_id, positional.pool_size, positional.chunk_size_bytes) == ("me", 1 << 20, 1 << 10)


def test_every_instance_gets_an_id_of_its_own() -> None:
    assert MaruConfig().instance_id != MaruConfig().instance_id


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk_size_bytes": 0},
        {"pool_size": 10, "chunk_size_bytes": 11},
        {"expand_size": 1 << 20, "auto_expand": False},
        {"expand_size": 5},
    ],
)
def test_sizes_that_cannot_be_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"chunk_size_bytes|pool_size|expand_size"):
        MaruConfig(**fields)  # type: ignore[arg-type]


def test_the_environment_wins_over_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARU_EAGER_MAP", "off")
    monkeypatch.setenv("MARU_STAT", "yes")
    made = MaruConfig(eager_map=True, enable_stats=False)
    assert (made.eager_map, made.enable_stats) == (False, True)
    monkeypatch.setenv("MARU_STAT", "perhaps")
    with pytest.raises(ValueError, match="MARU_STAT"):
        MaruConfig()


@pytest.mark.parametrize(
    ("maru_level", "lmcache_level", "wanted"),
    [("DEBUG", "ERROR", "DEBUG"), ("", "error", "ERROR"), ("", "", "INFO"), ("loud", "", "INFO")],
)
def test_the_log_level_is_marus_then_lmcaches_then_info(
    maru_log: logging.Logger, monkeypatch: pytest.MonkeyPatch, maru_level: str, lmcache_level: str, wanted: str
) -> None:
    monkeypatch.setenv("MARU_LOG_LEVEL", maru_level)
    monkeypatch.setenv("LMCACHE_LOG_LEVEL", lmcache_level)
    maru_log.setLevel(logging.NOTSET)
    show_log()
    assert logging.getLevelName(maru_log.level) == wanted


def test_a_program_that_set_its_own_level_keeps_it(maru_log: logging.Logger) -> None:
    maru_log.setLevel(logging.CRITICAL)
    show_log()
    assert maru_log.level == logging.CRITICAL


@pytest.fixture
def maru_log() -> Iterator[logging.Logger]:
    """The logger, and afterwards its level as it was: by setLevel, which alone makes loggers forget levels."""
    log = logging.getLogger("maru")
    level = log.level
    yield log
    log.setLevel(level)


# Connecting


def test_making_a_handler_does_no_io(pool_url: str) -> None:
    handler = MaruHandler(config(pool_url))
    assert not handler.connected
    with pytest.raises(maru.errors.PoolNotFound):
        maru.Pool.attach(pool_url)


def test_connect_is_idempotent_and_makes_the_pool(pool_url: str) -> None:
    handler = MaruHandler(config(pool_url))
    assert handler.connect()
    assert handler.connect()
    assert handler.healthcheck()
    handler.close()


def test_tcp_with_three_slashes_is_this_hosts_pool(pool_url: str) -> None:
    with (
        MaruHandler(config(pool_url.replace("maru://", "tcp://"))) as first,
        MaruHandler(config(pool_url)) as second,
    ):
        put(first, "a")
        assert second.exists("a")


@pytest.mark.parametrize("address", ["tcp://cache-7:5555", "nonsense", "maru:///a?bogus=1", "maru:///a?dir=/no/such"])
def test_what_cannot_be_used_is_false_and_one_line_in_the_log(address: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = MaruHandler(config(address))
    with caplog.at_level(logging.ERROR, "maru"):
        assert not handler.connect()
    assert len(caplog.records) == 1
    assert not handler.healthcheck()


def test_another_size_asked_for_is_a_warning_and_no_failure(
    handler: MaruHandler, pool_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with MaruHandler(config(pool_url.replace("size=8MiB", "size=64MiB"))) as larger:
        assert larger.connected
    assert "64 MiB asked for are ignored" in caplog.text


def test_a_chunk_that_no_slab_holds_is_refused_at_connect(
    handler: MaruHandler, pool_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    large = MaruHandler(MaruConfig(server_url=pool_url, pool_size=8 << 20, chunk_size_bytes=4 << 20))
    assert not large.connect()
    assert "does not fit" in caplog.text


def test_the_constructor_never_connects_and_enter_does_when_asked(pool_url: str) -> None:
    with MaruHandler(config(pool_url, auto_connect=False)) as handler:
        assert not handler.connected
        with pytest.raises(RuntimeError, match="connect"):
            handler.alloc(1)


def test_after_close_calls_raise_and_close_is_idempotent(handler: MaruHandler) -> None:
    handler.close()
    handler.close()
    assert handler.owned_region_manager is None
    assert not handler.connect()
    for call in (lambda: handler.alloc(1), lambda: handler.retrieve("a"), lambda: handler.get_stats()):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_a_handle_that_outlives_its_handler_gives_its_memory_back_when_dropped(pool_url: str) -> None:
    handler = MaruHandler(config(pool_url))
    handler.connect()
    handle = handler.alloc(CHUNK)
    handler.close()
    handle.buf[:] = b"w" * CHUNK  # Still its own memory, and nobody else's.
    with maru.Pool.attach(pool_url) as pool:
        assert pool.allocate(512 << 10) is not None
        before = pool.stats()["counters"]["discarded"]
        del handle
        assert pool.stats()["counters"]["discarded"] == before + 1


# Storing and reading


def test_a_stored_chunk_is_read_in_place_by_every_instance(handler: MaruHandler, other: MaruHandler) -> None:
    assert put(handler, "a", "b") == [True, True]
    assert read(other, "a", "b") == [content("a"), content("b")]


def test_a_key_is_invisible_until_it_is_stored(handler: MaruHandler, other: MaruHandler) -> None:
    handle = handler.alloc(CHUNK)
    assert not other.exists("a")
    assert handler.store("a", handle)
    assert other.exists("a")


def test_a_shorter_chunk_keeps_its_true_size(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "short", size=1000)
    info = other.retrieve("short")
    assert info is not None
    assert len(info.view) == 1000


def test_keys_of_any_length_and_numbers_work(handler: MaruHandler, other: MaruHandler) -> None:
    keys = ["", "x" * 5000, "a@8@0@ff@bf16@tag%Größe", 17]
    assert put(handler, *keys, size=64) == [True] * 4
    assert other.batch_exists(keys) == [True] * 4


def test_what_was_read_is_read_only_and_does_not_change(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    info = other.retrieve("a")
    assert info is not None
    assert info.view.readonly
    for number in range(300):  # More than the pool holds.
        put(handler, number)
    handler.close()
    assert bytes(info.view) == content("a")


def test_a_second_store_is_false_and_gives_its_memory_back(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    before = counters(handler)["discarded"]
    assert put(other, "a") == [False]
    assert counters(handler)["discarded"] == before + 1
    assert read(handler, "a") == [content("a")]


def test_after_a_store_the_handle_reads_and_no_longer_writes(handler: MaruHandler) -> None:
    handle = handler.alloc(8)
    handle.buf[:] = b"original"
    handler.store("a", handle)
    assert bytes(handle.buf) == b"original"
    with pytest.raises(TypeError):
        handle.buf[0] = 1


def test_the_memory_of_a_stored_chunk_cannot_be_freed_or_stored_again(handler: MaruHandler) -> None:
    handle = handler.alloc(CHUNK)
    handler.store("a", handle)
    with pytest.raises(ValueError, match="freed or stored"):
        handler.free(handle)
    assert not handler.store("b", handle)
    assert handler.exists("a")


def test_freed_memory_cannot_be_freed_twice_or_stored(handler: MaruHandler) -> None:
    handle = handler.alloc(CHUNK)
    handler.free(handle)
    with pytest.raises(ValueError, match="freed or stored"):
        handler.free(handle)
    assert not handler.store("a", handle)
    assert not handler.exists("a")


def test_freeing_a_region_that_there_is_not_is_a_key_error(handler: MaruHandler) -> None:
    with pytest.raises(KeyError):
        handler.free(AllocHandle(memoryview(b""), 9, 0, CHUNK))


def test_a_handle_made_of_ids_alone_stores_the_same_memory(handler: MaruHandler) -> None:
    handle = handler.alloc(CHUNK)
    handle.buf[:] = content("a")
    twin = AllocHandle(memoryview(b""), handle.region_id, handle.page_index, handle.size)
    assert handler.store("a", twin)
    assert read(handler, "a") == [content("a")]


@pytest.mark.parametrize(("region", "page", "size"), [(0, 1, CHUNK), (7, 0, CHUNK), (0, -1, CHUNK), (0, 0, 5)])
def test_ids_that_name_no_memory_of_ours_store_nothing(handler: MaruHandler, region: int, page: int, size: int) -> None:
    handle = handler.alloc(CHUNK)
    assert (handle.region_id, handle.page_index) == (0, 0)
    assert not handler.store("a", AllocHandle(memoryview(b""), region, page, size))
    assert not handler.exists("a")


def test_a_dropped_handle_gives_its_memory_back(handler: MaruHandler) -> None:
    before = counters(handler)["discarded"]
    handler.alloc(CHUNK)
    assert counters(handler)["discarded"] == before + 1


def test_allocation_says_why_it_cannot(handler: MaruHandler) -> None:
    with pytest.raises(ValueError, match="exceeds chunk_size"):
        handler.alloc(CHUNK + 1)
    kept = [handler.alloc(CHUNK) for _ in range(128)]
    with pytest.raises(ValueError, match="exhausted"):
        handler.alloc(CHUNK)
    assert len(kept) == 128


def test_batches_of_unequal_length_are_refused(handler: MaruHandler) -> None:
    with pytest.raises(ValueError, match="2 keys and 1 handles"):
        handler.batch_store(["a", "b"], [handler.alloc(8)])


def test_answers_are_as_many_as_questions_holes_and_errors_included(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    put(handler, "c")
    assert [bool(one) for one in other.batch_retrieve(["a", "b", "c"])] == [True, False, True]
    assert other.batch_exists(["a", "b", "c"]) == [True, False, True]
    broken = ["a", None, "c"]
    assert other.batch_retrieve(broken) == [None] * 3  # type: ignore[arg-type]
    assert other.batch_exists(broken) == [False] * 3  # type: ignore[arg-type]
    assert other.batch_pin(broken) == [False] * 3  # type: ignore[arg-type]
    assert other.batch_unpin(broken) == [False] * 3  # type: ignore[arg-type]
    assert other.batch_retrieve([]) == other.batch_exists([]) == other.batch_pin([]) == []


def test_many_threads_store_and_read_at_once(handler: MaruHandler, other: MaruHandler) -> None:
    wrong: list[str] = []

    def work(mine: MaruHandler, name: str) -> None:
        for number in range(40):
            key = f"{name}-{number}"
            put(mine, key, size=4096)
            if read(mine, key) not in ([content(key, 4096)], [None]):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(mine, f"{n}")) for n, mine in enumerate([handler, other] * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


# What there is to know


def test_regions_are_told_when_asked_and_belong_to_everybody(handler: MaruHandler) -> None:
    told: list[tuple[int, int]] = []
    handler.set_on_region_added(lambda region, pages: told.append((region, pages)))
    assert told == [(0, 2048)]
    assert handler.get_owned_region_ids() == [0]
    assert (handler.get_region_page_count(0), handler.get_region_page_count(1)) == (2048, None)
    assert handler.get_chunk_size() == CHUNK
    assert handler.pool_handle == (0, 0, 8 << 20, 0)


def test_figures_have_the_references_shape(handler: MaruHandler, pool_url: str) -> None:
    with MaruHandler(config(pool_url, enable_stats=True)) as counting:
        put(counting, "a", "b")
        figures = counting.get_stats()
        manager = counting.owned_region_manager
        assert manager is not None
        assert manager.get_stats()["num_regions"] == 1
        assert manager.get_first_region_id() == 0
        allocator = counting.allocator
        assert allocator is not None
        assert (allocator.page_count, allocator.num_allocated, allocator.num_free_pages) == (128, 2, 126)
        assert allocator.chunk_size == CHUNK
        assert counting.mapper is None
    assert figures["kv_manager"] == {"total_entries": 2, "total_size": 2 * CHUNK}
    assert figures["stats_manager"]["clients"]["_all"]["operations"]["alloc"] == {"count": 2}
    assert set(figures["allocator"]) == {
        "pool_size", "chunk_size", "page_count", "free_pages", "allocated_pages", "utilization", "region_id",
    }  # fmt: skip


# When the pool goes


def test_a_pool_destroyed_under_a_handler_is_a_miss_until_there_is_one_again(
    handler: MaruHandler, pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.handler.REATTACH_PAUSE_S", 0.0)
    put(handler, "a")
    unstored, of_the_old_pool = handler.alloc(CHUNK), handler.alloc(CHUNK)
    maru.Pool.destroy(pool_url, force=True)
    assert read(handler, "a") == [None]
    assert not handler.healthcheck()
    assert not handler.store("b", unstored)
    with pytest.raises(ValueError, match="exhausted"):
        handler.alloc(CHUNK)
    with MaruHandler(config(pool_url)) as newcomer:
        put(newcomer, "c")
        assert read(handler, "c") == [content("c")]
        assert handler.healthcheck()
        assert not handler.store("d", of_the_old_pool)
        assert not handler.exists("d")


def test_two_tenants_on_one_pool_do_not_see_each_other(handler: MaruHandler, pool_url: str) -> None:
    put(handler, "a")
    with MaruHandler(config(pool_url + "&tenant=other")) as stranger:
        assert not stranger.exists("a")
        assert put(stranger, "a") == [True]
