"""A pool with `audit=` in its URL: what this process stores, hits and removes stands in the log, by namespace."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import maru
from maru.audit import Wanted, entries_in, make_key, read_key, verify_log
from maru.errors import AuditError, BadUrl, UnsafeCredentials

CHUNK = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audited(pool_url: str, folder: Path) -> Iterator[maru.Pool]:
    with maru.Pool.create(f"{pool_url}&audit={folder}") as pool:
        yield pool


def space_of(pool: maru.Pool, tenant: str) -> maru.Namespace:
    return pool.namespace(maru.Identity(model="m", kv_layout="l", tenant=tenant))


def sums(folder: Path, what: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(tenant, namespace) -> (calls, chunks, bytes) over all lines."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for line in entries_in(folder, Wanted(what=what)):
        where = line["tenant"], line["namespace"]
        before = found.get(where, (0, 0, 0))
        found[where] = tuple(a + line[name] for a, name in zip(before, ("calls", "chunks", "bytes"), strict=True))  # type: ignore[assignment]
    return found


def test_what_is_stored_hit_and_removed_is_told_by_namespace(audited: maru.Pool, folder: Path) -> None:
    blue, red = space_of(audited, "blue"), space_of(audited, "red")
    keys = blue.chunk_keys(array("I", range(40)), 8)
    audited.put_many(keys, [b"b" * CHUNK] * 5, namespace=blue)
    audited.put(b"r" * 16, b"r" * CHUNK, namespace=red)
    audited.pin(keys).release()
    audited.pin(keys[:32]).release()
    assert audited.get(b"r" * 16) is not None
    assert audited.read_into(keys[:16], [bytearray(CHUNK)]) == 1
    audited.remove(b"r" * 16)
    of_blue, of_red = ("blue", blue.digest.hex()), ("red", red.digest.hex())
    audited.close()
    assert sums(folder, "stored") == {of_blue: (5, 5, 5 * CHUNK), of_red: (1, 1, CHUNK)}
    assert sums(folder, "hit") == {of_blue: (3, 8, 8 * CHUNK), of_red: (1, 1, CHUNK)}
    assert sums(folder, "removed") == {of_red: (1, 1, CHUNK)}
    assert verify_log(folder).is_good


def test_a_run_of_keys_of_two_namespaces_is_told_of_both(audited: maru.Pool, folder: Path) -> None:
    blue, red = space_of(audited, "blue"), space_of(audited, "red")
    audited.put(b"b" * 16, b"b" * CHUNK, namespace=blue)
    audited.put(b"r" * 16, b"r" * CHUNK, namespace=red)
    audited.pin(b"b" * 16 + b"r" * 16).release()
    of_blue, of_red = ("blue", blue.digest.hex()), ("red", red.digest.hex())
    audited.close()
    assert sums(folder, "hit") == {of_blue: (1, 1, CHUNK), of_red: (1, 1, CHUNK)}


def test_a_miss_and_a_look_are_no_hit(audited: maru.Pool, folder: Path) -> None:
    audited.put(b"b" * 16, b"b" * CHUNK)
    assert audited.lookup(b"b" * 16) == 1
    assert audited.get(b"n" * 16) is None
    assert not audited.remove(b"n" * 16)
    audited.close()
    assert {line["what"] for line in entries_in(folder)} == {"opened", "stored"}


def test_who_it_was_is_the_process(audited: maru.Pool, folder: Path) -> None:
    audited.put(b"b" * 16, b"b" * CHUNK)
    audited.close()
    (line,) = entries_in(folder, Wanted(what="stored"))
    assert line["process"].startswith(f"{os.getuid()}:{os.getpid()} ")
    assert line["pool"] == audited.config.name


def test_a_forked_child_is_told_apart(audited: maru.Pool, folder: Path) -> None:
    audited.put(b"b" * 16, b"b" * CHUNK)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if audited.get(b"b" * 16) is not None else 2
            audited.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    audited.close()
    (stored,), (hit,) = (list(entries_in(folder, Wanted(what=what))) for what in ("stored", "hit"))
    assert f":{os.getpid()} " in stored["process"]
    assert f":{child} " in hit["process"]
    assert (stored["calls"], hit["calls"]) == (1, 1)


def test_without_the_option_nothing_is_counted(pool: maru.Pool) -> None:
    pool.put(b"b" * 16, b"b" * CHUNK)
    assert pool.get(b"b" * 16) is not None
    assert pool._tally() == []


def test_a_log_that_cannot_be_kept_is_an_error_at_the_door(pool_url: str, folder: Path, pool: maru.Pool) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(AuditError, match="mode 0755"):
        maru.Pool.attach(f"{pool_url}&audit={folder}")
    assert [row["alive"] for row in pool.stats()["processes"]] == [True]


def test_a_relative_folder_is_refused(pool_url: str) -> None:
    with pytest.raises(BadUrl, match="audit= takes an absolute path"):
        maru.Pool.open(f"{pool_url}&audit=here")


def test_the_chain_has_the_key_that_the_url_names(pool_url: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "chain.key"
    make_key(path)
    with maru.Pool.create(f"{pool_url}&audit={folder}&audit_key={path}") as pool:
        pool.put(b"b" * 16, b"b" * CHUNK)
    assert verify_log(folder, read_key(path)).is_good
    path.chmod(0o644)
    with pytest.raises(UnsafeCredentials, match="mode 0644"):
        maru.Pool.attach(f"{pool_url}&audit={folder}&audit_key={path}")
