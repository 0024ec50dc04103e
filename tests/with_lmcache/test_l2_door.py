"""The MP server's door: the adapter by LMCache's interface, made by LMCache's own factory."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L2AdapterListener, L2StoreResult
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

import maru
from maru.errors import BadUrl, MaruError, NoDaemon
from maru.string_keys import lmcache_namespace, pack_keys
from maru_lmcache.l2 import MaruL2Adapter, key_bytes

CHUNK_BYTES = 64 << 10
DEADLINE_S = 20.0


@pytest.fixture
def url(pool_name: str) -> str:
    return f"maru:///{pool_name}?size=8MiB&slots=1024"


def adapter_of(params: dict[str, Any]) -> Any:
    """An adapter as the server makes it from --l2-adapter."""
    spec = {"module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter", "adapter_params": params}
    return create_l2_adapter_from_registry(PluginL2AdapterConfig.from_dict({"type": "plugin", **spec}))


def memory(fill: int = 0, size: int = CHUNK_BYTES) -> TensorMemoryObj:
    shape, dtype = torch.Size([size]), torch.uint8
    metadata = MemoryObjMetadata(
        shape, dtype, address=0, phy_size=size, ref_count=1, fmt=MemoryFormat.KV_2LTD, shapes=[shape], dtypes=[dtype]
    )
    return TensorMemoryObj(torch.full(shape, fill, dtype=dtype), metadata, None)


def keys_of(numbers: range, **fields: Any) -> list[ObjectKey]:
    return [
        ObjectKey(**{"chunk_hash": number.to_bytes(32, "big"), "model_name": "m", "kv_rank": 1, **fields})
        for number in numbers
    ]


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.002)


class Server:
    """Calls an adapter as LMCache's controllers do: submit, wait for the descriptor, ask."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.adapter = adapter_of(params)

    def _wait(self, fd: int) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(DEADLINE_S * 1000), "the descriptor fires"
        os.eventfd_read(fd)

    def store(self, keys: list[ObjectKey], objects: list[Any]) -> L2StoreResult:
        task = self.adapter.submit_store_task(keys, objects)
        self._wait(self.adapter.get_store_event_fd())
        completed = self.adapter.pop_completed_store_tasks()
        assert set(completed) == {task}
        assert self.adapter.pop_completed_store_tasks() == {}
        return completed[task]

    def put(self, numbers: range) -> L2StoreResult:
        return self.store(keys_of(numbers), [memory(number % 251) for number in numbers])

    def _bits(self, task: int, fd: int, query: Callable[[int], Bitmap | None]) -> list[int]:
        self._wait(fd)
        bitmap = query(task)
        assert bitmap is not None
        assert query(task) is None, "a result is given once"
        return bitmap.get_indices_list()

    def lock(self, keys: list[ObjectKey]) -> list[int]:
        task = self.adapter.submit_lookup_and_lock_task(keys, {})
        return self._bits(task, self.adapter.get_lookup_and_lock_event_fd(), self.adapter.query_lookup_and_lock_result)

    def load(self, keys: list[ObjectKey], objects: list[Any]) -> list[int]:
        task = self.adapter.submit_load_task(keys, objects)
        return self._bits(task, self.adapter.get_load_event_fd(), self.adapter.query_load_result)

    def get(self, numbers: range) -> dict[int, int]:
        """Number -> the value that fills its chunk."""
        objects = [memory(255) for _ in numbers]
        found = self.load(keys_of(numbers), objects)
        assert all(int(objects[at].raw_data.min()) == 255 for at in range(len(numbers)) if at not in found)
        return {numbers[at]: int(objects[at].raw_data.unique().item()) for at in found}

    def status(self, name: str) -> Any:
        return self.adapter.report_status()[name]


@pytest.fixture
def servers(url: str) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(**params: Any) -> Server:
        made.append(Server({"pool": url, **params}))
        return made[-1]

    yield make
    for server in made:
        server.adapter.close()


@pytest.fixture
def server(servers: Callable[..., Server]) -> Server:
    return servers()


def test_what_one_server_stored_another_looks_up_and_loads(servers: Callable[..., Server]) -> None:
    first, second = servers(), servers()
    assert first.put(range(5)) == L2StoreResult(True, 5 * CHUNK_BYTES)
    assert second.lock(keys_of(range(7))) == [0, 1, 2, 3, 4]
    assert second.get(range(7)) == {number: number for number in range(5)}


