"""Two tenants whose chunks lie in one folder, and somebody who can write there: what was not theirs is a miss.

Names that would lead out of a folder (of pools, namespaces, tenants, places, logs) are refused, or lead nowhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import maru
from maru.errors import MaruError
from maru.native import core
from maru.pool import Namespace
from maru.tier.opening import parse_tier_url
from maru.tiering.tiered import TieredPool
from tiering.conftest import IDENTITY, PREFIX_CHUNKS, Story, are_right, keys_in, prefix_of, put

FLUSH_S = 20.0
RED, BLUE = replace(IDENTITY, tenant="red"), replace(IDENTITY, tenant="blue")


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "master.keys"
    path.write_text(f"first {os.urandom(32).hex()}\n")
    path.chmod(0o600)
    return path


def sealed_tier(story: Story, keys: Path) -> str:
    return f"{story.tier}&write=through&encrypt=tenant&keys=file:{keys}"


def lies_below(pool: TieredPool, namespace: Namespace, number: int) -> bytes:
    """A prefix that is below and nowhere else."""
    packed = prefix_of(namespace, number)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    leaves(pool, packed)
    return packed


def leaves(pool: TieredPool, packed: bytes) -> None:
    for key in reversed(keys_in(packed)):
        core.PoolCore.remove(pool, key)


def object_of(story: Story, key: bytes) -> Path:
    """The file with this chunk in it; of several generations' the newest."""
    return max(story.folder.rglob(key.hex()), key=lambda path: path.stat().st_mtime_ns)


def read_anew(story: Story, tier: str, identity: maru.Identity, packed: bytes) -> int:
    """How many chunks a process gets that has seen nothing of this; every byte of them is compared."""
    pool = story.handle(tier)
    pool.ladder.promote(packed, pool.namespace(identity), None)
    return are_right(pool, packed)


# ---- objects --------------------------------------------------------------------------------------------------


def put_one_under_anothers_name(victim: Path, mine: Path) -> None:
    shutil.copyfile(mine, victim)


def put_ones_own_name_in_front(victim: Path, mine: Path) -> None:
    """The attacker's header before the victim's frames."""
    victim.write_bytes(mine.read_bytes()[:172] + victim.read_bytes()[172:])


def put_ones_own_frames_behind(victim: Path, mine: Path) -> None:
    victim.write_bytes(victim.read_bytes()[:172] + mine.read_bytes()[172:])


def leave_as_it_is(victim: Path, mine: Path) -> None:
    assert victim.is_file()
    assert mine.is_file()


SWAPS = [put_one_under_anothers_name, put_ones_own_name_in_front, put_ones_own_frames_behind, leave_as_it_is]


@pytest.mark.parametrize("swap", SWAPS)
def test_another_tenants_object_under_ones_own_name_is_a_miss(
    story: Story, master: Path, swap: Callable[[Path, Path], None]
) -> None:
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    red, blue = pool.namespace(RED), pool.namespace(BLUE)
    victims, mine = lies_below(pool, red, 1), lies_below(pool, blue, 2)
    for victim, own in zip(keys_in(victims), keys_in(mine), strict=True):
        swap(object_of(story, victim), object_of(story, own))
    expected = PREFIX_CHUNKS if swap is leave_as_it_is else 0
    assert read_anew(story, tier, RED, victims) == expected


@pytest.mark.parametrize("swap", SWAPS)
def test_another_chunk_of_the_same_tenant_is_a_miss_too(
    story: Story, master: Path, swap: Callable[[Path, Path], None]
) -> None:
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    red = pool.namespace(RED)
    one, other = lies_below(pool, red, 1), lies_below(pool, red, 2)
    for victim, own in zip(keys_in(one), keys_in(other), strict=True):
        swap(object_of(story, victim), object_of(story, own))
    expected = PREFIX_CHUNKS if swap is leave_as_it_is else 0
    assert read_anew(story, tier, RED, one) == expected


def test_another_tenants_objects_moved_to_where_ones_own_lie_are_misses(story: Story, master: Path) -> None:
    """Blue knows red's keys, and moves red's objects, marker and all, to where its own would be."""
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    red, blue = pool.namespace(RED), pool.namespace(BLUE)
    packed = lies_below(pool, red, 1)
    lies_below(pool, blue, 2)
    into = object_of(story, keys_in(prefix_of(blue, 2))[0])
    for key in keys_in(packed):
        here = object_of(story, key)
        place = Path(str(here).replace(str(here.parent), str(into.parent)))
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(here, place)
    assert read_anew(story, tier, BLUE, packed) == 0
    assert read_anew(story, tier, RED, packed) == PREFIX_CHUNKS


