"""What lies in a pool's files may be torn, foreign or hostile: each case has its named answer, and nobody crashes.

Folders, links and full media are in test_bad_places.py, arguments in test_bad_calls.py, URLs in test_config.py.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import maru
from maru.errors import MaruError, PoolExists, PoolMismatch, PoolNotFound
from maru.native import core
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

SIZE = 9_000
LAYOUT: dict[str, dict[str, Any]] = {s["name"]: s for s in json.loads(core.layout_description())["structs"]}
PLACES = {name: {f["name"]: (f["offset"], f["bytes"]) for f in s["fields"]} for name, s in LAYOUT.items()}


def folder_of(url: str) -> Path:
    return maru.config.parse_url(url).folder


def read_field(file: Path, struct: str, field: str, base: int = 0) -> int:
    offset, size = PLACES[struct][field]
    with file.open("rb") as f:
        f.seek(base + offset)
        return int.from_bytes(f.read(size), "little")


def write_field(file: Path, struct: str, field: str, value: int, base: int = 0) -> None:
    offset, size = PLACES[struct][field]
    with file.open("r+b") as f:
        f.seek(base + offset)
        f.write(value.to_bytes(size, "little"))


@pytest.fixture
def index(pool_url: str) -> Path:
    """The index of a pool with eight chunks that nobody has attached now."""
    with maru.Pool.create(pool_url) as pool:
        assert pool.wait_ready(20)
        for n in range(8):
            assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) == maru.Outcome.STORED
    return folder_of(pool_url) / "index"


@pytest.fixture
def second_url(pool_url: str) -> Iterator[str]:
    """A second pool beside the first."""
    url = pool_url.replace("maru:///", "maru:///second-")
    yield url
    try:
        maru.Pool.destroy(url, force=True)
    except MaruError:
        return


# ---- the superblock ----

GROUPS = {
    "sizes": ["unit_bytes", "slab_bytes", "index_bytes"],
    "counts": [
        "slot_count", "buckets_per_shard", "shard_count", "slab_count", "process_limit", "namespace_limit",
        "checksum_policy",
    ],
    "offsets": [name for name in PLACES["Superblock"] if name.startswith("offset_")],
    "identity": ["magic", "format", "layout_crc", "pool_uuid", "boot_id", "features_incompatible"],
}  # fmt: skip


def answer_to(act: Callable[[], maru.Pool]) -> str:
    """What opening it answers: the error's name, or how many of the eight chunks are right."""
    try:
        with act() as pool:
            views = [pool.get(key_of(n)) for n in range(8)]
            wrong = [n for n, view in enumerate(views) if view is not None and not is_right(key_of(n), view)]
            return f"wrong bytes in {wrong}" if wrong else f"attached, {pool.lookup(key_of(0))}"
    except MaruError as error:
        return type(error).__name__


def attach_to_torn_fields(url: str, group: str) -> None:
    """Overwrite each field of the group with several wrong values in turn; print every answer."""
    index, dice = folder_of(url) / "index", random.Random(f"torn {group}")
    for field in GROUPS[group]:
        good, bits = read_field(index, "Superblock", field), PLACES["Superblock"][field][1] * 8
        wrong = [
            good + 1,
            good ^ 1 << (bits - 1),
            (1 << bits) - 1,
            good << 1,
            *(dice.getrandbits(bits) for _ in range(6)),
        ]
        for value in [0, *(v % (1 << bits) for v in wrong)]:
            if value != good and not (field == "features_incompatible" and value == 0):
                write_field(index, "Superblock", field, value)
                print(field, value, answer_to(lambda: maru.Pool.attach(url)), flush=True)
        write_field(index, "Superblock", field, good)
    print("end", answer_to(lambda: maru.Pool.attach(url)), flush=True)