def test_the_three_descriptors_differ_and_fire_for_their_own_tasks_only(servers: Callable[..., Server]) -> None:
    adapters = [servers().adapter, servers().adapter]
    fds = [
        fd
        for adapter in adapters
        for fd in (
            adapter.get_store_event_fd(),
            adapter.get_lookup_and_lock_event_fd(),
            adapter.get_load_event_fd(),
        )
    ]
    assert len(set(fds)) == 6
    task = adapters[0].submit_lookup_and_lock_task(keys_of(range(1)), {})
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    assert [fd for fd, _ in poller.poll(DEADLINE_S * 1000)] == [fds[1]]
    assert adapters[0].query_lookup_and_lock_result(task) is not None


def test_every_key_is_answered_by_itself(server: Server) -> None:
    server.put(range(2))
    server.put(range(4, 6))
    assert server.lock(keys_of(range(8))) == [0, 1, 4, 5]
    assert server.get(range(8)) == {0: 0, 1: 1, 4: 4, 5: 5}


def test_storing_what_is_there_already_succeeds_and_transfers_nothing(servers: Callable[..., Server]) -> None:
    first, second = servers(), servers()
    first.put(range(3))
    assert second.put(range(3)) == L2StoreResult(True, 0)
    assert second.put(range(4)) == L2StoreResult(True, CHUNK_BYTES)


def test_many_tasks_at_once_each_get_their_own_answer(server: Server) -> None:
    tasks = {server.adapter.submit_store_task(keys_of(range(n, n + 1)), [memory(n)]): n for n in range(40)}
    completed: dict[int, L2StoreResult] = {}

    def all_stored() -> bool:
        completed.update(server.adapter.pop_completed_store_tasks())
        return len(completed) == len(tasks)

    eventually(all_stored, "all stores")
    assert set(completed) == set(tasks)
    assert all(result.is_successful() for result in completed.values())
    lookups = {server.adapter.submit_lookup_and_lock_task(keys_of(range(n, n + 2)), {}): n for n in range(0, 40, 2)}
    answers: dict[int, Any] = {}

    def all_found() -> bool:
        for task in set(lookups) - set(answers):
            if (bitmap := server.adapter.query_lookup_and_lock_result(task)) is not None:
                answers[task] = bitmap
        return len(answers) == len(lookups)

    eventually(all_found, "all lookups")
    assert all(bitmap.popcount() == 2 for bitmap in answers.values())
    assert server.get(range(40)) == {number: number for number in range(40)}


# Locks


def pressed(server: Server, first: int) -> None:
    """Store more than the pool holds, each chunk for itself: what nobody holds goes."""
    for number in range(first, first + 300):
        server.put(range(number, number + 1))


def test_what_a_lookup_found_stays_until_it_is_unlocked(servers: Callable[..., Server]) -> None:
    reader, writer = servers(), servers()
    writer.put(range(8))
    assert reader.lock(keys_of(range(8))) == list(range(8))
    assert reader.lock(keys_of(range(4))) == list(range(4))
    assert reader.status("locks_held") == 12
    pressed(writer, 1000)
    assert reader.get(range(8)) == {number: number for number in range(8)}
    reader.adapter.submit_unlock(keys_of(range(8)))
    assert reader.status("locks_held") == 4
    pressed(writer, 2000)
    assert set(range(4)) <= set(reader.get(range(8))), "looked up twice, unlocked once"
    reader.adapter.submit_unlock(keys_of(range(8)))
    assert reader.status("locks_held") == 0
    eventually(lambda: (pressed(writer, 3000), not reader.get(range(8)))[1], "they are evicted")


def test_a_lock_that_nobody_takes_off_ends_by_age(servers: Callable[..., Server], url: str) -> None:
    server = servers(pool=url + "&pin_max_age=0.05")
    server.put(range(3))
    server.lock(keys_of(range(3)))
    eventually(lambda: server.status("locks_held") == 0, "the locks are over")
    assert server.status("locks_expired") == 3
    server.adapter.submit_unlock(keys_of(range(3)))
    with maru.Pool.attach(url) as pool:
        assert pool.stats()["counters"]["key_pins_expired"] == 3


