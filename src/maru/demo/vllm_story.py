"""The story with vLLM: the same conversation, on three of vLLM's own OpenAI API servers.

    1. Server A computes a long prefix and answers.
    2. Server B answers follow-up turns on it from the pool, and each of them cold to compare.
    3. A is killed with SIGKILL while it computes and stores another long prompt; B carries on.
    4. B ends too; C, started when nobody is left, finds the cache warm.

The servers run without vLLM's own prefix cache. So whatever is reused comes from the pool, in a server's second turn
too; and vLLM's count of reused tokens is held against the pool's count of bytes that it handed out.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import maru
from maru.demo import preflight
from maru.demo.model import MODEL_NAME
from maru.demo.show import Stage
from maru.demo.telling import REUSED_TOKENS_PROMISED, Facts, Story, show_first, show_turn
from maru.demo.text import DOCUMENT_LINES, QUESTIONS, UNRELATED_TITLE, opening, passage
from maru.demo.turns import MAX_NEW_TOKENS
from maru.demo.vllm_servers import ASK_DEADLINE_S, LEAVE_DEADLINE_S, Server, halves

__all__ = ["STORY", "promises_of"]

# How closely a store is watched for: what a step stores is reserved while it computes.
WATCH_S = 0.0005
POLL_S = 0.05


def _acts(stage: Stage, model_folder: Path, text_file: Path, url: str) -> Facts:
    facts = Facts()
    talk = [{"role": "user", "content": opening(text_file)}]
    cpus_of_a, cpus_of_b = halves(sorted(os.sched_getaffinity(0)))

    with tempfile.TemporaryDirectory(prefix="maru-demo-") as folder:

        def server(name: str, cpus: list[int]) -> Server:
            return Server(name, model_folder, url, cpus=cpus, folder=Path(folder))

        stage.act(1, "Server A reads the play")
        stage.say("  Each server is vLLM's own, run without its prefix cache: what is reused comes from the pool.")
        with server("A", cpus_of_a) as a, server("B", cpus_of_b) as b:
            with stage.step(f"Servers A and B start: two processes, each loads {MODEL_NAME} (float32), over {url}"):
                a.wait_ready()
                b.wait_ready()
            with stage.step("A computes the prompt, answers, and stores the prompt's KV cache in the pool"):
                facts.first = _first(a, talk, url) | {"kv_bytes_per_token": _kv_bytes_per_token(model_folder)}
            show_first(stage, facts, "A", QUESTIONS[0])
            talk.append({"role": "assistant", "content": facts.first["answer"]})

            stage.act(2, "Server B, which computed nothing yet, goes on where A stopped")
            stage.say("  Cold: asked with a cache_salt of its own, under which nobody has anything.")
            for question in QUESTIONS[1:4]:
                show_turn(stage, facts, b, talk, question)

            stage.act(3, "A dies with a prompt half stored")
            facts.kill = _kill_mid_store(stage, a, text_file, url)
            show_turn(stage, facts, b, talk, QUESTIONS[4])

            stage.act(4, "B ends too, and a third server comes")
            with stage.step("B leaves; no server is attached to the pool now"):
                b.leave()
                facts.kill["still_attached"] = _wait_until_gone(a, b, url)
        with server("C", cpus_of_b) as c:
            with stage.step("C starts"):
                c.wait_ready()
            show_turn(stage, facts, c, talk, QUESTIONS[5])
            with stage.step("C leaves"):
                c.leave()
    return facts


def _first(a: Server, talk: list[dict[str, str]], url: str) -> dict[str, Any]:
    """A's answer, and how much it left in the pool."""
    with maru.Pool.attach(url) as pool:
        before = pool.stats()["counters"]["stored_bytes"]
        first = a.ask({"do": "answer", "messages": talk, "max_new_tokens": MAX_NEW_TOKENS, "with_pool": True})
        return {**first, "bytes_stored": pool.stats()["counters"]["stored_bytes"] - before}


def _kv_bytes_per_token(model_folder: Path) -> int:
    """Keys and values of all layers, in float32."""
    config = json.loads((model_folder / "config.json").read_text())
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4)


