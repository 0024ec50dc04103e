"""Kills in a figure: what dies and when, what is told of it, and that our own daemon is among those who die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from toy_systems import ToyDeployment, ToyReplica, ToySystem

from maru.bench import daemons, usage
from maru.bench.figures import chaos, figure_named
from maru.bench.figures.chaos import SERVER
from maru.bench.loads.drive import Served, Turn
from maru.bench.session import Session
from maru.bench.systems import roster, transformers
from maru.bench.systems.contract import Answer, Job, Replica
from maru.errors import PoolNotFound
from maru.pool import Pool

PATIENCE_S = 30
CHUNK_TOKENS = 16
PROMPT = list(range(3 * CHUNK_TOKENS + 5))


class Watched(ToyDeployment):
    """Says when so many have been killed."""

    def __init__(self, enough: int, has_server: bool) -> None:
        super().__init__(cast(Job, None), make=lambda _number: ToyReplica(), has_server=has_server)
        self.add()
        self.add()
        self.deaths, self._enough, self.is_enough = list[str](), enough, threading.Event()
        for number, replica in enumerate(self.replicas):
            replica.kill = self.noting(f"replica {number}")  # type: ignore[method-assign]

    def noting(self, who: str) -> Callable[[], None]:
        def note() -> None:
            self.deaths.append(who)
            if len(self.deaths) == self._enough:
                self.is_enough.set()

        return note

    def kill_server(self) -> bool:
        self.noting("server")()
        return True


def deaths(has_server: bool, seed: int = 1) -> list[str]:
    deployment = Watched(12, has_server)
    killer = chaos._Killer(deployment, every_s=0.001, until_s=3600, seed=seed)
    killer.begin()
    assert deployment.is_enough.wait(PATIENCE_S)
    killer.end()
    assert len(killer.kills) == len(deployment.deaths)
    return deployment.deaths[:12]


def test_a_server_dies_first_and_then_whoever_the_seed_says() -> None:
    found = deaths(has_server=True)
    assert found[0] == "server"
    assert set(found[1:]) == {"server", "replica 0", "replica 1"}
    assert deaths(has_server=True) == found


def test_where_there_is_no_server_only_replicas_die() -> None:
    assert set(deaths(has_server=False)) == {"replica 0", "replica 1"}


def told_of(served: list[Served], kills: list[tuple[float, int]]) -> tuple[dict[tuple[str, Any], float], list[str]]:
    """The figure's samples of one system, and its remarks."""
    samples: dict[tuple[str, Any], float] = {}
    remarks: list[str] = []
    run = SimpleNamespace(
        check=lambda _answer, _prompt: True,
        setting={"seconds": 10.0}.__getitem__,
        note=lambda measure, _name, x, value: samples.__setitem__((measure, x), value),
        remark=remarks.append,
    )
    chaos._note(cast(Session, run), "toy", served, kills)
    return samples, remarks


def answered(replica: int, asked_s: float, cached: int) -> Served:
    return Served(Turn(0, 0, (1,)), replica, Answer(0.1, 0.1, 8, cached, (1,)), asked_s, asked_s + 0.5)


def test_after_the_servers_end_any_replicas_hit_counts_and_after_a_replicas_only_its_successors() -> None:
    served = [answered(0, 0.9, 8), answered(0, 2.0, 0), answered(1, 3.0, 8), answered(0, 6.0, 8), answered(1, 7.0, 8)]
    samples, remarks = told_of(served, [(1.0, SERVER), (5.0, 1)])
    assert samples["first-hit", "of the server"] == 2.5  # Not of what was asked before, nor a miss.
    assert samples["first-hit", "of a replica"] == 2.5
    assert (samples["kills-events", 1.0], samples["kills-events", 5.0]) == (2.0, 1.0)
    assert remarks == []


def test_a_kill_after_which_nothing_hits_is_said() -> None:
    samples, remarks = told_of([answered(0, 2.0, 0)], [(1.0, SERVER)])
    assert ("first-hit", "of the server") not in samples
    assert remarks == ["toy: after a kill of the server no hit came within the load"]


def test_ours_takes_part_behind_a_daemon_too_and_who_was_not_chosen_stays_away() -> None:
    figure, run = figure_named("chaos"), cast(Session, SimpleNamespace(engine="transformers"))
    names = [one.name for one in figure.systems(run, roster.systems_of("transformers"))]
    assert names == ["recompute", "prefix-cache", "maru", "maru-wire"]
    assert [one.name for one in figure.systems(run, [ToySystem("recompute")])] == ["recompute"]


@pytest.mark.parametrize(("engine", "behind"), [("transformers", True), ("lmcache", True), ("vllm", False)])
def test_an_engine_has_ours_behind_a_daemon_unless_it_needs_a_pool_of_its_own_host(engine: str, behind: bool) -> None:
    found = roster.by_daemon(engine)
    assert (found is not None) is behind
    assert found is None or (found.name == "maru-wire" and found.crosses)


def test_without_what_a_daemon_needs_only_ours_behind_one_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "NEEDED", ("no_such_package",))
    assert "no_such_package" in transformers.BY_DAEMON.why_not()
    assert "no_such_package" not in transformers.SYSTEMS[-1].why_not()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers: its answers are noise, but the same noise."""
    torch, hugging_face = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hugging_face.LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    hugging_face.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def hits_again(replica: Replica, output: tuple[int, ...]) -> bool:
    """Until it has found the daemon again it computes: whatever it says is right."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        answer = replica.ask(PROMPT, 2)
        assert answer.output == output
        if answer.cached_tokens == 3 * CHUNK_TOKENS:
            return True
    return False


@pytest.mark.demo
def test_a_daemon_that_was_killed_comes_back_and_every_replica_hits_what_was_stored_before(
    model: Path, tmp_path: Path
) -> None:
    if reason := transformers.BY_DAEMON.why_not():
        pytest.skip(reason)
    job = Job(
        folder=tmp_path, memory=tmp_path, model_name="tiny", model=model, token_bytes=1024, chunk_tokens=CHUNK_TOKENS,
        context_tokens_max=256, capacity_bytes=128 << 20,
    )  # fmt: skip
    with transformers.BY_DAEMON.deploy(job) as deployment:
        a, b = deployment.add(), deployment.add()
        first = a.ask(PROMPT, 2)
        assert first.cached_tokens == 0
        with Pool.attach(cast(Any, deployment).url) as pool:  # Replicas have only what the daemon brings them.
            attached = {row["pid"] for row in pool.stats()["processes"]}
        assert not attached & {a.pid, b.pid}
        before = deployment.server_pids()
        assert deployment.kill_server()
        daemon = deployment.server_pids()
        assert len(daemon) == len(before) == 1
        assert daemon != before
        assert hits_again(b, first.output)
        assert hits_again(a, first.output)
        b.kill()
        assert hits_again(deployment.restart(1), first.output)
    assert usage.family([*before, *daemon]) == set()
    with pytest.raises(PoolNotFound):
        Pool.attach(cast(Any, deployment).url)
