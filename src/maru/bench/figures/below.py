"""The places below a pool: how near each comes to the same thing raw, and what it costs those who wait.

Four parts. Throughput: chunks stored in a place and loaded from it, beside the same bytes written and read without us,
in turns. Codecs: how small they make a real model's KV, and how fast. Puts: what one into a full pool takes while
everything goes down, beside the same without a place. Promotion: until a prefix that lies only below is pinned, beside
reading its bytes raw and beside a hit in the pool. What came is compared byte by byte, after the time has stopped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

from maru.bench import leftovers
from maru.bench.below_child import CHUNK_BYTES, PLACE, POOL, RAW
from maru.bench.document import Measure, System
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.ground import MIB, bench_pool
from maru.bench.loads.prompts import prompts_for
from maru.bench.measure import quantile
from maru.bench.object_server import BUCKET, object_server, why_no_object_server
from maru.bench.raw_places import takes_direct
from maru.bench.rivals.contract import RivalFailed
from maru.bench.rivals.crew import Member, command_of
from maru.bench.session import CHUNK_TOKENS, BadSetting, NothingToMeasure, Session
from maru.bench.systems.models import model_named
from maru.config import format_size
from maru.demo.model import FOLDER_NAME, is_complete
from maru.errors import BadUrl
from maru.tier.opening import parse_tier_url

PARTS = ("throughput", "codecs", "puts", "promotion")
FOLDER, REDIS, OBJECTS = "folder", "redis", "object store"
ONE_BY_ONE = "one by one"
SLAB_BYTES = 4 * CHUNK_BYTES
PUTS_FOLDER_BYTES = 1 << 30
"""Older objects go beyond that, as they do in a place that is full."""
SERVER_BYTES = 64 << 20
"""What Redis needs beside the values."""
_CODECS = ("none", "zstd", "blosc2", "int8")
_CHILDREN = "maru.bench.below_child"


class Below(Figure):
    name = "below"
    title = "Places below the pool"
    question = "How near does a place below the pool come to what it is made of, and who waits for it?"
    engines = ()
    knobs = (
        Knob("only", (), (), f"of the parts {', '.join(PARTS)}; without any, all"),
        Knob("folder", "", "", "a folder on the file system that is measured; without it the model's cache"),
        Knob("s3", "moto", "", "s3://BUCKET/PREFIX?endpoint=URL…, keys: AWS_* variables; moto: a server on this host"),
        Knob("chunks", 32, 8, "chunks of 8 MiB that are stored and loaded for a sample"),
        Knob("put_seconds", 1.5, 0.4, "seconds of puts of 8 MiB for a sample"),
        Knob("every_ms", 20.0, 20.0, "one put every so many milliseconds, beside those one by one"),
        Knob("pool_mib", 512, 192, "size of the pool that is full"),
        Knob("prefixes", 4, 2, "prefixes that lie only below"),
        Knob("prefix_chunks", 16, 16, "chunks of 8 MiB that each of them has"),
        Knob("kv_tokens", 2048, 512, "tokens of source code whose KV goes through the codecs"),
        Knob("sized_as", "Llama-3.1-8B", "Llama-3.1-8B", "the model whose tokens a prefix is told in"),
    )

    def measures(self, run: Session) -> list[Measure]:
        parts, found = parts_of(run), []
        if "throughput" in parts:
            found += [
                Measure("store", "Stored, four chunks at once", "GB/s", "", better="higher", kind="bars"),
                Measure("load", "Loaded and verified, four chunks at once", "GB/s", "", better="higher", kind="bars"),
                Measure(
                    "share", "Throughput of a place, of the same thing raw", "share", "", better="higher", kind="bars",
                    note="of the two samples of a round",
                ),
            ]  # fmt: skip
        if "codecs" in parts and not why_no_kv(run):
            found += [
                Measure("size", "Bytes of an object, of its chunk's", "share", "", kind="bars"),
                Measure("wrap", "Made an object, one core", "GB/s", "", better="higher", kind="bars"),
                Measure("unwrap", "Made a chunk again, one core", "GB/s", "", better="higher", kind="bars"),
            ]
        if "puts" in parts:
            found += [
                Measure("put", "A put of 8 MiB into a full pool", "s", "", kind="bars", note="medians of a round"),
                Measure("put-slow", "The slowest of a hundred puts", "s", "", kind="bars", note="of a round"),
                Measure(
                    "put-share", "A put while chunks go down, of one without a place", "share", "", kind="bars",
                    note="of the medians of a round",
                ),
            ]  # fmt: skip
        if "promotion" in parts:
            found += [
                Measure(
                    "prefix", "Until a prefix is there", "s", "", kind="bars", log_y=True,
                    note=f"{run.setting('prefix_chunks')} chunks of 8 MiB: from below until pinned; raw until read; "
                    "in the pool until copied out of it",
                ),
                Measure(
                    "worth", "Prefill rate from which computing it is quicker", "tokens/s", "", better="higher",
                    kind="bars", note=f"by the KV of {run.setting('sized_as')}",
                ),
            ]  # fmt: skip
        return found

    def perform(self, run: Session) -> None:
        parts = parts_of(run)
        model_named(run.setting("sized_as"))  # Raises UnknownModel now, and not after minutes.
        run.compares(
            [
                System(PLACE, "Maru", "a place below the pool: codec none, four chunks at once"),
                System(RAW, "raw", "write, fsync, rename and preadv; SET and GET; put and get: from four threads"),
                System(POOL, "Maru, the pool alone", "puts with nothing below; hits in it, pinned and copied"),
            ]
        )
        with ExitStack() as stack:
            try:
                places = stack.enter_context(_places(run)) if parts != ["codecs"] else {}
                if "throughput" in parts:
                    for name, url in places.items():
                        _throughput(run, name, url.replace("{part}", "place"))
                if "puts" in parts:
                    _puts(run, places[FOLDER].replace("{part}", "puts"))
                if "promotion" in parts:
                    for name, url in places.items():
                        _promotion(run, name, url.replace("{part}", "prefix"))
                if "codecs" in parts:
                    _codecs(run)
            except RivalFailed as error:
                raise NothingToMeasure(f"a place below the pool cannot be measured here: {error}") from error


def parts_of(run: Session) -> list[str]:
    """Raises BadSetting."""
    wanted = run.setting("only")
    if unknown := set(wanted) - set(PARTS):
        raise BadSetting(f"below has no part {', '.join(sorted(unknown))}; it has {', '.join(PARTS)}")
    return [part for part in PARTS if not wanted or part in wanted]


@contextmanager
def _places(run: Session) -> Iterator[dict[str, str]]:
    """URLs of the places by their names; {part} in one stands for a place of each part's own. Raises BadSetting."""
    chosen = Path(run.setting("folder") or run.options.cache_dir).absolute()
    prefix_bytes = run.setting("prefixes") * run.setting("prefix_chunks") * CHUNK_BYTES
    raw_bytes = 2 * max(prefix_bytes, run.setting("chunks") * CHUNK_BYTES)
    with ExitStack() as stack:
        try:
            chosen.mkdir(parents=True, exist_ok=True)
            if removed := leftovers.clear(chosen):
                run.remark(f"removed what a run that was killed had left: {', '.join(removed)}")
            prefix = f"maru-bench-{os.getpid()}-"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=chosen)))
            stack.enter_context(leftovers.locked(folder))
            is_direct, free = takes_direct(folder), shutil.disk_usage(folder).free
        except OSError as error:
            raise BadSetting(f"folder={chosen}: {error.strerror}") from error
        if free < (needed := raw_bytes + 2 * PUTS_FOLDER_BYTES):
            raise BadSetting(f"folder={chosen}: {format_size(needed)} are needed, {format_size(free)} are free")
        run.remark(
            "files are written and read past the page cache (O_DIRECT), by the place and raw"
            if is_direct
            else "this file system takes no O_DIRECT: the place and raw both write through the page cache, and tell it "
            "to let go of each file; what it keeps all the same, both find there"
        )
        places = {FOLDER: f"file://{quote(str(folder))}/{{part}}?direct={int(is_direct)}&deadline=60s"}
        if reason := why_no_redis():
            run.remark(f"Redis was not measured: {reason}")
        else:
            from maru.bench.rivals.redis_store import RedisOverTcp

            server = RedisOverTcp()
            stack.callback(server.teardown)
            (run.folder / REDIS).mkdir()
            address = server.setup(run.folder / REDIS, 2 * raw_bytes + SERVER_BYTES)
            run.remark(f"{server.version()}; redis-py's blocking client in threads, on both sides")
            places[REDIS] = f"redis://{address}/0?prefix={{part}}:&deadline=60s"
        if (objects := str(run.setting("s3"))) == "moto":
            if reason := why_no_object_server():
                run.remark(f"an object store was not measured: {reason}")
            else:
                where = stack.enter_context(object_server(run.folder / "s3-server.log"))
                places[OBJECTS] = f"s3://{BUCKET}/{{part}}?{where}&deadline=60s"
                run.remark(
                    "the S3 server is moto, in Python on this host: its speed says nothing, the share of raw does"
                )
        elif objects:
            places[OBJECTS] = objects
        for url in places.values():
            try:
                parse_tier_url(url)
            except BadUrl as error:
                raise BadSetting(error.message) from error
        yield places


