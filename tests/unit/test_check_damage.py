"""Every kind of damage that the checker knows is found, named and placed; no damage at all makes it stumble.

Damage is written byte by byte into a copy of a sound pool. What the core's own check can see as well, both see.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_image import PLACES, SLOT_OWNER, Image

import maru
import maru.check
from maru import Identity
from maru.check import Report, check_pool
from maru.errors import MaruError
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import spawn

SIZE, LARGE = 9_000, 60_000
QUERY = "size=4MiB&slab_bytes=256KiB&slots=256&processes=8&namespaces=16&checksum=always"
CROWDED = "size=1MiB&slab_bytes=64KiB&slots=60&processes=8"
DEAD = 5  # A process number that nobody ever had.

Damage = Callable[[Image], None]


def fill(pool: maru.Pool) -> None:
    """Two namespaces, two sizes, a prefix, one chunk of two parts."""
    keys = [key_of(n, "prefix") for n in range(6)]
    pool.put_many(b"".join(keys), [bytes_of(key, SIZE) for key in keys])
    for n in range(8):
        ns = pool.namespace(Identity(model=f"model {n % 2}", kv_layout="bytes"))
        pool.put(key_of(n, "large"), bytes_of(key_of(n, "large"), LARGE), namespace=ns)
    parts = [pool.reserve(key_of(0, "parts"), SIZE * 2, part=n, parts=2) for n in range(2)]
    for part in parts:
        part.buffer[:] = bytes(SIZE)
        part.seal()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound pool that nobody has attached."""
    place = tmp_path_factory.mktemp("original")
    with maru.Pool.create(f"maru:///kv?dir={place}&{QUERY}") as pool:
        assert pool.wait_ready(20)
        fill(pool)
        pool.remove(key_of(5, "prefix"))  # So that there is a header that once described something.
        folder: Path = pool.config.folder
    return folder


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool whose buckets are so full that chunks lie in the bucket after their own."""
    place = tmp_path_factory.mktemp("crowded")
    with maru.Pool.create(f"maru:///kv?dir={place}&{CROWDED}") as pool:
        for n in range(200):
            pool.put(key_of(n), bytes_of(key_of(n), 4_000))
        folder: Path = pool.config.folder
    return folder


@pytest.fixture
def image(original: Path, tmp_path: Path) -> Image:
    return Image(original, tmp_path / "kv")


def check(image: Image, read_data: bool = False) -> Report:
    return check_pool(image.folder, read_data, pause_s=0)


# ---- the damages ----


def word_of(image: Image, slot: int, state: int, process: int) -> int:
    generation = image.get("slots_hot", slot, "word") >> 16
    return state | process << 8 | generation << 16


def first(image: Image) -> int:
    return image.slots()[0]


def free_twin(image: Image) -> tuple[int, int]:
    """A sealed slot, and a free one of the same bucket."""
    free = set(image.slots(0))
    pairs = ((s, f) for s in image.slots() for f in free if s // 15 == f // 15)
    return next(pairs)


def set_word(state: int, process: int) -> Damage:
    return lambda image: image.set("slots_hot", first(image), "word", word_of(image, first(image), state, process))


def set_slot(field: str, value: int, section: str = "slots_hot") -> Damage:
    return lambda image: image.set(section, first(image), field, value)


def set_unit(owner: int) -> Damage:
    """The owner word of a chunk's head that is free."""
    return lambda image: image.set_owner(free_head(image), owner)


def free_head(image: Image) -> int:
    """A free unit at which a chunk begins."""
    per_slab = image.head("slab_bytes") // image.head("unit_bytes")
    for slab in range(image.head("slab_count")):
        units = image.get("slabs", slab, "word") >> 16 & 0xFFFFFF
        for unit in range(slab * per_slab, (slab + 1) * per_slab if units else 0, units or 1):
            if not image.owner(unit):
                return unit
    raise AssertionError("no chunk is free")


