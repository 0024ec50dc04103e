"""vLLM's own offloading connector over a pool: `MaruTier`, a tier behind the connector's own one in CPU memory.

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
      "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 8589934592, "block_size": 256, "secondary_tiers": [
        {"type": "MaruTier", "module_path": "maru.engine.vllm.tier", "pool": "maru:///vllm?size=64GiB",
         "revision": "COMMIT"}]}}'

Holds:      threads that copy, the results of their jobs, and what this step's lookups found: pinned until it is loaded,
            or until the step ends without a load of it.
Promises:   every job gets one result. A chunk that went is a failed key, and its row untouched; asked by the same
            request again it is a miss, so nobody tries for ever. Lookups are answered at once: HIT is sealed and
            pinned, anything else is MISS. shutdown() leaves no thread and no pin.
Leaves:     GPUs to vLLM: bytes go between a GPU and vLLM's rows, and between these and the pool. The copies and what
            can fail in them are in `rows`, who shares with whom in `row_identity`.

One chunk is one row of vLLM's: a chunk of one KV group, of all workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from vllm.v1.kv_offload.base import Locality, LookupResult, Medium, RequestOffloadingContext, get_offload_group_idx
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from maru.address import read_address
from maru.engine.vllm.fit import marked
from maru.engine.vllm.row_identity import identity_of_rows
from maru.engine.vllm.rows import PoolRows, TierCounters
from maru.errors import BadUrl

log = logging.getLogger("maru.vllm")

THREADS = 2
THREADS_LIMIT = 64


@dataclass
class _Request:
    failed: set[bytes] = field(default_factory=set)
    """Keys that could not be loaded once."""
    key_at: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """By KV group, and by the token that the chunk ends before."""
    keys_seen: int = 0


class _Stretch(NamedTuple):
    """Chunks that continue one another."""

    keys: list[bytes]
    rows: list[int]
    parent: bytes | None


class MaruTier(SecondaryTierManager):
    """A pool of this host as a tier of vLLM's offloading. Called by the scheduler's thread only."""

    medium = Medium.CPU

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        pool: str,
        tenant: str = "",
        revision: str = "",
        threads: int = THREADS,
        backpressure_detector: Any = None,
    ) -> None:
        """`primary_kv_view`: n rows x bytes. `threads`: how many load, and as many again that store.

        Raises for what will never work: BadUrl, WeightsUnknown. A pool that cannot be opened is one line in
        the log, and every lookup a miss.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= THREADS_LIMIT:
            raise BadUrl(f'"threads" is a number from 1 to {THREADS_LIMIT}, not {threads!r}')
        self.locality = Locality.LOCAL
        row_bytes = int(self.block_size_bytes)
        address = read_address(pool, chunk_bytes=row_bytes)
        identity = identity_of_rows(offloading_spec, row_bytes, tenant or address.tenant, revision)
        self._chunk_tokens = {
            group.group_id: group.tokens_per_block * offloading_spec.blocks_per_chunk
            for group in offloading_spec.config.groups
        }
        self._requests: dict[str, _Request] = {}
        self._found: dict[tuple[str, bytes], memoryview] = {}
        self._lock = threading.Lock()
        self._done: list[JobResult] = []
        self._pending: set[Future[None]] = set()
        self._rows = PoolRows(address, identity, primary_kv_view.cast("B"), row_bytes)
        # Threads of its own for each direction: nobody waits for a chunk behind what others leave behind.
        self._loaders = ThreadPoolExecutor(threads, "maru-tier-load")
        self._storers = ThreadPoolExecutor(threads, "maru-tier-store")

    @property
    def counters(self) -> TierCounters:
        return self._rows.counters

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        """HIT: sealed, and pinned for this request from now on, once however often it asks."""
        is_out = marked(req_context) == "off" or key in self._request(req_context).failed
        view = None if is_out else self._rows.find(key)
        if view is None:
            return LookupResult.MISS
        self._found[req_context.req_id, key] = view
        return LookupResult.HIT

    def submit_load(self, job_metadata: Any) -> None:
        """Copy chunks into rows. A key that fails is a miss for its request from then on."""
        request, keys = self._request(job_metadata.req_context), list(job_metadata.keys)
        views = [self._found.pop((job_metadata.req_context.req_id, key), None) for key in keys]
        rows = [int(row) for row in job_metadata.chunk_ids]

        def load() -> JobResult:
            loaded: list[bytes] = []
            try:
                for at, key in enumerate(keys):
                    view, views[at] = views[at], None  # The pin ends with the copy.
                    if self._rows.load(rows[at], key, view):
                        loaded.append(key)
            finally:
                request.failed |= set(keys).difference(loaded)
            return self._result(job_metadata, len(loaded) == len(keys), len(loaded), tuple(loaded))

        self._submit(self._loaders, job_metadata.job_id, load)

    def submit_store(self, job_metadata: Any) -> None:
        """Copy rows into the pool. The job succeeds if every key is there afterwards, whoever stored it.

        What a request keeps back by its marker is not looked for there: its job has not succeeded.
        """
        if marked(job_metadata.req_context) != "on":
            self._submit(self._storers, job_metadata.job_id, lambda: self._result(job_metadata, False, 0))
            return
        stretches = self._stretches(job_metadata)

        def store() -> JobResult:
            counts = [self._rows.store(*stretch) for stretch in stretches]
            return self._result(job_metadata, not any(refused for _, refused in counts), sum(n for n, _ in counts))

        self._submit(self._storers, job_metadata.job_id, store)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Results since the last call."""
        with self._lock:
            done, self._done = self._done, []
        return done

    def has_pending_work(self) -> bool:
        """Is there a job whose result nobody has?"""
        return bool(self._pending or self._done)

    def touch(self, keys: Collection[bytes], req_context: Any) -> None:
        """Looking at a chunk marks its use."""
        for key in keys:
            self._rows.find(key)

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """What vLLM has in its rows already is not stored again."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        """Forget it."""
        self._requests.pop(req_context.req_id, None)

    def on_schedule_end(self, context: Any) -> None:
        """Let go of what was found and is not being loaded.

        vLLM has submitted the loads of this step by now. For what it found no row for it asks again, or computes it.
        """
        self._found.clear()

    def drain_jobs(self) -> None:
        """Wait until no job runs or waits to."""
        wait(list(self._pending))

    def shutdown(self) -> None:
        """Finish the copies that run, drop those that wait, let go of the pool. Idempotent."""
        for threads in (self._loaders, self._storers):
            threads.shutdown(wait=True, cancel_futures=True)
        self._found.clear()
        self._rows.close()

    def _request(self, req_context: Any) -> _Request:
        request = self._requests.get(req_context.req_id)
        if request is None:
            request = self._requests[req_context.req_id] = _Request()
        return request

    def _stretches(self, job: Any) -> list[_Stretch]:
        """A job's keys in their order: vLLM hands over a set, and keeps beside it where in the prompt each key ends.

        It has no public way to ask what is at a place, only where a key is. Without that every chunk is a root.
        """
        request, ends = self._request(job.req_context), getattr(job.req_context, "_offload_key_positions", {})
        for key, end in islice(ends.items(), request.keys_seen, None):
            request.key_at[get_offload_group_idx(key), end] = key
        request.keys_seen = len(ends)
        stretches: list[_Stretch] = []
        last: tuple[int, int] | None = None
        for group, end, key, row in sorted(
            (get_offload_group_idx(key), ends.get(key, -1), key, int(row))
            for key, row in zip(job.keys, job.chunk_ids, strict=True)
        ):
            before = (group, end - self._chunk_tokens[group])
            if last is None or last != before:
                stretches.append(_Stretch([], [], request.key_at.get(before)))
            stretches[-1].keys.append(key)
            stretches[-1].rows.append(row)
            last = (group, end)
        return stretches

    def _result(self, job: Any, success: bool, chunks: int, loaded: tuple[bytes, ...] | None = None) -> JobResult:
        return JobResult(
            job_id=job.job_id,
            success=success,
            successful_keys=None if success else loaded,
            transfer_time=time.monotonic() - job.submit_time,
            transfer_bytes=chunks * self._rows.row_bytes,
        )

    def _submit(self, threads: ThreadPoolExecutor, job_id: int, work: Callable[[], JobResult]) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception:  # vLLM waits for every job: a defect may cost a miss, not a request that hangs.
                log.exception("a copy between vLLM's rows and the pool failed")
                result = JobResult(job_id=job_id, success=False)
            with self._lock:
                self._done.append(result)

        future = threads.submit(run)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
