"""Promises of the drop-in handler about order, pins and places."""

from __future__ import annotations

import io

import pytest
from handler_kit import CHUNK, config, counters, put
from rich.console import Console

import maru
from maru import MaruHandler
from maru.stat_view import show_pool

# Order


def parent_counts(handler: MaruHandler) -> tuple[int, int, int]:
    figures = counters(handler)
    return figures["suffixes_linked"], figures["suffixes_orphaned"], figures["suffixes_unplaced"]


def test_a_batch_continues_what_the_latest_lookup_says(handler: MaruHandler) -> None:
    put(handler, "a", "b")
    handler.batch_exists(["a", "b", "c", "d"])
    put(handler, "c", "d")
    assert parent_counts(handler) == (1, 0, 1)  # The first batch had not been looked up.
    handler.batch_pin(["x", "y"])
    put(handler, "x", "y")  # A prompt's start is no suffix.
    assert parent_counts(handler) == (1, 0, 1)


def test_a_suffix_whose_predecessor_is_gone_is_counted(handler: MaruHandler) -> None:
    put(handler, "a", "b")
    handler.batch_exists(["a", "b", "c"])
    handler.delete("b")
    put(handler, "c")
    assert parent_counts(handler)[1] == 1


def test_single_questions_tell_nothing_about_order(handler: MaruHandler) -> None:
    handler.batch_exists(["a", "b"])
    handler.exists("b")
    put(handler, "a")
    put(handler, "b")
    assert parent_counts(handler) == (1, 0, 0)


def test_a_linked_prefix_leaves_from_its_end(pool_url: str) -> None:
    with MaruHandler(config(pool_url)) as handler:
        handler.batch_exists([f"p{n}" for n in range(20)])
        put(handler, *[f"p{n}" for n in range(20)])
        left = 20
        for number in range(400):
            put(handler, f"noise-{number}")
            there = handler.batch_exists([f"p{n}" for n in range(20)])
            assert there == [True] * sum(there) + [False] * (20 - sum(there))
            left = min(left, sum(there))
        assert left < 20


# Pins


def test_a_pin_keeps_a_chunk_until_it_is_dropped(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    assert other.pin("a")
    assert other.pin("a")
    assert not handler.delete("a")
    assert [other.unpin("a"), other.unpin("a"), other.unpin("a")] == [True, True, False]
    assert handler.delete("a")
    assert not handler.delete("a")


def test_a_batch_of_pins_stops_at_the_first_miss(handler: MaruHandler) -> None:
    put(handler, "a", "b")
    put(handler, "d")
    assert handler.batch_pin(["a", "b", "c", "d"]) == [True, True, False, False]
    assert handler.key_pin_count == 2
    assert handler.batch_unpin(["a", "b", "c", "d"]) == [True, True, False, False]


def test_pins_that_nobody_drops_end_at_their_age_and_are_counted(pool_url: str) -> None:
    with MaruHandler(config(pool_url + "&pin_max_age=0.01")) as handler, maru.Pool.attach(pool_url) as pool:
        put(handler, "a")
        assert handler.pin("a")
        for _ in range(100_000):
            if handler.key_pin_count == 0:
                break
            pool.wait(b"x" * 16, 0.001)
        assert handler.delete("a")
        assert pool.stats()["counters"]["key_pins_expired"] == 1


def test_the_pool_shows_key_pins_apart_from_views(handler: MaruHandler, pool_url: str) -> None:
    put(handler, "a", "b")
    handler.batch_pin(["a", "b"])
    held = handler.retrieve("a")
    assert held is not None
    with maru.Pool.attach(pool_url) as pool:
        row = pool.stats()["processes"][0]
    assert (row["key_pins"], row["pins"]) == (2, 3)
    assert (handler.key_pin_count, handler.view_pin_count) == (2, 1)
    assert row["key_pin_ns"] > 0


def test_closing_drops_the_pins(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    other.pin("a")
    other.close()
    assert handler.delete("a")


# Places


def test_a_place_is_answered_only_while_somebody_holds_it(handler: MaruHandler, other: MaruHandler) -> None:
    put(handler, "a")
    info = other.retrieve("a")
    assert info is not None
    assert other.view_at(info.region_id, info.page_index) is info.view
    assert handler.view_at(info.region_id, info.page_index) is None
    place = info.region_id, info.page_index
    del info
    assert other.view_at(*place) is None
    assert other.view_at(3, 0) is None
    assert other.view_at(0, 1 << 40) is None


def test_two_readers_in_one_process_hold_one_place(handler: MaruHandler) -> None:
    put(handler, "a")
    first, second = handler.retrieve("a"), handler.retrieve("a")
    assert first is not None
    assert second is not None
    place = first.region_id, first.page_index
    del first
    assert handler.view_at(*place) is second.view


def test_a_buffer_view_writes_only_into_memory_that_is_not_stored(handler: MaruHandler) -> None:
    handle = handler.alloc(CHUNK)
    inside = handler.get_buffer_view(handle.region_id, 100, 50)
    assert inside is not None
    inside[:] = b"z" * 50
    assert bytes(handle.buf[100:150]) == b"z" * 50
    del inside
    handler.store("a", handle)
    stored = handler.get_buffer_view(handle.region_id, 100, 50)
    assert stored is not None
    assert stored.readonly
    assert bytes(stored) == b"z" * 50


@pytest.mark.parametrize(
    ("region", "offset", "size"), [(0, CHUNK - 1, 2), (0, -1, 1), (5, 0, 1), (0, 0, -1), (0, 1 << 40, 1)]
)
def test_a_buffer_view_that_reaches_outside_is_none(handler: MaruHandler, region: int, offset: int, size: int) -> None:
    handle = handler.alloc(CHUNK)
    assert handle.page_index == 0
    assert handler.get_buffer_view(region, offset, size) is None


def test_stat_tells_pins_by_key_from_views_and_how_many_suffixes_are_orphans(
    handler: MaruHandler, pool_url: str
) -> None:
    put(handler, "a", "b")
    handler.batch_exists(["a", "b", "c"])
    put(handler, "c")
    handler.batch_pin(["a", "b"])
    with maru.Pool.attach(pool_url) as pool:
        console = Console(width=160, record=True, file=io.StringIO())
        show_pool(console, pool.stats())
    text = console.export_text()
    assert "orphaned suffixes  0.0 % of 1 that an engine stored" in text
    by_process = [line.partition(" alive ")[2].split()[:2] for line in text.splitlines() if " alive " in line]
    assert ["2", "2"] in by_process
    assert ["0", "0"] in by_process