def set_slab(field: str, value: int) -> Damage:
    return lambda image: image.set("slabs", 0, field, value)


def spare_bit(image: Image) -> None:
    image.set("slabs", 0, "word", image.get("slabs", 0, "word") | 1 << 5)


def attach_dead(image: Image) -> None:
    image.set("processes", DEAD, "attached", 1)


def swap_extents(image: Image) -> None:
    one, two = [slot for slot in image.slots() if image.get("slots_hot", slot, "size_bytes") == LARGE][:2]
    first_extent, second_extent = image.get("slots_hot", one, "extent"), image.get("slots_hot", two, "extent")
    image.set("slots_hot", one, "extent", second_extent)
    image.set("slots_hot", two, "extent", first_extent)


def twin(image: Image) -> None:
    image.copy_slot(*free_twin(image))


def flip_data(image: Image) -> None:
    place = image.data_place(image.unit_of(first(image))) + 100
    image.write(place, 1, image.read(place, 1, image.segment) ^ 1, image.segment)


def flip_key(image: Image) -> None:
    """Keys of other buckets: one wrong bit may by chance belong to the same bucket."""
    for slot in image.slots()[:4]:
        image.set("slots_hot", slot, "key_lo", image.get("slots_hot", slot, "key_lo") ^ 0xFF << 20)


def forget_space(image: Image) -> None:
    for slab in range(image.head("slab_count")):
        image.set("slabs", slab, "real_bytes", 1)


def live_bit(process: int) -> Damage:
    return lambda image: image.write(PLACES["Superblock"]["live"][0], 8, 1 << process)


def tag_free(image: Image) -> None:
    image.write(image.tag_place(image.slots(0)[0]), 4, 77)


def leak(image: Image) -> None:
    image.set_owner(free_head(image), SLOT_OWNER << 62 | first(image))


def inside(image: Image) -> None:
    image.set_owner(image.unit_of(first(image)) + 1, SLOT_OWNER << 62 | first(image))


def namespace_twice(image: Image) -> None:
    image.set("namespaces", 3, "digest", image.get("namespaces", 1, "digest"))
    image.set("namespaces", 3, "word", 1)


def header(field: str, value: int) -> Damage:
    return lambda image: image.set_header(image.unit_of(first(image)), field, value)


def segment_header(field: str, value: int) -> Damage:
    return lambda image: image.write(*PLACES["SegmentHeader"][field], value, image.segment)


def cut_segment(image: Image) -> None:
    with image.segment.open("r+b") as file:
        file.truncate(image.segment.stat().st_size - 1)


def leftover(damage: Damage) -> Damage:
    """The same, by a dead process whose row says that somebody will clean up after it."""

    def both(image: Image) -> None:
        damage(image)
        attach_dead(image)

    return both


PROCESS_OWNER = 1 << 62 | DEAD
DRAINING = 2 | DEAD << 8

