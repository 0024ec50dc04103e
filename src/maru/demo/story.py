"""The acts of the demo, in order, and the promises they are held to.

    1. A computes a long prefix and answers.
    2. B, started later, answers follow-up turns on it from the pool, and each of them cold to compare.
    3. A is killed with SIGKILL in the middle of a store; B carries on.
    4. B ends too; C, started when nobody is left, finds the cache warm.

The parent that tells this is not attached to the pool meanwhile: it creates the pool, hands its name to the
processes, and destroys it at the end.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import maru
from maru.demo import preflight
from maru.demo.cast import Actor, ActorLost
from maru.demo.model import FOLDER_NAME, MODEL_NAME, ensure_model, is_complete
from maru.demo.show import Stage
from maru.demo.text import DOCUMENT_LINES, QUESTIONS, UNRELATED_TITLE, ensure_text, opening, passage
from maru.demo.turns import MAX_NEW_TOKENS, Turn, take_turn
from maru.errors import MaruError

__all__ = ["tell"]

# 2 is what the command line says to options that it cannot read.
KEPT, BROKEN, COULD_NOT_RUN = 0, 1, 3
REUSED_TOKENS_PROMISED = 2048
PREFIX_QUESTION = QUESTIONS[0]
TURNS_OF_B = QUESTIONS[1:4]
TURN_AFTER_THE_DEATH = QUESTIONS[4]
TURN_OF_C = QUESTIONS[5]


@dataclass
class Facts:
    """What happened; the JSON document is made of it."""

    first: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    kill: dict[str, Any] = field(default_factory=dict)


def tell(*, cache_dir: Path, pool_url: str | None, json_output: bool, keep: bool) -> int:
    """Run the demo; see `maru.demo.run_demo`."""
    stage = Stage(to_stderr=json_output)
    own_pool = pool_url is None
    found = preflight.find_problems(cache_dir, model_is_cached=is_complete(cache_dir / FOLDER_NAME), own_pool=own_pool)
    with stage.step("Looking at this machine"):
        torch = preflight.find_torch()
    if isinstance(torch, preflight.Finding):
        found.append(torch)
    if found:
        stage.findings(found)
        if json_output:
            _write_json({"ok": False, "error": "preflight", "problems": [one.problem for one in found]})
        return COULD_NOT_RUN
    assert isinstance(torch, preflight.Torch)
    stage.torch(torch)
    pool_bytes = preflight.pool_bytes_for(preflight.shm_free_bytes()) or preflight.POOL_BYTES_NEEDED
    url = pool_url or f"maru:///demo-{os.getpid()}?size={pool_bytes // preflight.MIB}MiB"
    try:
        with stage.bars() as report:
            model_folder = ensure_model(cache_dir, report=report)
            text_file = ensure_text(cache_dir, report=report)
        started = time.perf_counter()
        with _pool_for_the_story(url, destroy=own_pool and not keep):
            facts = _acts(stage, model_folder, text_file, url)
    except MaruError as error:
        stage.failure(error)
        if json_output:
            _write_json({"ok": False, "error": type(error).__name__, "problems": [str(error)]})
        # A process that dies when nobody killed it is the very thing this demo promises not to show.
        return BROKEN if isinstance(error, ActorLost) else COULD_NOT_RUN
    seconds = time.perf_counter() - started
    promises = promises_of(facts)
    stage.turns(facts.turns)
    stage.promises(promises)
    _farewell(stage, url, destroyed=own_pool and not keep, seconds=seconds)
    if json_output:
        _write_json(_document(facts, promises, torch, url, seconds))
    return KEPT if all(promises.values()) else BROKEN


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


def _acts(stage: Stage, model_folder: Path, text_file: Path, url: str) -> Facts:
    facts = Facts()
    talk = [{"role": "user", "content": opening(text_file)}]

    stage.act(1, "Process A reads the play")
    with Actor("A", model_folder, url) as a:
        with stage.step(f"A loads {MODEL_NAME} (float32) and attaches to {url}"):
            a.wait_ready()
        with stage.step("A computes the prompt, answers, and stores the prompt's KV cache in the pool"):
            facts.first = a.ask({"do": "answer", "messages": talk, "max_new_tokens": MAX_NEW_TOKENS, "with_pool": True})
        _first_figures(stage, facts.first)
        stage.quote("A", PREFIX_QUESTION, facts.first["answer"])
        talk.append({"role": "assistant", "content": facts.first["answer"]})

        stage.act(2, "Process B goes on where A stopped")
        with Actor("B", model_folder, url) as b:
            with stage.step("B starts: another process, its own copy of the model, nothing computed"):
                b.wait_ready()
            for question in TURNS_OF_B:
                _turn(stage, facts, b, talk, question)

            stage.act(3, "A dies in the middle of a store")
            facts.kill = _kill_mid_store(stage, a, b, text_file)
            _turn(stage, facts, b, talk, TURN_AFTER_THE_DEATH)

            stage.act(4, "B ends too, and a third process comes")
            with stage.step("B leaves; nobody is attached to the pool now"):
                b.leave()
    with Actor("C", model_folder, url) as c:
        with stage.step("C starts"):
            c.wait_ready()
        _turn(stage, facts, c, talk, TURN_OF_C)
        c.leave()
    return facts


def _turn(stage: Stage, facts: Facts, actor: Actor, talk: list[dict[str, str]], question: str) -> None:
    """One turn both ways; its answer becomes part of the conversation."""
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


def _kill_mid_store(stage: Stage, a: Actor, b: Actor, text_file: Path) -> dict[str, Any]:
    """Let A write half a chunk, kill it, and let B look at what is left."""
    unrelated = [{"role": "user", "content": passage(text_file, UNRELATED_TITLE, DOCUMENT_LINES)}]
    half = a.ask({"do": "store_half", "messages": unrelated})
    status = a.kill()
    stage.say(
        f"  A (pid {a.pid}) reserved a chunk, wrote {half['bytes'] / preflight.MIB:.1f} MiB of it, half, "
        "and got SIGKILL."
    )
    seen = b.ask({"do": "inspect", "key": half["key"]})
    stage.say(
        f"  B looks: the half-written chunk is {'readable' if seen['readable'] else 'gone'}, "
        f"its key is {'free again' if seen['reservation'] == 'RESERVED' else seen['reservation']}, "
        f"check() finds {len(seen['violations'])} violations."
    )
    return {**seen, "signal": -status, "bytes_written": half["bytes"], "key": half["key"]}


def promises_of(facts: Facts) -> dict[str, bool]:
    """What the demo claims, and whether this run bears it out."""
    of_b = [turn for turn in facts.turns if turn.process == "B"]
    of_c = [turn for turn in facts.turns if turn.process == "C"]
    enough = REUSED_TOKENS_PROMISED
    return {
        f"B reused at least {enough:,} tokens that another process computed, in every turn": all(
            turn.reused_tokens >= enough for turn in of_b
        ),
        "every answer is the same with and without the pool": all(turn.same_answer for turn in facts.turns),
        "no KV bytes were copied between processes": all(turn.bytes_copied in (0, None) for turn in facts.turns),
        "A was killed mid-store: its half-written chunk is gone and check() is clean": (
            facts.kill["signal"] == signal.SIGKILL
            and facts.kill["readable"] == 0
            and facts.kill["reservation"] == "RESERVED"
            and facts.kill["violations"] == []
        ),
        "C, started when A and B were gone, found the cache warm": all(turn.reused_tokens >= enough for turn in of_c),
    }


def _first_figures(stage: Stage, first: dict[str, Any]) -> None:
    stage.say(
        f"    {first['prompt_tokens']:,} prompt tokens, first token after {first['ttft_s']:.2f} s; "
        f"{first['bytes_stored'] / preflight.MIB:.1f} MiB stored"
    )


def _farewell(stage: Stage, url: str, *, destroyed: bool, seconds: float) -> None:
    stage.say(f"\n  {seconds:.0f} s in all.")
    if destroyed:
        stage.say("  The pool is destroyed. To look around in one: maru demo --keep")
    else:
        name = url.partition("?")[0]
        stage.say("  The pool is still there. To look around, and to remove it:")
        stage.say(f"    maru stat {name}\n    maru pool destroy {name}")


def _document(
    facts: Facts, promises: dict[str, bool], torch: preflight.Torch, url: str, seconds: float
) -> dict[str, Any]:
    return {
        "ok": all(promises.values()),
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
        },
    }


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