def why_no_redis() -> str:
    """What is missing; "" for nothing."""
    if shutil.which("redis-server") is None:
        return "there is no redis-server on the PATH"
    return "" if importlib.util.find_spec("redis") else "redis-py is missing: pip install 'maru-kvcache[tiers]'"


def why_no_kv(run: Session) -> str:
    """What the codecs' part lacks; "" for nothing. It fetches no model by itself."""
    if missing := [name for name in ("torch", "transformers", "tokenizers") if not importlib.util.find_spec(name)]:
        return f"{', '.join(missing)} is missing: pip install 'maru-kvcache[demo]'"
    if is_complete(_model(run)):
        return ""
    return f"the demo's model is not in {run.options.cache_dir}: `maru demo` fetches it"


def _model(run: Session) -> Path:
    return run.options.cache_dir / FOLDER_NAME


@contextmanager
def _member(run: Session, kind: str) -> Iterator[Member]:
    member = Member(command_of(sys.executable, kind), run.folder / "below.log")
    try:
        yield member
    finally:
        member.let_go()
        member.await_end()


def _throughput(run: Session, name: str, url: str) -> None:
    with _member(run, f"{_CHILDREN}:PlaceChild") as child:
        child.ask("open", url=url, chunks=run.setting("chunks"))
        for way in (RAW, PLACE):
            child.ask("trial", way=way)  # Connections and folders are made by now.
        run.perform(
            [
                Step(f"throughput, {name}, round {n}", "", partial(_trials, run, child, name, n))
                for n in range(max(3, 2 * run.rounds))
            ]
        )