# name: (finding, damage). What a name ends in tells variants of one finding apart.
DAMAGES: dict[str, tuple[str, Damage]] = {
    "state 9": ("slot.state", set_word(9, 255)),
    "spare bit of a word": ("slot.word", set_word(2 | 1 << 5, 255)),
    "sealed by somebody": ("slot.word", set_word(2, 3)),
    "free with a process": ("slot.word", lambda image: image.set("slots_hot", image.slots(0)[0], "word", 3 << 8)),
    "quarantined by somebody": ("slot.word", set_word(6, 3)),
    "tag of a free slot": ("slot.tag-of-free", tag_free),
    "reserved by nobody": ("slot.stranded", set_word(1, 255)),
    "evicting by a stranger": ("slot.stranded", set_word(3, DEAD)),
    "reserved by the dead": ("slot.dead", leftover(set_word(1, DEAD))),
    "namespace not in use": ("slot.namespace", set_slot("namespace_id", 9)),
    "namespace out of range": ("slot.namespace", set_slot("namespace_id", 1 << 31)),
    "crooked extent": ("slot.extent", set_slot("extent", 1)),
    "extent beyond the end": ("slot.extent", set_slot("extent", 1 << 40)),
    "extent in a ninth segment": ("slot.extent", set_slot("extent", 8 << 56)),
    "no size": ("slot.extent", set_slot("size_bytes", 0)),
    "too large": ("slot.extent", set_slot("size_bytes", 1 << 62)),
    "extents swapped": ("slot.owner", swap_extents),
    "other size": ("slot.slab", set_slot("size_bytes", 200_000)),
    "space not real": ("slot.unreal", forget_space),
    "tag wrong": ("slot.tag", lambda image: image.write(image.tag_place(first(image)), 4, 1)),
    "tag gone": ("slot.tag", lambda image: image.write(image.tag_place(first(image)), 4, 0)),
    "key wrong": ("slot.bucket", flip_key),
    "twin slot": ("slot.twice", twin),
    "no parts": ("slot.parts", set_slot("parts", 0, "slots_cold")),
    "parts missing": ("slot.parts", set_slot("parts", 3 | 5 << 16, "slots_cold")),
    "header of another key": ("header.mismatch", header("key_hi", 1)),
    "header of another size": ("header.mismatch", header("size_bytes", 1)),
    "header of another generation": ("header.mismatch", header("generation", 1 << 20)),
    "header of another namespace": ("header.mismatch", header("namespace_digest", 1)),
    "header of another cut": ("header.mismatch", header("chunk_units", 1)),
    "header with another checksum": ("header.mismatch", header("checksum", 1)),
    "header cleared": ("header.mismatch", header("sealed", 0)),
    "header of nothing": ("header.stale", lambda image: image.set_header(free_head(image), "sealed", 1)),
    "mark wrong": ("header.mark", header("sealed", 12345)),
    "bytes wrong": ("slot.bytes", flip_data),
    "crooked owner": ("unit.word", set_unit(5)),
    "owned by a stranger": ("unit.stranded", set_unit(PROCESS_OWNER)),
    "owned by the dead": ("unit.dead", leftover(set_unit(PROCESS_OWNER))),
    "cooling for ever": ("unit.cooling", set_unit(3 << 62 | 1 << 50)),
    "owned by a slot too far": ("unit.slot", set_unit(SLOT_OWNER << 62 | 1 << 40)),
    "leaked": ("unit.leaked", leak),
    "owner inside a chunk": ("unit.inside", inside),
    "slab state 7": ("slab.state", set_slab("word", 7)),
    "slab with spare bits": ("slab.word", spare_bit),
    "slab cut to nothing": ("slab.size", set_slab("word", 1 | 255 << 8)),
    "slab with too many bytes": ("slab.real", set_slab("real_bytes", 1 << 50)),
    "slab drained by a stranger": ("slab.stranded", set_slab("word", DRAINING | 3 << 16)),
    "slab drained by the dead": ("slab.dead", leftover(set_slab("word", DRAINING | 3 << 16))),
    "attached 2": ("process.attached", lambda image: image.set("processes", DEAD, "attached", 2)),
    "dead process": ("process.dead", attach_dead),
    "pins of the dead": ("process.dead-pins", leftover(lambda image: image.set_pin(DEAD, 3, 1))),
    "pins of a stranger": ("process.stranded-pins", lambda image: image.set_pin(DEAD, 3, 1)),
    "live bit of a stranger": ("process.live-bit", live_bit(DEAD)),
    "live bit beyond the limit": ("process.live-bit", live_bit(60)),
    "lock of the dead": ("shard.dead", lambda image: image.set("shards", 0, "owner", (DEAD + 1) | 9 << 8)),
    "lock of nobody": ("shard.owner", lambda image: image.set("shards", 0, "owner", 200)),
    "namespace row 7": ("namespace.word", lambda image: image.set("namespaces", 4, "word", 7)),
    "no default namespace": ("namespace.word", lambda image: image.set("namespaces", 0, "word", 0)),
    "namespace twice": ("namespace.twice", namespace_twice),
    "segment missing": ("segment.file", lambda image: image.segment.unlink()),
    "segment cut off": ("segment.header", cut_segment),
    "segment of another pool": ("segment.header", segment_header("pool_uuid", 1)),
    "segment of something else": ("segment.header", segment_header("magic", 1)),
    "segment that disagrees": ("segment.header", segment_header("first_slab", 3)),
    "segment lost": ("segment.state", lambda image: image.set("segments", 0, "word", 3 | 1 << 8)),
    "another boot": ("superblock.boot", lambda image: image.set_head("boot_id", 1)),
    "children miscounted": ("hint.children", set_slot("children", 99)),
    "lock file missing": ("lock.file", lambda image: (image.folder / "lock").unlink()),
}  # fmt: skip
NEEDS_DATA = {"header.mark", "slot.bytes"}
NOTES = {"segment.state", "superblock.boot", "hint.children"}
LEFTOVERS = {"slot.dead", "unit.dead", "slab.dead", "process.dead", "process.dead-pins", "shard.dead"}
LIVING = {"slot.revoked", "slot.revoked-by-all", "slot.overdue", "slot.dead-part", "process.pins-free", "shard.held"}