def hold_locks_and_die(url: str, ready: Any) -> None:
    server = Server({"pool": url})
    server.put(range(4))
    ready.send(server.lock(keys_of(range(4))))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_server_leaves_its_chunks_and_none_of_its_locks(servers: Callable[..., Server], url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=hold_locks_and_die, args=(url, sender))
    child.start()
    assert receiver.poll(120)
    assert receiver.recv() == [0, 1, 2, 3]
    child.join(DEADLINE_S)
    assert child.exitcode == -signal.SIGKILL
    server = servers()
    assert server.get(range(4)) == {number: number for number in range(4)}

    def deleted() -> bool:
        server.adapter.delete(keys_of(range(4)))
        return server.get(range(4)) == {}

    eventually(deleted, "nobody pins them")
    with maru.Pool.attach(url) as pool:
        assert pool.check() == []


# What fails


def test_a_chunk_of_another_size_is_a_miss_and_the_buffer_stays_as_it_was(server: Server) -> None:
    server.store(keys_of(range(2)), [memory(1, CHUNK_BYTES // 2), memory(2, 2 * CHUNK_BYTES)])
    assert server.get(range(2)) == {}
    assert server.status("wrong_sizes") == 2


def test_a_full_pool_fails_the_store_and_nothing_else(server: Server, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        drafts = []
        while (draft := pool.allocate(CHUNK_BYTES)) is not None:
            drafts.append(draft)
        assert not server.put(range(3)).is_successful()
        assert server.lock(keys_of(range(3))) == []
        drafts.clear()
        del draft
        assert server.put(range(3)).is_successful()


def test_a_chunk_that_fits_no_slab_fails_the_store(server: Server) -> None:
    assert not server.store(keys_of(range(1)), [memory(0, 4 << 20)]).is_successful()
    assert server.status("failures") == 1
    assert server.put(range(1)).is_successful()


def test_a_destroyed_pool_is_misses_until_there_is_one_again(server: Server, url: str) -> None:
    server.put(range(3))
    server.lock(keys_of(range(3)))
    maru.Pool.destroy(url, force=True)
    eventually(lambda: server.lock(keys_of(range(3))) == [], "misses")
    assert server.get(range(3)) == {}
    assert not server.put(range(3)).is_successful()
    server.adapter.submit_unlock(keys_of(range(3)))
    with maru.Pool.create(url):
        eventually(lambda: server.put(range(3)).is_successful(), "stores in the new pool")
        assert server.get(range(3)) == {0: 0, 1: 1, 2: 2}


def test_a_task_that_makes_no_sense_is_answered_too(server: Server) -> None:
    assert not server.store(keys_of(range(2)), [memory()]).is_successful()
    assert server.load(keys_of(range(2)), [memory()]) == []
    assert server.lock([]) == []
    assert server.load([], []) == []
    assert server.store([], []) == L2StoreResult(True, 0)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"pool": "maru://10.1.2.3:6555"}, NoDaemon),
        ({"pool": "maru:///x?size=lots"}, BadUrl),
        ({"pool": "redis://localhost"}, BadUrl),
        ({}, BadUrl),
        ({"pool": "maru:///x", "threads": 0}, BadUrl),
        ({"pool": "maru:///x", "threads": "many"}, BadUrl),
        ({"pool": "maru:///x", "size": "8GiB"}, BadUrl),
    ],
)
def test_a_server_that_cannot_have_its_pool_does_not_start(params: dict[str, Any], error: type[MaruError]) -> None:
    with pytest.raises(error):
        adapter_of(params)


# Order, keys, house


def test_rows_of_one_lookup_are_chains_and_stores_continue_them(server: Server, url: str) -> None:
    rows = [keys_of(range(6), kv_rank=rank) for rank in range(3)]
    server.lock([key for row in rows for key in row])
    with maru.Pool.attach(url) as pool:
        mixed = [key for row in rows for key in row[:3]]
        server.store(mixed, [memory() for _ in mixed])
        assert pool.stats()["chunks"]["leaves"] == 3
        mixed = [row[at] for at in range(3, 6) for row in rows]
        server.store(mixed, [memory() for _ in mixed])
        assert pool.stats()["chunks"]["leaves"] == 3
        assert pool.stats()["chunks"]["sealed"] == 18


texts = st.text(st.characters(exclude_characters="@/\\\0", exclude_categories=()), max_size=8)
object_keys = st.builds(
    ObjectKey,
    chunk_hash=st.binary(max_size=6),
    model_name=texts | st.sampled_from(["1", "1 1", "m 1"]),
    kv_rank=st.integers(0, 1 << 40) | st.sampled_from([1, 11]),
    object_group_id=st.integers(0, 12),
    cache_salt=texts | st.sampled_from(["1", "1 1"]),
)


