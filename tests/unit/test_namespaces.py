"""Namespaces: who shares, how a whole model's chunks are invalidated at once, and how chunks grow old."""

from __future__ import annotations

import numpy as np
import pytest

import maru
from maru import Identity, Outcome
from maru.errors import NamespaceTableFull
from maru.testing.content import bytes_of, key_of

TOKENS = np.arange(1000, dtype=np.int32)


def test_equal_identities_are_one_namespace(pool: maru.Pool, pool_url: str) -> None:
    first = pool.namespace(Identity(model="m", kv_layout="x"))
    with maru.Pool.attach(pool_url) as other:
        second = other.namespace(Identity(model="m", kv_layout="x"))
        assert first.id == second.id
        assert first.digest == second.digest
        assert first.chunk_keys(TOKENS, 100) == second.chunk_keys(TOKENS, 100)


@pytest.mark.parametrize(
    "part", ["model", "kv_layout", "tenant", "revision", "tokenizer", "dtype", "parallel", "adapter", "salt"]
)
def test_any_difference_of_identity_gives_other_keys(pool: maru.Pool, part: str) -> None:
    base = {"model": "m", "kv_layout": "x"}
    ns = pool.namespace(Identity(**base))
    other = pool.namespace(Identity(**{**base, part: "different"}))
    assert ns.id != other.id
    assert ns.chunk_keys(TOKENS, 100) != other.chunk_keys(TOKENS, 100)


def test_moving_text_between_fields_is_another_identity() -> None:
    assert Identity(model="ab", kv_layout="c").encode() != Identity(model="a", kv_layout="bc").encode()


@pytest.mark.parametrize("bad", [{"model": ""}, {"kv_layout": ""}])
def test_an_identity_needs_a_model_and_a_layout(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="model and a kv_layout"):
        Identity(**{"model": "m", "kv_layout": "x", **bad})
    with pytest.raises(TypeError):
        Identity(model="m", kv_layout="x", revision=7)  # type: ignore[arg-type]


def test_keys_of_a_namespace_are_known_for_ever(pool: maru.Pool) -> None:
    ns = pool.namespace(Identity(model="m", kv_layout="x"))
    assert ns.digest.hex() == "9ac080684304101c0a4ce4f90a236949"
    assert ns.chunk_keys(TOKENS, 256)[:16].hex() == "d7ce745339d73d42baf08e1295b90f14"


def test_bump_turns_everything_stored_so_far_into_misses(pool: maru.Pool) -> None:
    ns = pool.namespace(Identity(model="m", kv_layout="x"))
    pool.put(key_of(0), b"old", namespace=ns)
    pool.put(key_of(1), b"of another namespace")
    writing = pool.reserve(key_of(2), 10, namespace=ns)
    view = pool.get(key_of(0))
    assert view is not None
    assert ns.bump() == ns.epoch
    assert pool.get(key_of(0)) is None
    assert pool.lookup(key_of(0)) == 0
    assert bytes(view) == b"old"  # Who reads it already goes on reading the same bytes.
    assert writing.seal() == Outcome.LOST
    assert pool.exists(key_of(1))
    assert pool.put(key_of(0), b"new", namespace=ns) == Outcome.STORED
    assert bytes(view) == b"old"
    fresh = pool.get(key_of(0))
    assert fresh is not None
    assert bytes(fresh) == b"new"
    del view, fresh
    pool.reap()
    assert pool.check() == []


def test_a_chunk_past_its_time_is_a_miss_and_its_key_is_free(pool: maru.Pool) -> None:
    assert pool.put(key_of(0), b"short-lived", ttl=1e-6) == Outcome.STORED
    assert pool.put(key_of(1), b"long-lived", ttl=3600) == Outcome.STORED
    assert pool.get(key_of(0)) is None
    assert pool.get(key_of(1)) is not None
    assert pool.put(key_of(0), b"again") == Outcome.STORED
    assert pool.check() == []


def test_a_namespace_s_ttl_holds_for_its_chunks(pool: maru.Pool) -> None:
    ns = pool.namespace(Identity(model="m", kv_layout="x"), ttl=1e-6)
    assert ns.ttl == pytest.approx(1e-6)
    pool.put(key_of(0), b"x", namespace=ns)
    pool.put(key_of(1), b"x", namespace=ns, ttl=3600)
    assert not pool.exists(key_of(0))
    assert pool.exists(key_of(1))


def test_expired_chunks_are_given_back_by_the_sweep(pool: maru.Pool) -> None:
    for n in range(20):
        pool.put(key_of(n), bytes_of(key_of(n), 5000), ttl=1e-6)
    pool.reap()
    assert pool.stats()["chunks"]["sealed"] == 0
    assert pool.stats()["used_bytes"] == 0


def test_a_full_table_of_namespaces_is_a_named_error(pool_url: str) -> None:
    with maru.Pool.create(pool_url + "&namespaces=3") as pool:
        for name in ("a", "b"):
            pool.namespace(Identity(model=name, kv_layout="x"))
        with pytest.raises(NamespaceTableFull) as refused:
            pool.namespace(Identity(model="c", kv_layout="x"))
        assert refused.value.namespace_limit == 3
        assert pool.namespace(Identity(model="a", kv_layout="x")).id == 1


def test_a_namespace_must_be_one(pool: maru.Pool) -> None:
    with pytest.raises(TypeError, match=r"Pool\.namespace"):
        pool.put(key_of(0), b"x", namespace="m")  # type: ignore[arg-type]