def test_the_pool_that_is_damaged_is_sound_before(image: Image) -> None:
    report = check(image, read_data=True)
    assert report.findings == []
    assert report.figures["sealed"] == 14
    assert report.figures["bytes_verified"] == 5 * SIZE + 8 * LARGE + 2 * SIZE


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(image: Image, name: str) -> None:
    code, damage = DAMAGES[name]
    damage(image)
    report = check(image, read_data=code in NEEDS_DATA)
    severity = "note" if code in NOTES else "leftover" if code in LEFTOVERS else "error"
    assert (code, severity) in {(finding.code, finding.severity) for finding in report.findings}
    assert report.is_sound == (severity == "note")
    if severity == "leftover":
        assert report.count("error") == 0
    document = json.loads(json.dumps(report.document()))
    assert all(finding["do"] and finding["what"] for finding in document["findings"])


def test_a_finding_names_the_byte(image: Image) -> None:
    slot = first(image)
    place = image.head("offset_slots_hot") + slot * 64
    image.write(place, 1, 9)
    findings = [finding for finding in check(image).findings if finding.code == "slot.state"]
    assert [(f.kind, f.number, f.file, f.byte_offset) for f in findings] == [("slot", slot, "index", place)]


def test_words_that_change_between_looks_are_on_their_way_and_no_finding(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, states = first(image), iter((10, 11))

    def move_on(_: float) -> None:
        image.set("slots_hot", slot, "word", word_of(image, slot, next(states), 255))

    set_word(9, 255)(image)
    monkeypatch.setattr("maru.check.looks.time.sleep", move_on)
    assert [finding for finding in check(image).findings if finding.kind == "slot"] == []
    assert image.get("slots_hot", slot, "word") & 15 > 9


def test_a_bucket_that_hides_its_overflow_is_found(crowded: Path, tmp_path: Path) -> None:
    image = Image(crowded, tmp_path / "kv")
    assert check(image).findings == []
    for bucket in range(image.head("slot_count") // 15):
        image.set("buckets", bucket, "overflowed", 0)
    assert {finding.code for finding in check(image).findings} == {"slot.overflow"}


def test_every_kind_of_finding_has_a_test() -> None:
    sources = Path(maru.check.__file__).parent.glob("*.py")
    kinds = "slot|unit|slab|header|process|shard|namespace|segment|superblock|hint|lock"
    known = {code for file in sources for code in re.findall(rf'"((?:{kinds})\.[a-z-]+)"', file.read_text())}
    assert known == {code for code, _ in DAMAGES.values()} | LIVING | {"slot.overflow"}


# ---- agreement with the core's own check ----

# Not among them is what the housekeeper of an attaching process puts right before the core's check looks: space that
# is not real yet, and chunks of a namespace that does not count.
SEEN_BY_BOTH = [
    "state 9", "tag of a free slot", "evicting by a stranger", "crooked extent", "extent beyond the end",
    "extents swapped", "other size", "tag gone", "key wrong", "twin slot", "header of another key",
    "header of another size", "header cleared", "bytes wrong", "owned by a stranger", "owned by a slot too far",
    "leaked", "slab state 7", "slab with too many bytes", "slab cut to nothing", "slab drained by a stranger",
    "pins of a stranger", "live bit of a stranger", "lock of nobody",
]  # fmt: skip


def say_what_the_core_sees(place: str, count: int) -> None:
    for number in range(count):
        with maru.Pool.attach(f"maru:///kv{number}?dir={place}&populate=off") as pool:
            print(json.dumps(pool.check()), flush=True)


def test_the_core_and_the_independent_reader_agree(original: Path, tmp_path: Path) -> None:
    names = ["", *SEEN_BY_BOTH]
    ours = []
    for number, name in enumerate(names):
        image = Image(original, tmp_path / f"kv{number}")
        if name:
            DAMAGES[name][1](image)
        ours.append(check(image, read_data=True).is_sound)
    with spawn(say_what_the_core_sees, str(tmp_path), len(names)) as core_process:
        theirs = [json.loads(core_process.line()) == [] for _ in names]
    assert dict(zip(names, ours, strict=True)) == dict(zip(names, theirs, strict=True))
    assert ours == [True] + [False] * len(SEEN_BY_BOTH)


# ---- hostile content ----


@pytest.fixture(scope="module")
def target(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """One copy for all examples; each example puts the bytes back."""
    return Image(original, tmp_path_factory.mktemp("flips") / "kv")


def answer(image: Image) -> str:
    try:
        return f"{len(check(image, read_data=True).findings)} findings"
    except MaruError as error:
        return type(error).__name__ if str(error) else ""


PATCHES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 831), st.integers(4096, 60_000), st.floats(0, 1, exclude_max=True)),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=12,
)


