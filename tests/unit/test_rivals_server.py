"""The metadata server that the pool is measured beside: places never overlap, and bad messages are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

msgspec = pytest.importorskip("msgspec")
zmq = pytest.importorskip("zmq")

from maru.bench.rivals import metadata_server as wire  # noqa: E402
from maru.bench.rivals.work import prefix_keys  # noqa: E402

CAPACITY_BYTES = 1000


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def place_of(directory: wire.Directory, number: int, size: int) -> tuple[int, int]:
    answer = directory.answer(wire.Reserve(key(number), size))
    assert isinstance(answer, wire.Places)
    [place] = answer.places
    return place


def store(directory: wire.Directory, number: int, size: int) -> tuple[int, int]:
    place = place_of(directory, number, size)
    assert directory.answer(wire.Commit(key(number))) == wire.Count(1)
    return place


def test_a_chunk_is_found_once_it_is_committed() -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    place = place_of(directory, 1, 400)
    assert directory.answer(wire.Lookup(key(1))) == wire.Count(0)
    directory.answer(wire.Commit(key(1)))
    assert directory.answer(wire.Lookup(key(1) + key(2))) == wire.Count(1)
    assert directory.answer(wire.Find(key(1) + key(2))) == wire.Places([place])


def test_the_oldest_chunk_goes_first() -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    for number in range(3):
        store(directory, number, 400)
    assert [directory.answer(wire.Lookup(key(number))) for number in range(3)] == [
        wire.Count(0),
        wire.Count(1),
        wire.Count(1),
    ]


def test_a_chunk_that_is_read_is_stepped_over() -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    pinned = store(directory, 0, 400)
    directory.answer(wire.Find(key(0)))
    store(directory, 1, 400)
    assert store(directory, 2, 400)[0] >= pinned[0] + pinned[1]
    assert directory.answer(wire.Lookup(key(0))) == wire.Count(1)
    directory.answer(wire.Release(key(0)))
    store(directory, 3, 900)
    assert directory.answer(wire.Lookup(key(0))) == wire.Count(0)


def test_when_everything_is_in_use_room_is_refused() -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    for number in range(2):
        place_of(directory, number, 500)
    assert directory.answer(wire.Reserve(key(2), 500)) == wire.Refusal("everything is in use")


@pytest.mark.parametrize("size", [0, -1, CAPACITY_BYTES + 1])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    assert isinstance(wire.Directory(CAPACITY_BYTES).answer(wire.Reserve(key(1), size)), wire.Refusal)


def test_a_key_is_given_room_once() -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    store(directory, 1, 10)
    assert isinstance(directory.answer(wire.Reserve(key(1), 10)), wire.Refusal)
    assert directory.answer(wire.Commit(key(1))) == wire.Count(0)
    assert directory.answer(wire.Commit(key(2))) == wire.Count(0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("rrrcfu"), st.integers(0, 30), st.integers(1, 400)), max_size=150))
def test_places_that_count_never_overlap(steps: list[tuple[str, int, int]]) -> None:
    directory = wire.Directory(CAPACITY_BYTES)
    held: dict[int, tuple[int, int]] = {}  # Reserved and not committed, or pinned: nobody may write there.
    pins: dict[int, int] = {}
    for do, number, size in steps:
        if do == "r":
            answer = directory.answer(wire.Reserve(key(number), size))
            if isinstance(answer, wire.Places):
                [(offset, length)] = answer.places
                assert (length, offset + length <= CAPACITY_BYTES) == (size, True)
                assert all(offset + length <= at or at + count <= offset for at, count in held.values())
                held[number] = (offset, length)
        elif do == "c" and directory.answer(wire.Commit(key(number))) == wire.Count(1):
            del held[number]
        elif do == "f":
            found = directory.answer(wire.Find(key(number)))
            assert isinstance(found, wire.Places)
            if found.places:
                held[number], pins[number] = found.places[0], pins.get(number, 0) + 1
        elif do == "u" and pins.get(number):
            directory.answer(wire.Release(key(number)))
            pins[number] -= 1
            if not pins[number]:
                del held[number]


@pytest.mark.parametrize("message", [b"", b"\xc1", b"no message", msgspec.msgpack.encode([9, b""]), b"\x92\x01\x01"])
def test_a_message_that_cannot_be_understood_is_refused(message: bytes) -> None:
    reply = wire.Courier(wire.Directory(CAPACITY_BYTES)).reply(message)
    assert reply is not None
    assert isinstance(msgspec.msgpack.decode(reply, type=wire.Answer), wire.Refusal)


def test_the_server_refuses_a_bad_message_answers_the_next_and_ends_with_its_input(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path / 'socket'}"
    command = [sys.executable, "-m", wire.__name__, endpoint, str(CAPACITY_BYTES)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == b"ready\n"
        socket.rcvtimeo = 60_000
        socket.connect(endpoint)
        for message, kind in (
            (b"?", wire.Refusal),
            (msgspec.msgpack.encode(wire.Lookup(prefix_keys(0, 3))), wire.Count),
        ):
            socket.send(message)
            assert isinstance(msgspec.msgpack.decode(socket.recv(), type=wire.Answer), kind)
        server.stdin.close()
        assert server.wait(60) == 0
