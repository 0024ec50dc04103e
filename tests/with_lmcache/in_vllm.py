"""vLLM with LMCache in its process and Maru below, as docs/lmcache.md says: one YAML, a connector, nothing else."""

from __future__ import annotations

from pathlib import Path

from maru.bench.engines.vllm_instance import EngineConfig

CHUNK_TOKENS = 256


def config_in_vllm(
    folder: Path, model: Path, pool: str, number: int, size_gib: float, connector: str = "LMCacheOnCPU"
) -> EngineConfig:
    """Of the instance with this number, on the pool of this name. `connector`: one of `on_cpu.lmcache_in_process`."""
    yaml = folder / "lmcache.yaml"
    yaml.write_text(
        f"chunk_size: {CHUNK_TOKENS}\nlocal_cpu: false\nmax_local_cpu_size: 0\n"
        f"maru_path: maru:///{pool}\nmaru_pool_size: {size_gib}\n"
    )
    return EngineConfig(
        model=model,
        kv_transfer={
            "kv_connector": connector,
            "kv_connector_module_path": "maru.bench.engines.on_cpu.lmcache_in_process",
            "kv_role": "kv_both",
        },
        environment={"LMCACHE_CONFIG_FILE": str(yaml)},
        core=number,
        log=folder / f"vllm-{number}.log",
    )