@given(patches=PATCHES)
@settings(max_examples=150, deadline=5_000)
def test_flipped_bytes_are_findings_or_a_sentence(target: Image, patches: list[tuple[float, int]]) -> None:
    before = target.index.read_bytes()
    spoilt = bytearray(before)
    for place, bits in patches:
        spoilt[place if isinstance(place, int) else int(place * len(spoilt))] ^= bits
    target.index.write_bytes(spoilt)
    try:
        assert answer(target)
        assert target.index.read_bytes() == spoilt  # Looking changed nothing.
    finally:
        target.index.write_bytes(before)


SECTIONS = ["processes", "namespaces", "shards", "buckets", "slots_hot", "slots_cold", "slabs", "owners", "pins"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_noise_is_survived(target: Image, section: str) -> None:
    before = target.index.read_bytes()
    start = target.head(f"offset_{section}")
    noise = random.Random(f"noise in {section}").randbytes(8192)
    target.index.write_bytes(before[:start] + noise + before[start + 8192 :])
    try:
        assert answer(target) not in ("0 findings", "PoolMismatch")
    finally:
        target.index.write_bytes(before)


def test_a_segment_of_noise_is_survived(image: Image) -> None:
    size = image.segment.stat().st_size
    keep = image.segment.read_bytes()[:4096]
    image.segment.write_bytes(keep + bytes(itertools.islice(itertools.cycle(range(256)), size - 4096)))
    assert {f.code for f in check(image, read_data=True).findings} >= {"header.mismatch", "header.mark", "slot.bytes"}
