"""The pool's memory, registered with a (fake) GPU: in which pieces, when, by whom, and how it is given back."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rig import Clock

import maru
from fake_gpu import Fake
from maru import registered
from maru.engine.device_copy import Device, Registration, registration
from maru.engine.device_copy.registration import Progress, cpus_in
from maru.registered import RegisteredPieces

MIB = 1 << 20
GIB = 1 << 30
SLAB = 256 * MIB
DEADLINE_S = 30.0


class Notes:
    """A registrar that notes what it is told."""

    def __init__(self, largest: int = 1 << 62, refuses: Sequence[int] = ()) -> None:
        self.largest = largest
        self.refuses = set(refuses)
        """Numbers of calls, from 0, that are refused for no reason of size."""
        self.tried: list[tuple[int, int]] = []
        self.pieces: dict[int, int] = {}

    def register(self, address: int, size_bytes: int) -> bool:
        self.tried.append((address, size_bytes))
        if size_bytes > self.largest or len(self.tried) - 1 in self.refuses:
            return False
        self.pieces[address] = size_bytes
        return True

    def unregister(self, address: int) -> bool:
        return self.pieces.pop(address, None) is not None


def walked(notes: Notes, ranges: list[tuple[int, int]], clock: Clock | None = None) -> RegisteredPieces:
    pieces = RegisteredPieces(notes, 0, ranges, SLAB, (clock or Clock()).pause)
    pieces.walk()
    return pieces


def test_pieces_are_of_8_gib_and_end_on_slabs_and_segments() -> None:
    notes = Notes()
    pieces = walked(notes, [(0, 20 * GIB), (20 * GIB, 3 * GIB)])
    assert sorted(notes.pieces.items()) == [
        (0, SLAB), (SLAB, 8 * GIB), (SLAB + 8 * GIB, 8 * GIB), (SLAB + 16 * GIB, 4 * GIB - SLAB),
        (20 * GIB, SLAB), (20 * GIB + SLAB, 3 * GIB - SLAB),
    ]  # fmt: skip
    assert all(pieces.covers(slab * SLAB, SLAB) for slab in range(23 * GIB // SLAB))
    assert pieces.registered_bytes == pieces.size_bytes == 23 * GIB


def test_segments_take_turns_from_their_beginnings() -> None:
    notes = Notes()
    walked(notes, [(0, 20 * GIB), (20 * GIB, 20 * GIB)])
    assert [at // GIB for at, _ in notes.tried] == [0, 20, 0, 20, 8, 28, 16, 36]


@pytest.mark.parametrize(
    ("slab", "piece_bytes", "first"),
    [(64 * MIB, 8 * GIB, 256 * MIB), (96 * MIB, 8 * GIB, 192 * MIB), (GIB, 8 * GIB, GIB), (MIB, 2 * MIB, 2 * MIB)],
)
def test_the_first_piece_of_each_segment_is_small_and_of_whole_slabs(slab: int, piece_bytes: int, first: int) -> None:
    notes = Notes()
    size = 24 * GIB // slab * slab
    RegisteredPieces(notes, 0, [(0, size), (size, size)], slab, Clock().pause, piece_bytes).walk()
    assert notes.tried[:2] == [(0, first), (size, first)]
    assert notes.tried[2] == (first, piece_bytes // slab * slab)


def test_a_small_first_piece_that_is_refused_makes_no_other_piece_small() -> None:
    notes = Notes(refuses=[0])
    RegisteredPieces(notes, 0, [(0, 20 * GIB)], 64 * MIB, Clock().pause).walk()
    assert [size // MIB for _, size in notes.tried[:3]] == [256, 128, 8 * 1024]


class Watches(Notes):
    """Notes at each call whether the first pieces count as tried."""

    def __init__(self, refuses: Sequence[int] = ()) -> None:
        super().__init__(refuses=refuses)
        self.pieces_of: RegisteredPieces | None = None
        self.told: list[bool] = []

    def register(self, address: int, size_bytes: int) -> bool:
        assert self.pieces_of is not None
        self.told.append(self.pieces_of.first_tried.is_set())
        return super().register(address, size_bytes)


@pytest.mark.parametrize(
    ("refuses", "told"),
    [([], [False, False, True, True]), (range(3), [False] * 4 + [True] * 2)],
)
def test_the_first_pieces_are_told_when_each_was_tried_and_not_before(refuses: Sequence[int], told: list[bool]) -> None:
    watches = Watches(refuses)
    pieces = RegisteredPieces(watches, 0, [(0, 2 * GIB), (2 * GIB, 2 * GIB)], SLAB, Clock().pause)
    watches.pieces_of = pieces
    pieces.walk()
    assert watches.told == told


def test_a_pool_of_first_pieces_only_and_a_walk_that_ends_early_are_told_too() -> None:
    assert walked(Notes(), [(0, SLAB)]).first_tried.is_set()
    pieces = RegisteredPieces(Notes(), 0, [(0, GIB)], SLAB, lambda _: True)
    pieces.walk()
    assert pieces.first_tried.is_set()


def test_a_piece_that_is_refused_is_halved_after_a_pause_that_grows() -> None:
    notes, clock = Notes(largest=3 * GIB), Clock()
    pieces = walked(notes, [(0, 20 * GIB)], clock)
    assert [size // MIB for _, size in notes.tried[:5]] == [256, 8192, 4096, 2048, 2048]
    assert clock.now == registered.BACKOFF_S * (1 + 2)
    assert pieces.registered_bytes == 20 * GIB


def test_a_refusal_now_and_then_is_tried_again() -> None:
    notes = Notes(refuses=[0, 1])
    pieces = walked(notes, [(0, SLAB)])
    assert (len(notes.tried), pieces.registered_bytes, pieces.refused_bytes) == (3, SLAB, 0)


def test_what_no_size_helps_with_is_left_out_and_the_rest_is_not() -> None:
    notes = Notes(refuses=range(3, 6))
    pieces = walked(notes, [(0, SLAB), (SLAB, SLAB), (2 * SLAB, SLAB), (3 * SLAB, SLAB), (4 * SLAB, SLAB)])
    assert pieces.refused_bytes == SLAB
    assert pieces.registered_bytes == 4 * SLAB
    assert not pieces.covers(3 * SLAB, SLAB)
    assert pieces.covers(4 * SLAB, SLAB)


def test_a_driver_that_refuses_everything_is_not_asked_for_ever() -> None:
    notes = Notes(largest=0)
    pieces = walked(notes, [(0, 1024 * GIB), (1024 * GIB, GIB)])
    assert len(notes.tried) < 50
    assert pieces.refused_bytes == 1025 * GIB


def test_bytes_are_cut_where_pieces_end() -> None:
    notes = Notes(refuses=range(3, 6))
    pieces = walked(notes, [(n * SLAB, SLAB) for n in range(5)])
    assert pieces.cut(SLAB - 10, 20) == [(SLAB - 10, 10, True), (SLAB, 10, True)]
    assert pieces.cut(3 * SLAB - 1, SLAB + 2) == [
        (3 * SLAB - 1, 1, True), (3 * SLAB, SLAB, False), (4 * SLAB, 1, True),
    ]  # fmt: skip
    assert pieces.cut(5 * SLAB, 7) == [(5 * SLAB, 7, False)]
    assert pieces.cut(3, 0) == []


# With a driver


@pytest.fixture
def device(fake: Fake) -> Device:
    return Device(0)


def begun(
    pool: maru.Pool, device: Device, clock: Clock | None = None, piece_bytes: int = registered.PIECE_BYTES
) -> Registration:
    made = Registration(pool, device, (clock or Clock()).pause, piece_bytes)
    made.begin()
    assert made.wait(DEADLINE_S)
    return made


def test_closing_meanwhile_ends_the_walk(fake: Fake, gpu_pool: maru.Pool, device: Device) -> None:
    fd = os.open(Path(gpu_pool.folder) / "lock", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0))
    made = Registration(gpu_pool, device)
    made.begin()
    assert made.close()  # It waits for its turn, and is told to stop.
    os.close(fd)
    assert fake.registered_bytes == 0


def test_the_writable_mapping_is_registered_and_given_back(fake: Fake, gpu_pool: maru.Pool, device: Device) -> None:
    made = begun(gpu_pool, device, piece_bytes=2 * MIB)
    size = made.size_bytes
    assert (fake.registrations, fake.registered_bytes) == (size // (2 * MIB), size)
    assert made.progress == Progress(size, 0, size)
    assert made.ready
    assert all(made.covers(slab * MIB, MIB) for slab in range(size // MIB))
    assert fake.calls("cuMemHostGetDevicePointer") == 2 * fake.registrations
    assert made.close()
    assert fake.registered_bytes == 0


def test_nothing_is_registered_before_it_begins_nor_after_it_ended(
    fake: Fake, gpu_pool: maru.Pool, device: Device
) -> None:
    made = Registration(gpu_pool, device)
    assert not made.ready
    assert not made.covers(0, 1)
    assert made.close()
    made.begin()
    assert fake.calls("cuMemHostRegister") == 0


def test_memory_that_the_device_sees_elsewhere_is_not_used(
    fake: Fake, gpu_pool: maru.Pool, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    fake.set("pointer_shift", 4096)
    made = begun(gpu_pool, device)
    assert not made.covers(0, 1)
    assert fake.registered_bytes == 0
    assert "at another address" in caplog.text


def test_only_memory_that_is_real_is_registered(
    fake: Fake, gpu_pool: maru.Pool, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = gpu_pool.stats()
    figures["real_bytes"] = 2 * MIB + MIB // 2
    monkeypatch.setattr(type(gpu_pool), "stats", lambda _: figures)
    made = begun(gpu_pool, device)
    assert fake.registered_bytes == 2 * MIB
    assert [part.is_registered for part in made.cut(MIB, 2 * MIB)] == [True, False]


def test_one_process_at_a_time_registers(fake: Fake, gpu_pool: maru.Pool, device: Device) -> None:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0)
    tried = threading.Event()

    def pause(seconds: float) -> bool:
        if seconds:
            tried.set()
        return False

    fd = os.open(Path(gpu_pool.folder) / "lock", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    made = Registration(gpu_pool, device, pause)
    patience = registration.TURN_DEADLINE_S
    registration.TURN_DEADLINE_S = 1e6  # The pauses of this test take no time.
    try:
        made.begin()
        assert tried.wait(DEADLINE_S)
        assert fake.calls("cuMemHostRegister") == 0
        os.close(fd)
        assert made.wait(DEADLINE_S)
    finally:
        registration.TURN_DEADLINE_S = patience
    assert made.progress.registered_bytes == made.size_bytes
    made.close()


def test_a_process_that_sits_on_its_turn_does_not_stop_the_others(
    fake: Fake, gpu_pool: maru.Pool, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    fd = os.open(Path(gpu_pool.folder) / "lock", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0))
    made = begun(gpu_pool, device, clock, MIB)
    os.close(fd)
    assert made.progress.registered_bytes == made.size_bytes  # Eight pieces, and one wait.
    assert clock.now == pytest.approx(registration.TURN_DEADLINE_S)
    assert "not waiting longer" in caplog.text
    made.close()


def test_memory_that_the_driver_keeps_stays_mapped(
    fake: Fake, gpu_pool: maru.Pool, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    made = begun(gpu_pool, device)
    fake.fail("cuMemHostUnregister", 1)
    assert not made.close()
    assert "stays mapped" in caplog.text
    gpu_pool.close()
    maps = Path("/proc/self/maps").read_text()
    assert any(int(line.partition("-")[0], 16) == made.address for line in maps.splitlines())


def test_a_context_that_breaks_meanwhile_ends_the_walk(fake: Fake, gpu_pool: maru.Pool, device: Device) -> None:
    fake.fail("cuMemHostRegister", 700)
    made = begun(gpu_pool, device)
    assert device.is_lost
    assert not made.covers(0, 1)
    assert made.close()  # Nothing was registered: nothing to give back.


@pytest.mark.parametrize(("text", "cpus"), [("0-2,5\n", {0, 1, 2, 5}), ("7", {7}), ("0,2-3", {0, 2, 3})])
def test_the_kernels_list_of_cpus_is_read(text: str, cpus: set[int]) -> None:
    assert cpus_in(text) == cpus


# Where the thread runs


def test_the_registering_thread_runs_near_the_gpu_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[set[int]] = []
    monkeypatch.setattr(registration.os, "sched_getaffinity", lambda _: {2, 3, 9})
    monkeypatch.setattr(registration.os, "sched_setaffinity", lambda _, cpus: moved.append(cpus))
    for text in ("0-3\n", "4-5", "nonsense"):
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        registration.stay_near(1)
    assert moved == [{2, 3}]


def test_every_segment_is_registered_in_pieces_of_its_own(fake: Fake, pool_url: str, tmp_path: Path) -> None:
    files = ",".join(str(tmp_path / name) for name in ("a", "b"))
    url = pool_url.partition("?")[0] + f"?size=8MiB&slab_bytes=1MiB&data={files}&medium=file"
    with maru.Pool.create(url) as pool:
        assert pool.wait_ready(20)
        made = begun(pool, Device(0))
        segments = pool.stats()["segments"]
        assert len(segments) == 2
        assert fake.registrations == 2
        assert all(made.covers(one["first_byte"], one["bytes"]) for one in segments)
        assert not made.covers(segments[1]["first_byte"] - 1, 2)
        made.close()