def _trials(run: Session, child: Member, name: str, number: int) -> None:
    speeds = {}
    for way in run.in_turn([RAW, PLACE], number):
        store_s, load_s, compared, wrong = child.ask("trial", way=way)
        run.count(compared, wrong)
        speeds[way] = [compared * CHUNK_BYTES / seconds / 1e9 for seconds in (store_s, load_s)]
        for measure, speed in zip(("store", "load"), speeds[way], strict=True):
            run.note(measure, way, name, speed, number)
    for what, ours, raw in zip(("stored", "loaded"), speeds[PLACE], speeds[RAW], strict=True):
        run.note("share", PLACE, f"{name}, {what}", ours / raw, number)


def _puts(run: Session, url: str) -> None:
    options = f"gate=off&slab_bytes={SLAB_BYTES}"
    size = run.setting("pool_mib") * MIB
    with ExitStack() as stack:
        children = {}
        for name, place in ((POOL, ""), (PLACE, f"{url}&write=through&size={PUTS_FOLDER_BYTES}")):
            pool = stack.enter_context(bench_pool(f"below-{name}", size, options))
            children[name] = stack.enter_context(_member(run, f"{_CHILDREN}:PutsChild"))
            children[name].ask("open", pool=pool.config.url, url=place)
        paces = {ONE_BY_ONE: 0.0, f"every {run.setting('every_ms'):g} ms": run.setting("every_ms") / 1e3}
        run.perform(
            [
                Step(f"puts, {pace}, round {n}", "", partial(_block, run, children, pace, every_s, n))
                for n in range(max(2, 2 * run.rounds))
                for pace, every_s in paces.items()
            ]
        )