@pytest.mark.parametrize("is_bumped", [True, False])
def test_what_a_bump_ended_does_not_come_back_with_its_old_objects(
    story: Story, master: Path, is_bumped: bool, tmp_path: Path
) -> None:
    """Whoever kept a copy of everything that lay there puts the objects, without their marker, back into their place
    after the bump. (The marker too would be an old state of the whole place: what then counts, its own pool knows.)
    """
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    red = pool.namespace(RED)
    packed = lies_below(pool, red, 1)
    kept = tmp_path / "kept"
    shutil.copytree(story.folder, kept)
    if is_bumped:
        red.bump()
    lies_below(pool, red, 2)
    for path in kept.rglob("*"):
        old = story.folder / path.relative_to(kept)
        if path.is_file() and path.name in {key.hex() for key in keys_in(packed)}:
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, old)
    assert read_anew(story, tier, RED, packed) == (0 if is_bumped else PREFIX_CHUNKS)


@pytest.mark.parametrize("is_bumped", [True, False])
def test_a_place_that_is_set_back_to_before_a_bump_gives_nothing_of_it(
    story: Story, master: Path, is_bumped: bool, tmp_path: Path
) -> None:
    """Objects and marker: all of the folder as it was."""
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    red = pool.namespace(RED)
    packed = lies_below(pool, red, 1)
    kept = tmp_path / "kept"
    shutil.copytree(story.folder, kept)
    if is_bumped:
        red.bump()
    lies_below(pool, red, 2)
    pool.close()
    shutil.rmtree(story.folder)
    shutil.copytree(kept, story.folder)
    assert read_anew(story, tier, RED, packed) == (0 if is_bumped else PREFIX_CHUNKS)


def test_a_key_that_is_not_the_tenants_opens_nothing(story: Story, master: Path, tmp_path: Path) -> None:
    tier = sealed_tier(story, master)
    pool = story.handle(tier)
    packed = lies_below(pool, pool.namespace(RED), 1)
    other = tmp_path / "other.keys"
    other.write_text(f"first {os.urandom(32).hex()}\n")  # The same id, other bits.
    other.chmod(0o600)
    kept = tmp_path / "kept"
    shutil.copytree(story.folder, kept)
    pool.close()
    assert read_anew(story, sealed_tier(story, other), RED, packed) == 0
    story.end()
    shutil.rmtree(story.folder)
    shutil.copytree(kept, story.folder)  # What did not open was removed.
    maru.Pool.create(story.url).close()
    assert read_anew(story, tier, RED, packed) == PREFIX_CHUNKS


def test_an_object_without_a_seal_is_not_believed_where_there_are_keys(story: Story, master: Path) -> None:
    plain = story.handle(story.tier + "&write=through")
    packed = lies_below(plain, plain.namespace(RED), 1)
    plain.close()
    assert read_anew(story, sealed_tier(story, master), RED, packed) == 0


def test_nothing_in_a_sealed_folder_names_a_tenant_or_shows_a_byte(story: Story, master: Path) -> None:
    names = {"red-herring-incorporated", "blue-whale-limited"}
    pool = story.handle(sealed_tier(story, master))
    for number, name in enumerate(sorted(names)):
        space = pool.namespace(replace(IDENTITY, tenant=name))
        lies_below(pool, space, number)
    files = [path for path in story.folder.rglob("*") if path.is_file()]
    assert len(files) > 2 * PREFIX_CHUNKS
    for path in files:
        content = path.read_bytes()
        for name in names:
            assert name.encode() not in content
            assert name not in str(path.relative_to(story.folder))


# ---- names that lead elsewhere --------------------------------------------------------------------------------

LEADS_OUT = [
    "../out", "../../out", "a/../../out", "/out", "..", ".", "..%2fout", "%2e%2e%2fout", "a%00b", "..%00", "%ff",
    "\uff0e\uff0e/out", "\u2024\u2024/out", "..\u2215out", "..\u2044out", "a\u0000b", "a\nb", "n" * 65, "n" * 5000,
    "\u202eout", "kv\u200b", "\u043av", "~", "~root", "-rf", "$(touch out)", "a b",
]  # fmt: skip
HARMLESS = {"-rf"}  # A name like any other.


