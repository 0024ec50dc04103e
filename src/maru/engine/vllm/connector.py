"""What vLLM calls. Each call goes to the scheduler's side or the worker's side; nothing is decided here but failure.

Raises at start for what will never work: a bad address, an unknown setting, a model that does not fit. A pool that
fails, at start or later, turns the connector off: one line in the log, and vLLM computes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from maru.address import read_address
from maru.client.opening import open_pool
from maru.engine.device_copy import DeviceError, DeviceUnavailable
from maru.engine.vllm.blocks import Blocks
from maru.engine.vllm.copies import Copies
from maru.engine.vllm.device_copies import DeviceCopies
from maru.engine.vllm.events import Announcer
from maru.engine.vllm.fit import CHUNK_TOKENS, ModelRefused, identity_of, shape_of
from maru.engine.vllm.host_copies import HostCopies
from maru.engine.vllm.metrics import MaruPromMetrics, MaruStats, PoolWatch
from maru.engine.vllm.plan import Done, Plan, Save
from maru.engine.vllm.scheduler import SchedulerSide
from maru.engine.vllm.worker import WorkerSide
from maru.errors import BadUrl, MaruError
from maru.pool import Pool
from maru.tiering.ladder import LadderSettings
from maru.tiering.prefill import Prefill, PrefillClock
from maru.tiering.tiered import TieredPool

log = logging.getLogger("maru.vllm")

_told: set[str] = set()
_SETTINGS = {
    "pool", "chunk_tokens", "tenant", "background_copies", "wait_for_others_s", "allow_gpu", "tiers",
    "prefill_tokens_per_s",
}  # fmt: skip


class MaruConnector(KVConnectorBase_V1):
    """vLLM's KV in a pool: what one instance computed, every other one of the host finds.

    `kv_connector_extra_config`: `pool` (an address, as maru:///NAME?size=8GiB), `chunk_tokens` (256, rounded down to
    whole blocks), `tenant`, `background_copies` (true: copy layer by layer while the model computes),
    `wait_for_others_s` (0: how long a request may be held back because another instance computes its beginning),
    `tiers` (URLs of places below the pool, the nearest first), `prefill_tokens_per_s` (what lies below is loaded only
    when that is quicker than computing it at this speed; left out: the speed that is measured; 0: whatever lies below
    is loaded), `allow_gpu` (false: on a GPU nobody has run it yet).
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        settings = dict(self._kv_transfer_config.kv_connector_extra_config or {})
        unknown = sorted(set(settings) - _SETTINGS)
        if unknown or not settings.get("pool"):
            raise BadUrl(
                f"kv_connector_extra_config knows {', '.join(sorted(_SETTINGS))}"
                + (f", not {', '.join(unknown)}" if unknown else "; `pool` is missing")
            )
        if self._kv_transfer_config.kv_load_failure_policy != "recompute" and role == KVConnectorRole.SCHEDULER:
            log.warning('kv_load_failure_policy is not "recompute": a chunk that cannot be loaded fails its request')
        self._shape = shape_of(vllm_config, kv_cache_config, int(settings.get("chunk_tokens", CHUNK_TOKENS)))
        self._identity = identity_of(vllm_config, kv_cache_config, self._shape, str(settings.get("tenant", "default")))
        self._ranks = int(vllm_config.parallel_config.tensor_parallel_size)
        address = read_address(str(settings["pool"]), tiers=_urls(settings.get("tiers", [])))
        if role == KVConnectorRole.WORKER:
            address = replace(address, tiers=())  # One side speaks with the places below.
        prefill = _prefill(settings.get("prefill_tokens_per_s"), self._shape.chunk_tokens)
        self._background = bool(settings.get("background_copies", True))
        self._allow_gpu = bool(settings.get("allow_gpu", False))
        self._is_off = False
        self._pool: Pool | None = None
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._announcer: Announcer | None = None
        self._watch: PoolWatch | None = None
        self._unfilled: set[int] = set()
        try:
            self._pool = open_pool(address, near=False, must_not_wait=True, ladder=LadderSettings(prefill=prefill))
            namespace = self._pool.namespace(self._identity)
        except (MaruError, OSError) as error:
            self._turn_off("open the pool", error)
            return
        if role == KVConnectorRole.SCHEDULER:
            events = vllm_config.kv_events_config
            if events is not None and events.enable_kv_cache_events:
                self._announcer = Announcer(self._pool.exists, self._shape)
            below = self._pool if isinstance(self._pool, TieredPool) else None
            self._scheduler = SchedulerSide(
                self._pool, namespace, self._shape, self._ranks, self._turn_off,
                wait_for_others_s=float(settings.get("wait_for_others_s", 0)), announcer=self._announcer,
                begin_rise=below.begin if below else None,
                found_whole=below.ladder.sources.from_pool if below else None,
                prefill=prefill if below and isinstance(prefill, PrefillClock) else None,
            )  # fmt: skip
            self._watch = PoolWatch(self._pool.stats)
        else:
            self._worker = WorkerSide(
                self._pool, namespace, self._shape, _rank(self._ranks), self._ranks, self._turn_off
            )
        log.info("%s in pool %s, chunks of %d tokens", role.name, self._pool.config.url, self._shape.chunk_tokens)

    def _turn_off(self, doing: str, error: Exception) -> None:
        """Everything is a miss from now on. Two sides in one process say so once."""
        self._is_off = True
        told = f"could not {doing}: {error}"
        if told not in _told:
            _told.add(told)
            log.error("%s; vLLM computes everything itself from now on", told)

    def _works(self) -> bool:
        """Is there a pool? One that was destroyed under us is not looked for again."""
        if not self._is_off and self._pool is not None and self._pool.destroyed:
            self._turn_off("go on", MaruError("the pool was destroyed"))
        return not self._is_off

    # The scheduler's side

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens in the pool beyond those computed, None to ask later. They are loaded in the request's first step."""
        if self._scheduler is None or not self._works():
            return 0, False
        return self._scheduler.matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return self._scheduler.plan(scheduler_output) if self._scheduler else Plan()

    def update_connector_output(self, connector_output: Any) -> None:
        done = connector_output.kv_connector_worker_meta
        if self._scheduler:
            self._scheduler.done(done if isinstance(done, Done) else Done())
        if self._scheduler and connector_output.invalid_block_ids:
            self._scheduler.not_loaded(connector_output.invalid_block_ids)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Nothing is pending: what was computed is stored in the step that computed it."""
        if self._scheduler:
            self._scheduler.finished(request.request_id)
        return False, None

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not stored is a miss later."""
        return False

    def take_events(self) -> Iterable[KVCacheEvent]:
        """Blocks that this instance has seen come into the pool, and leave it."""
        try:
            return self._announcer.take() if self._announcer and self._works() else ()
        except MaruError as error:
            self._turn_off("announce what is stored", error)
            return ()

    # The worker's side

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Raises ModelRefused for caches whose blocks this door cannot address."""
        if self._worker is None or self._pool is None:
            return
        blocks = Blocks(self._shape, kv_caches, int(self._kv_cache_config.num_blocks))
        kinds = {cache.device.type for cache in kv_caches.values()}
        try:
            self._worker.register(copies_for(kinds, self._pool, blocks, self._background, self._allow_gpu))
        except (DeviceUnavailable, DeviceError) as error:
            self._turn_off("reach the GPU", error)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """vLLM does this before a step's first kernel, whatever the step."""
        super().bind_connector_metadata(connector_metadata)
        if self._worker:
            self._worker.before_step()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin filling blocks. Steps without loads come here after they have computed."""
        plan = self._plan()
        if self._worker:
            self._works()
            self._worker.begin(plan.loads, plan.timed_step)
        else:
            # The scheduler has a pool and this worker has none: blocks that nobody fills must not be taken for filled.
            self._unfilled.update(block for load in plan.loads for block in load.blocks)

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._worker:
            self._worker.before_layer(layer_name, self._saves())

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        if self._worker:
            self._worker.after_layer(layer_name, self._saves())

    def wait_for_save(self) -> None:
        """Store what this step computed, of all layers, before anybody may overwrite its blocks."""
        if self._worker:
            self._worker.end(self._saves())

    def _plan(self) -> Plan:
        plan = self._get_connector_metadata()
        assert isinstance(plan, Plan)
        return plan

    def _saves(self) -> list[Save]:
        saves = self._plan().saves
        return saves if saves and self._works() else []

    def get_block_ids_with_load_errors(self) -> set[int]:
        unfilled, self._unfilled = self._unfilled, set()
        return unfilled | (self._worker.take_invalid() if self._worker else set())

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._worker.take_done() if self._worker else None

    # Both sides

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """What was done since the last call, None for nothing."""
        stats = self._worker.take_stats() if self._worker else MaruStats()
        if self._scheduler:
            stats, self._scheduler.stats = self._scheduler.stats, MaruStats()
        if self._watch:
            stats.data["gauges"].update(self._watch.take())
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return MaruStats(data)

    @classmethod
    def build_prom_metrics(cls, *described: Any) -> KVConnectorPromMetrics:
        """`described`: what KVConnectorPromMetrics takes."""
        return MaruPromMetrics(*described)

    def shutdown(self) -> None:
        if self._watch:
            self._watch.close()
        if self._scheduler:
            self._scheduler.close()
        if self._worker:
            self._worker.close()
        if self._pool:
            self._pool.close()


def _urls(setting: Any) -> list[str]:
    """A list in the settings, or one URL. Raises BadUrl."""
    urls = [setting] if isinstance(setting, str) else setting
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise BadUrl('"tiers" is a list of URLs, for example ["file:///var/lib/maru?size=500GiB"]')
    return urls


def _prefill(setting: Any, chunk_tokens: int) -> Prefill | PrefillClock | None:
    """What decides between loading and computing: a speed that was told, one to measure, or nothing. Raises BadUrl."""
    if setting is None:
        return PrefillClock(chunk_tokens)
    if isinstance(setting, bool) or not isinstance(setting, int | float) or not 0 <= setting < float("inf"):
        raise BadUrl(
            f'"prefill_tokens_per_s" is a number, not {setting!r}: leave it out to have it measured, say 0 to load '
            "whatever lies below"
        )
    return Prefill(chunk_tokens, float(setting)) if setting else None


def _rank(ranks: int) -> int:
    """This worker's number among those that hold slices of the same chunk."""
    if ranks == 1:
        return 0
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def copies_for(kinds: set[str], pool: Pool, blocks: Blocks, in_background: bool, allow_gpu: bool) -> Copies:
    """How blocks on devices of these kinds, as torch names them, are copied.

    Raises ModelRefused, DeviceUnavailable, DeviceError.
    """
    if kinds == {"cpu"}:
        return HostCopies(pool, blocks, in_background)
    if kinds != {"cuda"}:
        raise ModelRefused(f"KV caches on {', '.join(sorted(kinds))}: only memory and CUDA are known here")
    if not allow_gpu:
        raise ModelRefused(
            'copies with a GPU were never run on one: try `maru selftest gpu`, then set "allow_gpu": true'
        )
    # The device and the streams that torch uses in this worker.
    ordinal = torch.cuda.current_device()
    return DeviceCopies(pool, blocks, ordinal, lambda: int(torch.cuda.current_stream().cuda_stream))
