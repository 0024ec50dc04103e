"""The arithmetic of figures: energy above idling, prefill that hits save, sources of hits, KV sizes of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from maru.bench.energy import Counters, Meter
from maru.bench.figures import NAMES, figure_named
from maru.bench.figures.bandwidth import numa_nodes
from maru.bench.figures.capacity import traces_of
from maru.bench.figures.cost import _fitted, _growth, _saved_share, _seconds
from maru.bench.figures.workloads import _settled_after, _sources
from maru.bench.hit_rates import TRACES
from maru.bench.loads.drive import Served, Turn
from maru.bench.media_child import MediaChild
from maru.bench.prefix_trace import read_trace
from maru.bench.session import BadSetting, Session
from maru.bench.simulated import POLICIES
from maru.bench.systems.contract import Answer
from maru.bench.systems.models import MODELS, UnknownModel, model_named


def ticking(*moments: float) -> Iterator[float]:
    yield from moments


def test_active_energy_is_what_idling_would_not_have_taken() -> None:
    joules, clock = ticking(100.0, 160.0), ticking(0.0, 4.0)
    meter = Meter(Counters({"CPU 0": lambda: next(joules)}), clock=lambda: next(clock), sample_s=60.0)
    meter.idle_watts = 5.0
    with meter.window() as window:
        pass
    assert (window.seconds, window.joules) == (4.0, 60.0)
    assert meter.active_joules(window) == 40.0


def test_idling_more_than_was_counted_is_no_negative_energy() -> None:
    meter = Meter(Counters({}))
    meter.idle_watts = 5.0
    with meter.window() as window:
        pass
    assert meter.active_joules(window) == 0.0


def test_without_counters_no_joule_is_told() -> None:
    meter = Meter(Counters({}, ["no RAPL"]))
    with meter.window() as window:
        pass
    assert window.joules == 0.0
    assert window.power == []


def with_samples(pairs: list[tuple[int, float]]) -> Session:
    return cast(Session, SimpleNamespace(values=lambda _m, _s, x: [value for at, value in pairs if at == x]))


def test_a_prefill_curve_is_found_from_its_points() -> None:
    run = with_samples([(n, 2e-3 * n + 3e-7 * n * n) for n in (500, 1000, 4000)])
    b, a = _fitted(run, "recompute", [500, 1000, 4000])
    assert (a, b) == (pytest.approx(2e-3), pytest.approx(3e-7))


def test_a_hit_costs_what_grows_with_its_length() -> None:
    run = with_samples([(n, 0.3 + 1e-5 * n) for n in (500, 1000, 4000)])
    assert _growth(run, "maru", [500, 1000, 4000]) == (0.0, pytest.approx(1e-5))


def test_the_saved_share_of_a_curve_is_that_of_its_own_weights() -> None:
    trace = read_trace(TRACES / "bfcl8.pct.xz")
    capacity = trace.chunk_count // 4
    saved = POLICIES["LRU"](trace, capacity)
    curve = 3e-7, 2e-3
    hits = hits_of_lru(trace, capacity)
    every = sum(_seconds(curve, tokens) for tokens in trace.prompt_tokens)
    exact = sum(_seconds(curve, chunks * trace.chunk_tokens) for chunks in hits) / every
    assert _saved_share(trace, saved.tokens, saved.prefill, curve) == pytest.approx(exact)


def hits_of_lru(trace: Any, capacity: int) -> list[int]:
    """The hits of each request, recorded from the simulation itself."""
    from maru.bench import simulated

    found: list[int] = []

    class Recording(simulated.Tally):
        def hit(self, chunks: int) -> None:
            found.append(chunks)
            super().hit(chunks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "Tally", Recording)
        POLICIES["LRU"](trace, capacity)
    return found


def served(replica: int, prompt: tuple[int, ...], cached: int) -> Served:
    return Served(Turn(0, 0, prompt), replica, Answer(0.1, 0.1, len(prompt), cached), 0.0, 0.0)


def test_a_hit_is_the_replicas_own_as_far_as_it_saw_the_prefix_itself() -> None:
    run = cast(Session, SimpleNamespace(chunk_tokens=4))
    long, short = tuple(range(12)), tuple(range(8))
    stream = [served(0, short, 0), served(1, long, 8), served(0, long, 12), served(1, long, 12)]
    assert _sources(run, stream, 2, crosses=True) == (8 + 12, 8 + 4)
    assert _sources(run, stream, 2, crosses=False) == (32, 0)


@pytest.mark.parametrize(
    ("shares", "after"),
    [([0.0] * 6, None), ([0.0, 0.9, 0.9, 0.9, 0.9, 0.9], 6), ([0.9] * 6, 1), ([0.0] * 8 + [0.8] * 16, 16)],
)
def test_hits_have_settled_when_the_latest_ones_are_like_the_last(shares: list[float], after: int | None) -> None:
    assert _settled_after(shares) == after


def test_kv_of_a_token_is_as_the_models_publish() -> None:
    assert MODELS["Llama-3.1-8B"].token_bytes == 131_072
    assert MODELS["Qwen3-30B-A3B"].token_bytes == 98_304
    assert MODELS["SmolLM2-135M"].token_bytes == 46_080
    assert model_named("4096").token_bytes == 4096


@pytest.mark.parametrize("name", ["Llama", "0", "-2", "7", ""])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(UnknownModel):
        model_named(name)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    run = SimpleNamespace(setting={"traces": str(tmp_path), "only": (), "chunk_tokens": 256}.__getitem__)
    with pytest.raises(BadSetting):
        traces_of(cast(Session, run))


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_what_it_is(name: str) -> None:
    figure = figure_named(name)
    assert figure.name == name
    assert figure.question.endswith("?")
    assert len({knob.name for knob in figure.knobs}) == len(figure.knobs)
    assert all(type(knob.full) is type(knob.quick) for knob in figure.knobs)


def test_memory_can_be_bound_to_a_node_and_set_free_again(tmp_path: Path) -> None:
    media = MediaChild()
    media.make([str(tmp_path / "file")], 1 << 20, numa_nodes()[0])
    assert (tmp_path / "file").stat().st_size == 1 << 20
    with pytest.raises(OSError, match="node 62"):
        media.make([str(tmp_path / "other")], 1 << 20, 62)
    media.make([str(tmp_path / "third")], 1 << 20, numa_nodes()[0])