def seen(folder: Path) -> set[str]:
    """All that lies in a folder, and beside it."""
    return {str(path) for path in folder.rglob("*")} | {str(path) for path in folder.parent.iterdir()}


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder two floors down, so that what leads out of it lands where the test looks."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", LEADS_OUT)
def test_a_pools_name_makes_nothing_outside_its_folder(closed: Path, name: str) -> None:
    before = seen(closed.parent)
    url = f"maru:///{name}?dir={closed}&size=1MiB&slots=512&processes=4"
    for act in (maru.Pool.open, maru.Pool.create, maru.Pool.attach):
        try:
            act(url).close()
        except MaruError:
            continue
        assert name in HARMLESS
        maru.Pool.destroy(url, force=True)
    with pytest.raises(MaruError):
        maru.Pool.destroy(url, force=True)
    assert seen(closed.parent) == before


@pytest.mark.parametrize("name", [name for name in LEADS_OUT if "\0" not in name and "\n" not in name][::3])
def test_maru_serve_refuses_such_a_name_and_makes_nothing(closed: Path, name: str) -> None:
    before = seen(closed.parent)
    command = [sys.executable, "-m", "maru", "serve", f"{name}", "--listen", "tcp://127.0.0.1:0", "--http", "off"]
    done = subprocess.run(command, cwd=closed, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert seen(closed.parent) == before


@pytest.mark.parametrize("name", [name for name in LEADS_OUT if len(name.encode("utf-8", "replace")) <= 63])
def test_a_tenants_name_is_no_part_of_any_path(story: Story, name: str) -> None:
    """Whatever it is called: only digests name what lies in a folder."""
    pool = story.handle(story.tier + "&write=through")
    space = pool.namespace(replace(IDENTITY, tenant=name, model=f"../../{name}"))
    packed = prefix_of(space, 1)
    around = {path.name for path in story.folder.parent.iterdir()}
    put(pool, space, packed)
    assert pool.ladder.flush(FLUSH_S)
    leaves(pool, packed)
    assert pool.ladder.leading(packed, space) == PREFIX_CHUNKS
    assert {path.name for path in story.folder.parent.iterdir()} == around
    told = {path.name for path in story.folder.rglob("*")}
    assert not [one for one in told if name in one and len(name) > 2]


@pytest.mark.parametrize("tenant", ["t" * 64, "t" * 5000, "\u043a" * 32])
def test_a_tenants_name_that_is_too_long_is_refused_by_name(story: Story, tenant: str) -> None:
    pool = story.handle(story.tier)
    with pytest.raises((MaruError, ValueError), match="63"):
        pool.set_share(tenant, 0)
    with pytest.raises((MaruError, ValueError)):
        pool.namespace(replace(IDENTITY, tenant=tenant))


@pytest.mark.parametrize("path", ["../out", "a/../../out", "..", "a/..", "%2e%2e/out", "a%2f..%2f..%2fout", "a%00b"])
def test_a_places_path_does_not_lead_back_up(closed: Path, path: str) -> None:
    before = seen(closed.parent)
    for url in (f"file://{closed}/{path}?size=1GiB", f"nfs://{closed}/{path}", f"s3://bucket/{path}"):
        with pytest.raises(MaruError):
            parse_tier_url(url)
    assert seen(closed.parent) == before
    assert (
        parse_tier_url(f"file://{closed}/a..b?size=1GiB").place == f"{closed}/a..b"
    )  # A folder's name like any other.


@pytest.mark.parametrize("path", ["relative", "../out", "%2e%2e/out", "a%00b", "", "/dev/null/log"])
def test_an_audit_log_goes_where_its_url_says_or_nowhere(
    closed: Path, path: str, pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(closed)
    before = seen(closed.parent)
    with pytest.raises(MaruError):
        maru.Pool.open(f"{pool_url}&audit={path}")
    assert seen(closed.parent) == before


def test_an_audit_log_is_not_led_elsewhere_by_a_link(closed: Path, pool_url: str) -> None:
    target = closed / "target"
    target.mkdir(mode=0o700)
    (closed / "log").symlink_to(target)
    with pytest.raises(MaruError):
        maru.Pool.open(f"{pool_url}&audit={closed}/log")
    assert list(target.iterdir()) == []