@pytest.mark.parametrize("group", GROUPS)
def test_a_torn_superblock_is_refused_field_by_field(index: Path, pool_url: str, group: str) -> None:
    with spawn(attach_to_torn_fields, pool_url, group) as opener:
        assert opener.process.stdout is not None
        lines = opener.process.stdout.read().splitlines()
        assert opener.wait() == 0
    assert lines[-1] == "end attached, 1"
    answers = [line.split(maxsplit=2) for line in lines[:-1]]
    assert len(answers) > 5 * len(GROUPS[group])
    assert {name for name, _, _ in answers} == set(GROUPS[group])
    # One policy for another is no tear that anybody could see.
    may_differ = [a for a in answers if a[0] == "checksum_policy" and int(a[1]) <= 2]
    accepted = [a for a in answers if a[2] not in ("PoolMismatch", "PoolNotFound") and a not in may_differ]
    assert accepted == []


@pytest.mark.parametrize("state", [0, 3, 1 << 63, (1 << 64) - 1])
def test_a_torn_state_word_is_refused_or_made_anew(index: Path, pool_url: str, state: int) -> None:
    """Attaching to a pool that answers nothing but misses, for ever, would help nobody."""
    write_field(index, "Superblock", "state", state)
    with pytest.raises((PoolMismatch, PoolNotFound)):
        maru.Pool.attach(pool_url).close()


def attach_to_noise(url: str) -> None:
    """Fill the superblock behind the magic with noise, several times."""
    index = folder_of(url) / "index"
    good = index.read_bytes()[:4096]
    for seed in range(60):
        dice = random.Random(seed)
        torn = bytearray(good)
        start = dice.randrange(8, 248)
        end = dice.randrange(start, 832) + 1
        torn[start:end] = dice.randbytes(end - start)
        with index.open("r+b") as file:
            file.write(torn)
        print(seed, answer_to(lambda: maru.Pool.attach(url)), flush=True)
    print("end", flush=True)


def test_noise_in_the_superblock_crashes_nobody(index: Path, pool_url: str) -> None:
    with spawn(attach_to_noise, pool_url) as opener:
        assert opener.process.stdout is not None
        lines = opener.process.stdout.read().splitlines()
        assert opener.wait() == 0
    assert lines[-1] == "end"
    assert [line for line in lines if "wrong bytes" in line] == []
    assert sum("PoolMismatch" in line for line in lines) > 45


# ---- everything behind it ----

SECTIONS = [
    "processes",
    "classes",
    "namespaces",
    "shards",
    "buckets",
    "slots_hot",
    "slots_cold",
    "slabs",
    "owners",
    "pins",
]


def use_fully(url: str) -> None:
    """Do everything that a process may do; refusals are fine."""
    pool = maru.Pool.attach(url)

    def attempt(act: Callable[[], object]) -> None:
        try:
            act()
        except MaruError:
            return

    for n in range(12):
        attempt(lambda n=n: pool.get(key_of(n)))  # type: ignore[misc]
    for n in range(200):
        key = key_of(n, "new")
        attempt(lambda key=key, n=n: pool.put(key, bytes_of(key, 300 * n + 1), parent=key_of(n - 1, "new")))  # type: ignore[misc]
    attempt(lambda: pool.put(key_of(0, "large"), bytes(200_000)))
    for part in (0, 1):
        attempt(lambda part=part: pool.reserve(key_of(0, "parts"), SIZE, part=part, parts=2))  # type: ignore[misc]
    for n in range(12):
        attempt(lambda n=n: pool.remove(key_of(n)))  # type: ignore[misc]
    for act in (pool.reap, pool.stats, pool.check, pool.close):
        attempt(act)
    print("survived", flush=True)


