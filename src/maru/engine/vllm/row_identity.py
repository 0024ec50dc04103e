"""Which rows of vLLM's offloading are interchangeable: what a tier is told, in one identity.

Holds:      the facts that decide the bytes of a row, as far as vLLM tells a tier.
Promises:   a fact that is not known here is in as well: of vLLM's configuration everything is taken but what names one
            instance. So a new version may miss, and does not take one thing for another.
Leaves:     hashes of tokens to vLLM: their algorithm and seed are in each key, see `rows`.

A tier is not given what `fit` reads. In are: KV dtype and layout, groups and their layers, block and chunk size, all
kinds of parallelism, the spec's class, a row's size, the device, vLLM's and torch's version, the model's name, and of a
local folder its config.json and a sample of its weights. Not in, because vLLM does not tell: a hub's revision,
--hf-overrides, --quantization, --attention-backend, and which LoRA adapter a name stands for. For all of these
`revision` is the caller's word, and nothing is shared without it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import vllm
from vllm.platforms import current_platform

from maru.engine.vllm.fit import ModelRefused, name_of, revision_of
from maru.key import Identity


class WeightsUnknown(ModelRefused):
    """No word for the weights and settings that vLLM does not tell a tier."""

    hint = "give \"revision\" in the tier's settings: the weights' commit, and what else was set for this instance"


def identity_of_rows(spec: Any, row_bytes: int, tenant: str, revision: str) -> Identity:
    """Equal on every instance that may share rows of `row_bytes` with this one.

    `spec`: vLLM's OffloadingSpec. `revision`: what else tells these weights and settings from others. Raises
    WeightsUnknown when there is none.
    """
    if not revision:
        raise WeightsUnknown(
            "vLLM does not tell a tier a hub's revision, --hf-overrides, --quantization, --attention-backend, nor "
            "which adapter a LoRA name stands for"
        )
    config, name = spec.config, str(spec.config.model.name)
    of_no_instance = replace(
        config,
        model=replace(config.model, name=name_of(name)),
        parallel=replace(
            config.parallel, rank=0, data_parallel_index=0, data_parallel_size=1, data_parallel_rank_local=None
        ),
        engine_id="",
        extra_config={},
        enable_kv_cache_events=False,
    )
    layout = [
        "vllm offloading tier 1",
        f"vllm {vllm.__version__} torch {torch.__version__}",
        # Not asked of torch: that would begin a context on the GPU in the scheduler's process.
        f"device {current_platform.get_device_name()}, cpu {torch.backends.cpu.get_cpu_capability()}",
        f"rows of {row_bytes} by {type(spec).__module__}.{type(spec).__qualname__}",
        f"one copy for all workers {spec.replicated_layout}",
        repr(of_no_instance),
    ]
    return Identity(
        model=name_of(name),
        revision=f"{_sample_of(name)} {revision}",
        dtype=str(config.model.dtype),
        kv_layout="; ".join(layout),
        parallel=f"tp={config.parallel.tp_size}",
        tenant=tenant,
    )


def _sample_of(name: str) -> str:
    """Digest of a local folder's configuration and of a sample of its weights; empty for a hub's name."""
    if not Path(name).is_dir():
        return ""
    described = Path(name) / "config.json"
    facts = json.loads(described.read_text()) if described.is_file() else {}
    return revision_of(SimpleNamespace(model=name, hf_config=SimpleNamespace(to_dict=lambda: facts)))