def _block(run: Session, children: dict[str, Member], pace: str, every_s: float, number: int) -> None:
    medians = {}
    for name in run.in_turn(list(children), number):
        seconds, compared, wrong = children[name].ask("puts", span_s=run.setting("put_seconds"), every_s=every_s)
        run.count(compared, wrong)
        medians[name] = statistics.median(seconds)
        run.note("put", name, pace, medians[name], number)
        run.note("put-slow", name, pace, quantile(seconds, 0.99), number)
    run.note("put-share", PLACE, pace, medians[PLACE] / medians[POOL], number)


def _promotion(run: Session, name: str, url: str) -> None:
    prefixes, chunks = run.setting("prefixes"), run.setting("prefix_chunks")
    joint = "&" if "?" in url else "?"
    through = url if "write=" in url else f"{url}{joint}write=through"
    # A prefix fills half a pool at most, or it would push out its own beginning.
    with (
        bench_pool("below-prefix", 3 * chunks * CHUNK_BYTES, f"gate=off&slab_bytes={SLAB_BYTES}") as pool,
        _member(run, f"{_CHILDREN}:PrefixChild") as child,
    ):
        child.ask("open", pool=pool.config.url, url=through, prefixes=prefixes, chunks=chunks)
        child.ask("take", way=RAW, prefix=0)
        run.perform(
            [
                Step(f"promotion, {name}, prefix {which}, round {n}", "", partial(_prefix, run, child, name, which, n))
                for n in range(max(2, run.rounds))
                for which in range(prefixes)
            ]
        )


def _prefix(run: Session, child: Member, name: str, which: int, number: int) -> None:
    """A prefix from below, and then out of the pool; and raw, before that or after it."""
    ways = [RAW, PLACE, POOL] if (which + number) % 2 else [PLACE, POOL, RAW]
    for way in ways:
        seconds, compared, wrong = child.ask("take", way=way, prefix=which)
        run.count(compared, wrong)
        run.note("prefix", way, name, seconds, number)
        if way == PLACE:
            tokens = compared * CHUNK_BYTES / model_named(run.setting("sized_as")).token_bytes
            run.note("worth", way, name, tokens / seconds, number)
    child.ask("forget", prefix=which)


def _codecs(run: Session) -> None:
    if reason := why_no_kv(run):
        run.remark(f"codecs were not measured, since random bytes would tell nothing of them: {reason}")
        return
    prompt = prompts_for(_model(run)).prompt("below", run.setting("kv_tokens"))
    with _member(run, "maru.bench.kv_child:KvChild") as child:
        channels = child.ask("compute", model=str(_model(run)), prompt=prompt, chunk_tokens=CHUNK_TOKENS)
        specs = {name: f"int8:bf16:channels={channels}" if name == "int8" else name for name in _CODECS}
        known = {"zstd": "zstandard", "blosc2": "blosc2"}
        for name, package in known.items():
            if not importlib.util.find_spec(package):
                run.remark(f"{name} was not measured: pip install 'maru-kvcache[tiers]'")
                del specs[name]
        run.remark("codecs: KV of SmolLM2-135M over source code, rounded to bf16; no other model's")
        run.perform(
            [
                Step(f"codec {name}, round {n}", "", partial(_codec, run, child, name, spec, n))
                for n in range(max(2, run.rounds))
                for name, spec in specs.items()
            ]
        )


def _codec(run: Session, child: Member, name: str, spec: str, number: int) -> None:
    share, wrap_rate, unwrap_rate, compared, wrong = child.ask("measure", codec=spec)
    run.count(compared, wrong)
    run.note("size", PLACE, name, share, number)
    run.note("wrap", PLACE, name, wrap_rate / 1e9, number)
    run.note("unwrap", PLACE, name, unwrap_rate / 1e9, number)


FIGURE = Below()