def _kill_mid_store(stage: Stage, a: Server, text_file: Path, url: str) -> dict[str, Any]:
    """Have A compute another long prompt, kill it while chunks of that are unfinished, and look at what is left."""
    unrelated = [{"role": "user", "content": passage(text_file, UNRELATED_TITLE, DOCUMENT_LINES)}]
    with maru.Pool.attach(url) as pool:
        stored_before = pool.stats()["counters"]["stored"]
        with stage.step("A computes and stores another long prompt; SIGKILL comes in the middle of it"):
            asking = a.ask_in_vain(unrelated)
            half_written = _stop_mid_store(a, asking, pool)
            status = a.kill()
            # The server's children die a moment after it: gigabytes of mappings are taken down first.
            _wait(lambda: not _attached(pool, a), LEAVE_DEADLINE_S, POLL_S)
            asking.join(LEAVE_DEADLINE_S)
        pool.reap()
        after = pool.stats()
        kill = {
            "signal": -status,
            "chunks_stored": after["counters"]["stored"] - stored_before,
            "half_written": half_written,
            "left_over": len([one for one in after["reservations"] if not one["alive"]]),
            "violations": [str(one) for one in pool.check()],
        }
    stage.say(
        f"  A (pid {a.pid}) had stored {kill['chunks_stored']} chunks of it and had {half_written} unfinished when "
        f"SIGKILL came. Unfinished ones now: {kill['left_over']}; check() finds {len(kill['violations'])} violations."
    )
    return kill


def _stop_mid_store(a: Server, asking: threading.Thread, pool: maru.Pool) -> int:
    """Stop A for good at a moment at which it has chunks reserved; how many. 0: it was never met at that."""

    def writing() -> int:
        return len([one for one in pool.stats()["reservations"] if a.owns(one["pid"])])

    deadline = time.monotonic() + ASK_DEADLINE_S
    while asking.is_alive() and time.monotonic() < deadline:
        if writing():
            # What was just seen may be sealed by now. What is seen of a stopped server stays as it is.
            a.stop()
            if count := writing():
                return count
            a.go_on()
        time.sleep(WATCH_S)
    return 0


def _attached(pool: maru.Pool, *servers: Server) -> list[int]:
    """The process ids of these servers that are attached to the pool."""
    pids = [one["pid"] for one in pool.stats()["processes"] if one["alive"]]
    return [pid for pid in pids if any(server.owns(pid) for server in servers)]


def _wait_until_gone(a: Server, b: Server, url: str) -> list[int]:
    """The process ids of A and B that are attached to the pool even after a while: none, if all is well."""
    with maru.Pool.attach(url) as pool:
        _wait(lambda: not _attached(pool, a, b), LEAVE_DEADLINE_S, POLL_S)
        return _attached(pool, a, b)


def _wait(is_so: Callable[[], bool], deadline_s: float, pause_s: float) -> None:
    """Until it is so, or the deadline is over: whoever waits looks at what is then."""
    deadline = time.monotonic() + deadline_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(pause_s)


def promises_of(facts: Facts) -> dict[str, bool]:
    """What the demo claims, and whether this run bears it out."""
    enough = REUSED_TOKENS_PROMISED
    of_b, of_c = facts.of("B"), facts.of("C")
    bytes_per_token = facts.first["kv_bytes_per_token"]
    return {
        f"B reused at least {enough:,} tokens that another server computed, in every turn": of_b != []
        and all(turn.reused_tokens >= enough for turn in of_b),
        "what vLLM says it reused, the pool says it handed out": all(
            (turn.bytes_shared or 0) >= turn.reused_tokens * bytes_per_token for turn in facts.turns
        ),
        "the cold answers reused nothing": all(turn.reused_tokens_cold == 0 for turn in facts.turns),
        "every answer is the same cold and from the pool": all(turn.same_answer for turn in facts.turns),
        "A was killed with unfinished chunks in the pool: none of them is left and check() is clean": (
            facts.kill["signal"] == signal.SIGKILL
            and facts.kill["half_written"] > 0
            and facts.kill["left_over"] == 0
            and facts.kill["violations"] == []
        ),
        "C, started when A and B were gone, found the cache warm": (
            facts.kill["still_attached"] == [] and of_c != [] and all(turn.reused_tokens >= enough for turn in of_c)
        ),
    }


STORY = Story(
    engine="vllm",
    needs=preflight.VLLM_NEEDS,
    find_torch=lambda: preflight.find_vllm(),
    acts=_acts,
    promises_of=promises_of,
    command="maru demo --engine vllm",
)
