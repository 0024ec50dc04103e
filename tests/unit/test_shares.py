"""What a tenant is promised, what it may take, and what it may ask for its content."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import maru
from maru import Identity, Outcome
from maru.errors import ShareTooLarge
from maru.pool import Namespace
from maru.testing.content import bytes_of, is_right, key_of

SIZE = 16 << 10
CHUNKS = 64  # As many as the pool holds.
QUERY = f"?size={CHUNKS * SIZE}&slab_bytes={CHUNKS * SIZE // 4}&slots=600&processes=8&gate=off&unit_bytes=4096"


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(pool_url.partition("?")[0] + QUERY) as pool:
        yield pool


def namespace(pool: maru.Pool, tenant: str, **more: object) -> Namespace:
    return pool.namespace(Identity(model="m", kv_layout="x", tenant=tenant), **more)  # type: ignore[arg-type]


def store(pool: maru.Pool, tenant: str, *numbers: int, size: int = SIZE) -> list[Outcome]:
    ns = namespace(pool, tenant)
    return [pool.put(key_of(n, tenant), bytes_of(key_of(n, tenant), size), namespace=ns) for n in numbers]


def figures(pool: maru.Pool, tenant: str) -> dict[str, int]:
    return next(row for row in pool.stats()["tenants"] if row["name"] == tenant)


def used(pool: maru.Pool, tenant: str) -> float:
    """In chunks."""
    return figures(pool, tenant)["used_bytes"] / SIZE


def test_what_a_tenant_takes_is_told_in_whole_chunks(pool: maru.Pool) -> None:
    store(pool, "a", 1, 2)
    store(pool, "b", 1, size=SIZE - 4096 + 1)
    assert (used(pool, "a"), used(pool, "b"), used(pool, "default")) == (2, 1, 0)
    pool.remove(key_of(1, "a"))
    assert used(pool, "a") == 1
    assert pool.check() == []


def test_what_is_stored_without_a_namespace_is_the_default_tenants(pool: maru.Pool) -> None:
    pool.put(key_of(1), bytes(SIZE))
    pool.put(key_of(2), bytes(SIZE), namespace=namespace(pool, "default"))
    assert used(pool, "default") == 2


def test_a_reservation_and_a_draft_are_on_the_account_until_they_are_given_back(pool: maru.Pool) -> None:
    ns = namespace(pool, "a")
    held = pool.reserve(key_of(1), SIZE, namespace=ns)
    draft = pool.allocate(SIZE, namespace=ns)
    assert draft is not None
    assert used(pool, "a") == 2
    held.discard()
    draft.discard()
    assert used(pool, "a") == 0


def test_a_draft_goes_over_to_the_tenant_that_it_is_named_for(pool: maru.Pool) -> None:
    draft = pool.allocate(SIZE, namespace=namespace(pool, "a"))
    assert draft is not None
    assert draft.publish(key_of(1), namespace=namespace(pool, "b")) == Outcome.STORED
    assert (used(pool, "a"), used(pool, "b")) == (0, 1)


def test_a_draft_is_not_named_for_a_tenant_that_is_at_its_limit(pool: maru.Pool) -> None:
    pool.set_share("b", limit_bytes=SIZE, at_limit="refuse")
    store(pool, "b", 1)
    draft = pool.allocate(SIZE, namespace=namespace(pool, "a"))
    assert draft is not None
    assert draft.publish(key_of(2, "b"), namespace=namespace(pool, "b")) == Outcome.FULL
    assert (used(pool, "a"), used(pool, "b")) == (1, 1)


def test_what_dead_processes_took_goes_off_the_account(pool: maru.Pool) -> None:
    ns = namespace(pool, "a")
    pid = os.fork()
    if pid == 0:
        held = pool.reserve(key_of(1), SIZE, namespace=ns), pool.allocate(SIZE, namespace=ns)
        os.kill(os.getpid(), signal.SIGKILL)
        del held
    os.waitpid(pid, 0)
    assert used(pool, "a") == 2
    pool.reap()
    assert used(pool, "a") == 0
    assert pool.check() == []


def test_a_burst_evicts_its_own_before_anything_of_those_who_have_borrowed_less(pool: maru.Pool) -> None:
    pool.set_share("calm", 20 * SIZE)
    pool.set_share("burst", 20 * SIZE)
    store(pool, "calm", *range(22))
    store(pool, "burst", *range(400))
    assert used(pool, "calm") == 22
    assert all(pool.exists(key_of(n, "calm")) for n in range(22))


def test_borrowed_room_is_given_back_to_whoever_is_below_its_share(pool: maru.Pool) -> None:
    pool.set_share("early", 20 * SIZE)
    pool.set_share("late", 40 * SIZE)
    store(pool, "early", *range(CHUNKS))
    assert used(pool, "early") == CHUNKS
    assert set(store(pool, "late", *range(40))) == {Outcome.STORED}
    assert (used(pool, "early"), used(pool, "late")) == (CHUNKS - 40, 40)
    assert figures(pool, "early")["made_way"] == 40


def test_who_is_below_its_share_gives_nothing_of_its_own_while_others_have_borrowed(pool: maru.Pool) -> None:
    pool.set_share("cold", 40 * SIZE)
    store(pool, "cold", 0)
    store(pool, "hot", *range(CHUNKS))
    for n in range(1, 30):
        pool.get(key_of(CHUNKS - n, "hot"))
        store(pool, "cold", n)
    assert used(pool, "cold") == 30


@pytest.mark.parametrize("borrowed", [100, 4 * SIZE], ids=["small", "large"])
def test_who_is_below_its_share_takes_room_that_was_borrowed_for_another_chunk_size(
    pool: maru.Pool, borrowed: int
) -> None:
    pool.set_share("late", 40 * SIZE)
    store(pool, "early", *range(400), size=borrowed)
    for n in range(40):
        assert store(pool, "late", n) == [Outcome.STORED]
        assert used(pool, "late") == n + 1, "something of its own made way"
    assert all(pool.exists(key_of(n, "late")) for n in range(40))
    assert pool.check() == []


def test_who_has_borrowed_nothing_and_finds_no_lender_makes_way_for_itself(pool: maru.Pool) -> None:
    pool.set_share("a", 32 * SIZE)
    pool.set_share("b", 32 * SIZE)
    store(pool, "a", *range(32))
    store(pool, "b", *range(31), size=SIZE)
    assert store(pool, "b", *range(100, 140), size=2 * SIZE) == [Outcome.STORED] * 40
    assert used(pool, "a") == 32
    assert pool.check() == []


def test_a_slab_of_another_size_is_not_emptied_of_what_was_promised(pool: maru.Pool) -> None:
    pool.set_share("owner", CHUNKS * SIZE)
    store(pool, "owner", *range(CHUNKS))
    assert store(pool, "other", 1, size=3 * SIZE) == [Outcome.FULL]
    assert used(pool, "owner") == CHUNKS
    assert figures(pool, "other")["refused"] == 1


def test_without_shares_the_coldest_goes_whoever_it_is(pool: maru.Pool) -> None:
    store(pool, "a", *range(CHUNKS))
    store(pool, "b", *range(CHUNKS))
    # About: the coldest of sixteen candidates goes, and room is looked for in turns of the hand.
    assert used(pool, "a") <= 4


def test_at_its_limit_a_tenant_evicts_its_own_coldest(pool: maru.Pool) -> None:
    pool.set_share("a", limit_bytes=10 * SIZE)
    assert set(store(pool, "a", *range(30))) == {Outcome.STORED}
    assert used(pool, "a") == 10
    assert pool.exists(key_of(29, "a"))
    assert figures(pool, "a")["made_own_way"] == 20


def test_at_its_limit_a_tenant_makes_room_among_its_own_of_any_size(pool: maru.Pool) -> None:
    pool.set_share("a", limit_bytes=10 * SIZE)
    store(pool, "a", *range(10))
    assert store(pool, "a", 10, size=4 * SIZE) == [Outcome.STORED]
    assert used(pool, "a") == 10


def test_a_chunk_larger_than_the_limit_evicts_nothing(pool: maru.Pool) -> None:
    pool.set_share("a", limit_bytes=2 * SIZE)
    store(pool, "a", 1, 2)
    assert store(pool, "a", 3, size=3 * SIZE) == [Outcome.FULL]
    assert used(pool, "a") == 2


def test_at_its_limit_a_tenant_is_refused_where_that_was_asked(pool: maru.Pool) -> None:
    pool.set_share("a", limit_bytes=2 * SIZE, at_limit="refuse")
    assert store(pool, "a", 1, 2, 3) == [Outcome.STORED, Outcome.STORED, Outcome.FULL]
    assert figures(pool, "a")["refused"] == 1


def test_more_than_there_is_cannot_be_promised(pool: maru.Pool) -> None:
    pool.set_share("a", 40 * SIZE)
    with pytest.raises(ShareTooLarge, match="has not promised to others"):
        pool.set_share("b", 25 * SIZE)
    pool.set_share("b", 24 * SIZE)
    with pytest.raises(ShareTooLarge, match="is below the share"):
        pool.set_share("b", 24 * SIZE, limit_bytes=SIZE)
    assert figures(pool, "b")["share_bytes"] == 24 * SIZE
    pool.set_share("a", 0)
    pool.set_share("b", 64 * SIZE)


@pytest.mark.parametrize("bad", [("", 0, 0), ("a" * 64, 0, 0), ("a", -1, 0), ("a", 0, -1)])
def test_a_share_that_cannot_be_is_refused(pool: maru.Pool, bad: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        pool.set_share(*bad)


def test_what_is_awaited_can_be_promised_to_nobody(pool_url: str) -> None:
    size = CHUNKS * SIZE
    with maru.Pool.create(f"{pool_url.partition('?')[0]}{QUERY}&spare={size}") as pool:
        with pytest.raises(ShareTooLarge, match="than the 1 MiB"):
            pool.set_share("a", size + SIZE)
        maru.Pool.add_segment(pool.config.url, f"{pool.folder}/segment-added")
        pool.set_share("a", size + SIZE)


def test_a_gate_that_keeps_a_part_of_a_loop_keeps_nobody_from_a_share(pool_url: str) -> None:
    """A loop larger than the pool closes the gate: what comes in is refused, but not what was promised its place."""
    small, count = 4096, 1024
    query = f"?size={count * small}&slab_bytes=1MiB&unit_bytes=4096&slots=4000"
    with maru.Pool.create(pool_url.partition("?")[0] + query) as pool:
        pool.set_share("loop", count // 4 * small)
        pool.set_share("late", count // 2 * small)
        for _ in range(6):
            for key in (key_of(n, "loop") for n in range(count * 13 // 10)):
                if pool.get(key) is None:
                    pool.put(key, bytes(small), namespace=namespace(pool, "loop"))
        assert pool.stats()["counters"]["gate_refused"] > count // 2
        assert store(pool, "nobody", 1, size=small) == [Outcome.FULL]
        assert set(store(pool, "late", *range(count // 2), size=small)) == {Outcome.STORED}


def test_expired_chunks_protect_nobody(pool: maru.Pool) -> None:
    pool.set_share("a", CHUNKS * SIZE)
    ns = namespace(pool, "a")
    store(pool, "a", *range(CHUNKS))
    ns.bump()
    assert store(pool, "b", 1) == [Outcome.STORED]


def memory_of(pool: maru.Pool) -> bytes:
    """All bytes of the pool's data, as another process that maps it would see them."""
    row = pool.stats()["segments"][0]
    return Path(row["path"]).read_bytes()[row["data_offset"] :]