@pytest.mark.parametrize("section", SECTIONS)
def test_noise_in_the_tables_crashes_nobody(index: Path, pool_url: str, section: str) -> None:
    starts = sorted(read_field(index, "Superblock", f"offset_{name}") for name in SECTIONS)
    start = read_field(index, "Superblock", f"offset_{section}")
    end = next((at for at in starts if at > start), index.stat().st_size)
    for seed in range(2):
        dice = random.Random(f"{section} {seed}")
        with index.open("r+b") as file:
            file.seek(start)
            if seed == 0:
                file.write(dice.randbytes(end - start))
            for _ in range(300):  # Words that look plausible: small states, owners and numbers.
                file.seek(start + dice.randrange((end - start) // 8) * 8)
                word = dice.randrange(16) | dice.choice([0, 1, 2, 255]) << 8 | dice.randrange(100) << 16
                file.write((word | dice.choice([0, 1, 2, 3]) << 62).to_bytes(8, "little"))
        with spawn(use_fully, pool_url) as user:
            assert user.line() == "survived"
            assert user.wait() == 0


def slot_of(index: Path, key: bytes) -> int:
    """Where in the index the hot line of this key's slot begins."""
    start, lines = read_field(index, "Superblock", "offset_slots_hot"), index.read_bytes()
    at = lines.find(key, start)
    assert at > 0
    return at - PLACES["SlotHot"]["key_lo"][0]


NOWHERE = 1 << 55  # Segment 0, far behind its end.
REVOKED_BY_NOBODY = 4 | 255 << 8 | 1 << 16


def test_a_sweep_survives_a_revoked_slot_whose_extent_is_nowhere(index: Path, pool_url: str) -> None:
    slot = slot_of(index, key_of(0))
    write_field(index, "SlotHot", "extent", NOWHERE, slot)
    write_field(index, "SlotHot", "word", REVOKED_BY_NOBODY, slot)
    with spawn(use_fully, pool_url) as user:
        assert user.line() == "survived"
        assert user.wait() == 0


def join_a_part(url: str, device: bool) -> None:
    with maru.Pool.attach(url) as pool:
        second = pool.reserve(key_of(0, "parts"), SIZE, part=1, parts=2, device=device)
        if second.outcome == maru.Outcome.RESERVED:
            second.buffer[:] = bytes(SIZE // 2)
            second.seal()
        print("survived", flush=True)


@pytest.mark.parametrize("device", [False, True])
def test_joining_a_reservation_whose_extent_is_nowhere_survives(index: Path, pool_url: str, device: bool) -> None:
    with maru.Pool.attach(pool_url) as pool:
        first = pool.reserve(key_of(0, "parts"), SIZE, part=0, parts=2)
        slot = slot_of(index, key_of(0, "parts"))
        good = read_field(index, "SlotHot", "extent", slot)
        write_field(index, "SlotHot", "extent", NOWHERE, slot)
        with spawn(join_a_part, pool_url, device) as joiner:
            assert joiner.line() == "survived"
            assert joiner.wait() == 0
        write_field(index, "SlotHot", "extent", good, slot)
        first.discard()


@pytest.mark.parametrize("size_bytes", [0, 1, 100, 4095, 4096, 8192, -4096, -1])
def test_a_truncated_index_is_refused(index: Path, pool_url: str, size_bytes: int) -> None:
    """Negative: so many bytes less than it had."""
    whole = index.stat().st_size
    with index.open("r+b") as file:
        file.truncate(size_bytes if size_bytes >= 0 else whole + size_bytes)
    with pytest.raises((PoolMismatch, PoolNotFound), match=r"truncated|no complete pool"):
        maru.Pool.attach(pool_url)


def test_what_a_creator_left_that_died_at_once_is_made_anew(index: Path, pool_url: str) -> None:
    index.write_bytes(b"")
    with maru.Pool.open(pool_url) as pool:
        assert pool.lookup(key_of(0)) == 0
        assert pool.put(key_of(0), b"new") == maru.Outcome.STORED
        assert pool.check() == []


@pytest.mark.parametrize(
    "foreign", [b"\x89PNG\r\n\x1a\n" + b"picture" * 1000, b"%PDF-1.7" + bytes(9000), b"text\n" * 2000]
)
def test_an_index_with_a_foreign_magic_is_refused(index: Path, pool_url: str, foreign: bytes) -> None:
    index.write_bytes(foreign)
    for act in (maru.Pool.attach, maru.Pool.open):
        with pytest.raises(PoolMismatch, match="not a Maru index"):
            act(pool_url)
    assert index.read_bytes() == foreign


def test_another_format_is_refused_with_both_numbers(index: Path, pool_url: str) -> None:
    write_field(index, "Superblock", "format", 2)
    for act in (maru.Pool.attach, maru.Pool.open):
        with pytest.raises(PoolMismatch, match="format 2, this version reads format 1"):
            act(pool_url)


def test_an_unknown_incompatible_feature_is_refused_and_a_compatible_one_is_not(index: Path, pool_url: str) -> None:
    write_field(index, "Superblock", "features_compatible", 1 << 63 | 5)
    assert answer_to(lambda: maru.Pool.attach(pool_url)) == "attached, 1"
    for bit in (0, 31, 32, 63):
        write_field(index, "Superblock", "features_incompatible", 1 << bit)
        with pytest.raises(PoolMismatch, match="features this version does not know") as refused:
            maru.Pool.open(pool_url)
        assert f"{1 << bit:08x}" in str(refused.value)


def test_another_layout_is_refused_with_both_checks(index: Path, pool_url: str) -> None:
    write_field(index, "Superblock", "layout_crc", core.layout_crc() ^ 1)
    with pytest.raises(PoolMismatch, match=f"{core.layout_crc() ^ 1:08x}, ours {core.layout_crc():08x}"):
        maru.Pool.open(pool_url)


def test_a_pool_of_an_earlier_boot_is_made_anew_with_one_warning(
    index: Path, pool_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_field(index, "Superblock", "boot_id", 12345)
    with pytest.raises(PoolMismatch, match="before this boot"):
        maru.Pool.attach(pool_url)
    assert caplog.messages == []
    with maru.Pool.open(pool_url) as pool:
        assert pool.lookup(key_of(0)) == 0
        assert pool.check() == []
    assert len(caplog.messages) == 1
    assert "content is lost" in caplog.messages[0]
    assert answer_to(lambda: maru.Pool.attach(pool_url)) == "attached, 0"


# ---- the segments ----


def test_a_truncated_segment_is_refused_with_both_sizes(index: Path, pool_url: str) -> None:
    segment = index.parent / "segment-0"
    whole = segment.stat().st_size
    for size_bytes in (whole - 1, 4096, 0):
        with segment.open("r+b") as file:
            file.truncate(size_bytes)
        with pytest.raises(PoolMismatch, match=f"truncated: {size_bytes} of {whole} bytes"):
            maru.Pool.attach(pool_url)


def test_a_missing_segment_is_refused_by_name(index: Path, pool_url: str) -> None:
    (index.parent / "segment-0").unlink()
    with pytest.raises(PoolMismatch, match=r"segment-0: cannot open.*mount it where the pool expects it"):
        maru.Pool.attach(pool_url)


@pytest.mark.parametrize(
    "field", ["magic", "pool_uuid", "segment_uuid", "data_offset", "slab_bytes", "unit_bytes", "slab_count"]
)
def test_a_torn_segment_header_is_refused(index: Path, pool_url: str, field: str) -> None:
    segment = index.parent / "segment-0"
    write_field(segment, "SegmentHeader", field, read_field(segment, "SegmentHeader", field) ^ 0x40)
    with pytest.raises(PoolMismatch, match="segment"):
        maru.Pool.attach(pool_url)


@pytest.mark.parametrize("field", ["file_bytes", "header_offset", "data_offset", "first_slab", "slab_count", "medium"])
def test_a_torn_segment_row_is_refused(index: Path, pool_url: str, field: str) -> None:
    row, dice = read_field(index, "Superblock", "offset_segments"), random.Random(field)
    good, bits = read_field(index, "SegmentRow", field, row), PLACES["SegmentRow"][field][1] * 8
    for value in {good ^ 1 << (bits - 1), (1 << bits) - 1, dice.getrandbits(bits), dice.getrandbits(bits)}:
        write_field(index, "SegmentRow", field, value, row)
        with pytest.raises(PoolMismatch):
            maru.Pool.attach(pool_url)
    write_field(index, "SegmentRow", field, good, row)
    assert answer_to(lambda: maru.Pool.attach(pool_url)) == "attached, 1"


@pytest.mark.parametrize(
    "path", ["", ".", "index", "nothing", "/dev/zero", "/dev/null", "/", "/proc/self/mem", "victim"]
)
def test_a_segment_row_that_names_something_else_is_refused(index: Path, pool_url: str, path: str) -> None:
    victim = index.parent / "victim"
    victim.write_bytes(b"v" * 9_000_000)
    row = read_field(index, "Superblock", "offset_segments")
    write_field(index, "SegmentRow", "path", int.from_bytes(path.encode(), "little"), row)
    with pytest.raises(PoolMismatch):
        maru.Pool.attach(pool_url)
    assert victim.read_bytes() == b"v" * 9_000_000
    victim.unlink()


def test_segments_swapped_between_two_pools_are_refused(index: Path, pool_url: str, second_url: str) -> None:
    maru.Pool.create(second_url).close()
    mine, other = index.parent / "segment-0", folder_of(second_url) / "segment-0"
    aside = mine.with_name("aside")
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)
    with pytest.raises(PoolMismatch, match="belongs to another pool") as refused:
        maru.Pool.attach(pool_url)
    assert str(folder_of(second_url)) in str(refused.value)
    with pytest.raises(PoolMismatch, match="belongs to another pool") as refused:
        maru.Pool.attach(second_url)
    assert str(index.parent) in str(refused.value)


def test_data_of_a_living_pool_is_refused_and_stays_whole(pool_url: str, second_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with maru.Pool.create(f"{pool_url}&data={data}") as pool:
        assert pool.put(key_of(0), bytes_of(key_of(0), SIZE)) == maru.Outcome.STORED
        with pytest.raises(PoolMismatch, match="attach that one, or destroy it first") as refused:
            maru.Pool.open(f"{second_url}&data={data}")
        assert str(folder_of(pool_url)) in str(refused.value)
        assert refused.value.path == str(data)
        view = pool.get(key_of(0))
        assert view is not None
        assert is_right(key_of(0), view)
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(second_url)


def test_data_whose_index_is_not_here_says_what_to_mount(pool_url: str, second_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    maru.Pool.create(f"{pool_url}&data={data}").close()
    folder = folder_of(pool_url)
    shutil.rmtree(folder)
    before = data.read_bytes()[:4096]
    with pytest.raises(PoolMismatch, match=f"mount {folder} at the same place"):
        maru.Pool.create(f"{second_url}&data={data}")
    assert data.read_bytes()[:4096] == before


DOCUMENTS = {
    "short": b"Dear diary,\n",
    "long": b"chapter " * 10_000,
    "one page": b"p" * 4096,
    "begins with a blank page": bytes(4096) + b"and then the text " * 1000,
    "disc image": bytes(32768) + b"\x01CD001" + b"files " * 1000,
    "our magic and nothing else": b"MARUIDX1" + bytes(8192),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_somebodys_own_document_is_refused_and_left_untouched(pool_url: str, tmp_path: Path, kind: str) -> None:
    document = tmp_path / "document"
    document.write_bytes(DOCUMENTS[kind])
    stamp = document.stat().st_mtime_ns
    for act in (maru.Pool.open, maru.Pool.create):
        with pytest.raises(PoolMismatch, match="not a segment of a Maru pool"):
            act(f"{pool_url}&data={document}").close()
    with pytest.raises(MaruError):
        maru.Pool.destroy(f"{pool_url}&data={document}", force=True)
    assert document.read_bytes() == DOCUMENTS[kind]
    assert document.stat().st_mtime_ns == stamp
    assert not folder_of(pool_url).exists()


def test_creating_over_a_pool_and_attaching_to_none_have_names(index: Path, pool_url: str, second_url: str) -> None:
    with pytest.raises(PoolExists) as exists:
        maru.Pool.create(pool_url)
    assert exists.value.path == str(index.parent)
    with pytest.raises(PoolNotFound) as missing:
        maru.Pool.attach(second_url)
    assert missing.value.path == str(folder_of(second_url))
    assert not folder_of(second_url).exists()
