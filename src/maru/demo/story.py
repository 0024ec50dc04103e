"""The story with Hugging Face transformers: its acts, in order, and the promises they are held to.

    1. A computes a long prefix and answers.
    2. B, started later, answers follow-up turns on it from the pool, and each of them cold to compare.
    3. A is killed with SIGKILL in the middle of a store; B carries on.
    4. B ends too; C, started when nobody is left, finds the cache warm.

The parent that tells this is not attached to the pool meanwhile.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from maru.demo import preflight
from maru.demo.cast import Actor
from maru.demo.model import MODEL_NAME
from maru.demo.show import Stage
from maru.demo.telling import REUSED_TOKENS_PROMISED, Facts, Story, show_first, show_turn
from maru.demo.text import DOCUMENT_LINES, QUESTIONS, UNRELATED_TITLE, opening, passage
from maru.demo.turns import MAX_NEW_TOKENS

__all__ = ["STORY", "promises_of"]

PREFIX_QUESTION = QUESTIONS[0]
TURNS_OF_B = QUESTIONS[1:4]
TURN_AFTER_THE_DEATH = QUESTIONS[4]
TURN_OF_C = QUESTIONS[5]


def _acts(stage: Stage, model_folder: Path, text_file: Path, url: str) -> Facts:
    facts = Facts()
    talk = [{"role": "user", "content": opening(text_file)}]

    stage.act(1, "Process A reads the play")
    with Actor("A", model_folder, url) as a:
        with stage.step(f"A loads {MODEL_NAME} (float32) and attaches to {url}"):
            a.wait_ready()
        with stage.step("A computes the prompt, answers, and stores the prompt's KV cache in the pool"):
            facts.first = a.ask({"do": "answer", "messages": talk, "max_new_tokens": MAX_NEW_TOKENS, "with_pool": True})
        show_first(stage, facts, "A", PREFIX_QUESTION)
        talk.append({"role": "assistant", "content": facts.first["answer"]})

        stage.act(2, "Process B goes on where A stopped")
        with Actor("B", model_folder, url) as b:
            with stage.step("B starts: another process, its own copy of the model, nothing computed"):
                b.wait_ready()
            for question in TURNS_OF_B:
                show_turn(stage, facts, b, talk, question)

            stage.act(3, "A dies in the middle of a store")
            facts.kill = _kill_mid_store(stage, a, b, text_file)
            show_turn(stage, facts, b, talk, TURN_AFTER_THE_DEATH)

            stage.act(4, "B ends too, and a third process comes")
            with stage.step("B leaves; nobody is attached to the pool now"):
                b.leave()
    with Actor("C", model_folder, url) as c:
        with stage.step("C starts"):
            c.wait_ready()
        show_turn(stage, facts, c, talk, TURN_OF_C)
        c.leave()
    return facts


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
    enough = REUSED_TOKENS_PROMISED
    return {
        f"B reused at least {enough:,} tokens that another process computed, in every turn": all(
            turn.reused_tokens >= enough for turn in facts.of("B")
        ),
        "every answer is the same with and without the pool": all(turn.same_answer for turn in facts.turns),
        "no KV bytes were copied between processes": all(turn.bytes_copied in (0, None) for turn in facts.turns),
        "A was killed mid-store: its half-written chunk is gone and check() is clean": (
            facts.kill["signal"] == signal.SIGKILL
            and facts.kill["readable"] == 0
            and facts.kill["reservation"] == "RESERVED"
            and facts.kill["violations"] == []
        ),
        "C, started when A and B were gone, found the cache warm": all(
            turn.reused_tokens >= enough for turn in facts.of("C")
        ),
    }


STORY = Story(
    engine="transformers",
    needs=preflight.TRANSFORMERS_NEEDS,
    find_torch=lambda: preflight.find_torch(),  # Looked up when it is asked: tests put another there.
    acts=_acts,
    promises_of=promises_of,
    command="maru demo",
)