@given(object_keys, object_keys)
def test_two_object_keys_are_one_key_in_the_pool_only_if_they_are_equal(one: ObjectKey, other: ObjectKey) -> None:
    assert (key_bytes(one) == key_bytes(other)) == (one == other)


@given(object_keys)
def test_an_object_key_is_never_a_string_of_lmcaches_other_doors(key: ObjectKey) -> None:
    with pytest.raises(UnicodeDecodeError):
        key_bytes(key).decode()


def test_other_tenants_see_nothing(servers: Callable[..., Server], url: str) -> None:
    servers().put(range(3))
    assert servers(pool=url + "&tenant=other").lock(keys_of(range(3))) == []


def test_salts_ranks_and_groups_are_keys_of_their_own(server: Server) -> None:
    server.put(range(1))
    for fields in ({"cache_salt": "s"}, {"kv_rank": 2}, {"object_group_id": 1}, {"model_name": "n"}):
        assert server.lock(keys_of(range(1), **fields)) == []


class Listener(L2AdapterListener):
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_l2_keys_stored(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        self.heard.append((f"stored {len(keys)}", sum(sizes)))

    def on_l2_keys_accessed(self, keys: list[ObjectKey]) -> None:
        self.heard.append(("accessed", len(keys)))

    def on_l2_keys_deleted(self, keys: list[ObjectKey]) -> None:
        self.heard.append(("deleted", len(keys)))


def test_listeners_hear_of_what_this_server_did(servers: Callable[..., Server]) -> None:
    other, server, listener = servers(), servers(), Listener()
    server.adapter.register_listener(listener)
    other.put(range(1))
    server.put(range(3))
    server.get(range(4))
    server.adapter.delete(keys_of(range(4)))
    server.adapter.delete(keys_of(range(4)))
    assert listener.heard == [("stored 2", 2 * CHUNK_BYTES), ("accessed", 3), ("deleted", 3)]


def test_a_locked_chunk_is_not_deleted(servers: Callable[..., Server]) -> None:
    reader, other = servers(), servers()
    reader.put(range(2))
    reader.lock(keys_of(range(1)))
    other.adapter.delete(keys_of(range(2)))
    assert other.get(range(2)) == {0: 0}


def test_usage_is_the_pools_and_lmcache_is_not_asked_to_evict(servers: Callable[..., Server]) -> None:
    first, second = servers(), servers()
    first.put(range(3))
    for server in (first, second):
        usage = server.adapter.get_usage()
        assert usage.total_bytes_used == 3 * CHUNK_BYTES
        assert usage.total_capacity_bytes == 8 << 20
        assert not usage.bytes_by_cache_salt
        assert not server.adapter.supports_global_eviction


def test_keys_cannot_be_listed_and_lmcache_is_told_so(server: Server) -> None:
    with pytest.raises(NotImplementedError):
        server.adapter.list_l2_keys()


def test_close_leaves_no_thread_descriptor_or_pin_and_may_come_twice(url: str) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("maru-")}

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    server = Server({"pool": url})
    server.put(range(3))
    server.lock(keys_of(range(3)))
    late = [server.adapter.submit_load_task(keys_of(range(3)), [memory() for _ in range(3)]) for _ in range(20)]
    server.adapter.close()
    server.adapter.close()
    assert server.adapter.query_load_result(late[-1]) is None
    eventually(lambda: not threads(), "no thread is left")
    assert descriptors() == before
    with pytest.raises(RuntimeError, match="closed"):
        server.adapter.submit_store_task(keys_of(range(1)), [memory()])
    with maru.Pool.attach(url) as pool:
        assert len(pool.stats()["processes"]) == 1
        packed = pack_keys(lmcache_namespace(pool), [key_bytes(key) for key in keys_of(range(3))])
        assert all(pool.remove(packed[at : at + 16]) for at in range(0, len(packed), 16)), "nothing is pinned"


def test_the_class_is_what_lmcache_asks_of_a_plugin(server: Server) -> None:
    assert type(server.adapter) is MaruL2Adapter
    assert server.status("is_healthy")
    server.adapter.close()
    assert not server.status("is_healthy")
