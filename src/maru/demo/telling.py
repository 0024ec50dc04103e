"""What every story of the demo has in common: the look at the machine before, the pool meanwhile, the verdict after.

Holds:      the exit codes; the pool's life; a turn as it is shown; the JSON document.
Promises:   however a story ends, the demo's own pool is destroyed, unless it is to be kept.
Leaves:     the acts, and what they are held to, to a `Story`.

The parent that tells a story creates the pool, hands its name to the processes, and destroys it at the end.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import maru
from maru.demo import preflight
from maru.demo.cast import ActorLost
from maru.demo.model import FOLDER_NAME, MODEL_NAME, ensure_model, is_complete
from maru.demo.show import Stage
from maru.demo.text import ensure_text
from maru.demo.turns import MAX_NEW_TOKENS, Answering, Turn, take_turn
from maru.errors import MaruError

__all__ = ["REUSED_TOKENS_PROMISED", "Facts", "Story", "show_first", "show_turn", "tell"]

# 2 is what the command line says to options that it cannot read.
KEPT, BROKEN, COULD_NOT_RUN = 0, 1, 3
REUSED_TOKENS_PROMISED = 2048


@dataclass
class Facts:
    """What happened; the JSON document is made of it."""

    first: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    kill: dict[str, Any] = field(default_factory=dict)

    def of(self, process: str) -> list[Turn]:
        return [turn for turn in self.turns if turn.process == process]


@dataclass(frozen=True)
class Story:
    """What one story brings along."""

    engine: str
    needs: preflight.Needs
    find_torch: Callable[[], preflight.Torch | preflight.Finding]
    acts: Callable[[Stage, Path, Path, str], Facts]
    """Plays it, given the stage, the model's folder, the text's file and the pool's URL. Raises MaruError."""
    promises_of: Callable[[Facts], dict[str, bool]]
    """What the demo claims, and whether this run bears it out."""
    command: str
    """What a person types for it."""


def tell(story: Story, *, cache_dir: Path, pool_url: str | None, json_output: bool, keep: bool) -> int:
    """Run the demo; see `maru.demo.run_demo`."""
    stage = Stage(to_stderr=json_output)
    own_pool = pool_url is None
    found = preflight.find_problems(
        cache_dir, model_is_cached=is_complete(cache_dir / FOLDER_NAME), own_pool=own_pool, needs=story.needs
    )
    with stage.step("Looking at this machine"):
        torch = story.find_torch()
    if isinstance(torch, preflight.Finding):
        found.append(torch)
    if found:
        stage.findings(found)
        if json_output:
            _write_json({"ok": False, "error": "preflight", "problems": [one.problem for one in found]})
        return COULD_NOT_RUN
    assert isinstance(torch, preflight.Torch)
    stage.torch(torch)
    pool_bytes = preflight.pool_bytes_for(preflight.shm_free_bytes(), story.needs) or story.needs.pool_bytes_least
    url = pool_url or f"maru:///demo-{os.getpid()}?size={pool_bytes // preflight.MIB}MiB"
    try:
        with stage.bars() as report:
            model_folder = ensure_model(cache_dir, report=report)
            text_file = ensure_text(cache_dir, report=report)
        started = time.perf_counter()
        with _pool_for_the_story(url, destroy=own_pool and not keep):
            facts = story.acts(stage, model_folder, text_file, url)
    except MaruError as error:
        stage.failure(error)
        if json_output:
            _write_json({"ok": False, "error": type(error).__name__, "problems": [str(error)]})
        # A process that dies when nobody killed it is the very thing this demo promises not to show.
        return BROKEN if isinstance(error, ActorLost) else COULD_NOT_RUN
    seconds = time.perf_counter() - started
    promises = story.promises_of(facts)
    stage.turns(facts.turns)
    stage.promises(promises)
    _farewell(stage, story, url, destroyed=own_pool and not keep, seconds=seconds)
    if json_output:
        _write_json(_document(story, facts, promises, torch, url, seconds))
    return KEPT if all(promises.values()) else BROKEN


def show_first(stage: Stage, facts: Facts, process: str, question: str) -> None:
    """The first answer, which nothing could be reused for."""
    first = facts.first
    stored = "" if first["bytes_stored"] is None else f"; {first['bytes_stored'] / preflight.MIB:.1f} MiB stored"
    stage.say(f"    {first['prompt_tokens']:,} prompt tokens, first token after {first['ttft_s']:.2f} s{stored}")
    stage.quote(process, question, first["answer"])


def show_turn(stage: Stage, facts: Facts, actor: Answering, talk: list[dict[str, str]], question: str) -> None:
    """One turn both ways; its answer becomes part of the conversation. Raises ActorLost."""
    talk.append({"role": "user", "content": question})
    cold_first = len(facts.turns) % 2 == 0
    with stage.step(f"{actor.name} answers: cold and from the pool"):
        turn = take_turn(actor, talk, cold_first=cold_first)
    facts.turns.append(turn)
    stage.quote(actor.name, question, turn.answer)
    if not turn.same_answer:
        stage.say(f"    THE COLD ANSWER DIFFERS: {turn.answer_cold}")
    stage.say(
        f"    first token after {turn.ttft_pool_s:.2f} s instead of {turn.ttft_cold_s:.2f} s, "
        f"{turn.reused_tokens:,} of {turn.prompt_tokens:,} tokens reused"
    )
    talk.append({"role": "assistant", "content": turn.answer})


@contextmanager
def _pool_for_the_story(url: str, *, destroy: bool) -> Iterator[None]:
    """The pool exists inside the block; `destroy` removes it whatever ends it, a closed terminal too."""
    endings = (signal.SIGTERM, signal.SIGHUP)
    before = {ending: signal.signal(ending, lambda number, _: sys.exit(128 + number)) for ending in endings}
    try:
        maru.Pool.open(url).close()
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
        if destroy:
            maru.Pool.destroy(url, force=True)


def _farewell(stage: Stage, story: Story, url: str, *, destroyed: bool, seconds: float) -> None:
    stage.say(f"\n  {seconds:.0f} s in all.")
    if destroyed:
        stage.say(f"  The pool is destroyed. To look around in one: {story.command} --keep")
    else:
        name = url.partition("?")[0]
        stage.say("  The pool is still there. To look around, and to remove it:")
        stage.say(f"    maru stat {name}\n    maru pool destroy {name}")


def _document(
    story: Story, facts: Facts, promises: dict[str, bool], torch: preflight.Torch, url: str, seconds: float
) -> dict[str, Any]:
    return {
        "ok": all(promises.values()),
        "engine": story.engine,
        "promises": promises,
        "seconds": seconds,
        "pool": url,
        "model": MODEL_NAME,
        "max_new_tokens": MAX_NEW_TOKENS,
        "first": {name: value for name, value in facts.first.items() if name not in ("event", "output_ids")},
        "turns": [turn.facts() for turn in facts.turns],
        "kill": facts.kill,
        "machine": {
            "cpus": len(os.sched_getaffinity(0)),
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "torch": torch.version,
            "transformers": torch.transformers_version,
            "vllm": torch.vllm_version,
        },
    }


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