def leaves_by_removal(pool: maru.Pool, key: bytes) -> None:
    assert pool.remove(key)


def leaves_by_eviction(pool: maru.Pool, key: bytes) -> None:
    store(pool, "other", *range(2 * CHUNKS))


def leaves_by_another_chunk_size(pool: maru.Pool, key: bytes) -> None:
    store(pool, "other", *range(2 * CHUNKS), size=3 * SIZE)


def leaves_by_expiry(pool: maru.Pool, key: bytes) -> None:
    namespace(pool, "a").bump()
    pool.reap()


@pytest.mark.parametrize("policy", [(), ("zeroed",)])
@pytest.mark.parametrize(
    "leave", [leaves_by_removal, leaves_by_eviction, leaves_by_another_chunk_size, leaves_by_expiry]
)
def test_what_leaves_is_overwritten_where_the_namespace_says_so(
    pool: maru.Pool, policy: tuple[str, ...], leave: Callable[[maru.Pool, bytes], None]
) -> None:
    secret = b"a secret, word for word. " * (SIZE // 25)
    key = key_of(0, "a")
    pool.put(key, secret, namespace=namespace(pool, "a", policy=policy))
    assert secret in memory_of(pool)
    leave(pool, key)
    for _ in range(50):  # The sweep looks at some slots a call.
        if not pool.exists(key) and pool.stats()["chunks"]["stale"] == 0:
            break
        pool.wait(key_of(0, "nobody"), 0.1)  # The housekeeper's tick.
    assert not pool.exists(key)
    rest = secret[-4096:]  # What came after may be shorter, and may have begun at another place.
    assert (rest in memory_of(pool)) is (not policy and leave in (leaves_by_removal, leaves_by_expiry))
    assert pool.check() == []


def test_a_discarded_reservation_is_overwritten_too(pool: maru.Pool) -> None:
    secret = b"a secret, word for word. " * 100
    held = pool.reserve(key_of(0), SIZE, namespace=namespace(pool, "a", policy=["zeroed"]))
    memoryview(held.buffer)[: len(secret)] = secret  # type: ignore[arg-type]
    held.discard()
    assert secret not in memory_of(pool)


def test_nothing_is_stored_of_a_namespace_that_is_not_to_be_cached(pool: maru.Pool) -> None:
    ns = namespace(pool, "a", policy=["uncached"])
    assert pool.put(key_of(0), b"x", namespace=ns) == Outcome.FULL
    draft = pool.allocate(SIZE, namespace=ns)
    assert draft is not None
    assert draft.publish(key_of(0), namespace=ns) == Outcome.FULL
    assert not pool.exists(key_of(0))


def test_what_one_instance_asks_for_counts_for_all(pool: maru.Pool) -> None:
    namespace(pool, "a", policy=["memory-only"])
    namespace(pool, "a", policy=["zeroed"])
    namespace(pool, "a")
    row = next(row for row in pool.stats()["namespaces"] if row["tenant"] == "a")
    assert row["policy"] == ["zeroed", "memory-only"]


def test_a_tenants_name_that_would_be_cut_off_is_refused(pool: maru.Pool) -> None:
    namespace(pool, "t" * 63)
    with pytest.raises(ValueError, match="at most 63 bytes"):
        namespace(pool, "t" * 64)
    with pytest.raises(ValueError, match="at most 63 bytes"):
        namespace(pool, "\u043a" * 32)


def test_a_policy_that_there_is_none_of_is_refused(pool: maru.Pool) -> None:
    with pytest.raises(ValueError, match="there is no policy 'secret'; there are: zeroed, memory-only"):
        namespace(pool, "a", policy=["secret"])


def test_tenants_come_back_with_a_rebuilt_index(pool_url: str) -> None:
    url = pool_url.partition("?")[0] + QUERY
    with maru.Pool.create(url) as pool:
        store(pool, "a", 1, 2, 3)
        index = Path(pool.folder, "index")
    index.unlink()
    maru.Pool.rebuild(url)
    with maru.Pool.attach(url) as pool:
        assert used(pool, "a") == 3
        assert is_right(key_of(1, "a"), pool.get(key_of(1, "a")) or b"")
        assert pool.check() == []


def test_tiny_chunks_that_fill_the_index_are_beyond_a_share_too(pool_url: str) -> None:
    """Each takes a place of the index, of which there are fewer than units of memory."""
    url = f"{pool_url.partition('?')[0]}?size=1MiB&slab_bytes=64KiB&slots=64&unit_bytes=4096&processes=8&gate=off"
    with maru.Pool.create(url) as pool:
        slots = pool.stats()["chunks"]["slots"]
        place = (1 << 20) // slots
        pool.set_share("steady", (1 << 20) // 2)
        pool.set_share("tiny", (1 << 20) // 2)
        store(pool, "tiny", *range(200), size=100)
        assert figures(pool, "tiny")["used_bytes"] == pool.stats()["chunks"]["sealed"] * place
        assert used(pool, "tiny") * SIZE > (1 << 20) * 0.6, "it has borrowed: there is nobody else yet"
        wanted = slots // 2
        outcomes = store(pool, "steady", *range(1000, 1000 + wanted), size=100)
        assert outcomes.count(Outcome.STORED) >= 0.9 * wanted, "but for keys whose two buckets are another's by right"
        assert figures(pool, "tiny")["used_bytes"] >= (1 << 20) // 2 - place
        assert pool.check() == []
