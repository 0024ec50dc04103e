"""`python -m maru.bench`: measure, show the table, write the JSON file. `… rivals` and the like hand over."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

DEFAULT_JSON = Path("bench-results") / "pool.json"


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended from outside; nothing was left behind")


def main() -> None:
    if importlib.util.find_spec("numpy") is None:
        sys.exit("the benchmark needs numpy: pip install 'maru-kvcache[bench]', or 'make setup' in a checkout")
    if sys.argv[1:2] == ["rivals"]:
        from maru.bench.rivals.run import main as rivals

        rivals(sys.argv[2:])
        return
    if sys.argv[1:2] == ["vllm"]:
        from maru.bench.engines.vllm_hits import main as vllm_hits

        vllm_hits(sys.argv[2:])
        return
    if sys.argv[1:2] == ["lossy"]:
        from maru.bench.lossy_answers import main as lossy_answers

        lossy_answers(sys.argv[2:])
        return
    if sys.argv[1:2] == ["tenants"]:
        from maru.bench.tenants.run import main as tenants

        signal.signal(signal.SIGTERM, _end)
        tenants(sys.argv[2:])
        return
    if sys.argv[1:2] == ["sources"]:
        from maru.bench.engines.hit_sources import main as hit_sources

        hit_sources(sys.argv[2:])
        return
    if sys.argv[1:2] == ["lmcache"]:
        from maru.bench.engines.lmcache_ttft import main as lmcache_ttft

        lmcache_ttft(sys.argv[2:])
        return
    if sys.argv[1:2] == ["lmcache-copies"]:
        from maru.bench.engines.lmcache_copies import main as lmcache_copies

        lmcache_copies(sys.argv[2:])
        return
    from maru.bench import ground, machine, pool_figures, report
    from maru.bench.measure import Row

    parser = argparse.ArgumentParser(
        prog="python -m maru.bench",
        description="Measure the pool on this machine.",
        epilog="`python -m maru.bench rivals` measures it beside what one would use instead, `… vllm` hits through our "
        "own connector, `… sources` by where they come from, `… lmcache` vLLM with LMCache, `… lmcache-copies` what "
        "LMCache copies into stores and out, `… lossy` what codecs do to a model's answers, `… tenants` how far "
        "tenants are apart and what that costs.",
    )
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a first look; figures are rough")
    parser.add_argument("--only", choices=list(pool_figures.GROUPS), help="one group of rows")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, _end)  # So that pools are destroyed then too.
    out = report.console()
    begun = time.monotonic()
    chosen = [options.only] if options.only else list(pool_figures.GROUPS)
    groups: dict[str, list[Row]] = {}
    absent: dict[str, str] = {}
    try:
        plan = ground.make_plan(options.quick)
        with ground.bench_pool("facts", 16 * ground.MIB) as pool:
            facts = machine.machine_facts(pool)
        with report.progress_bar(out, len(chosen)) as show:
            for name in chosen:
                title, figures = pool_figures.GROUPS[name]
                show(title, 0, 1)
                try:
                    groups[name] = figures(plan, partial(show, title))
                except ground.Missing as error:
                    groups[name], absent[name] = [], str(error)
    except ground.TooSmall as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")

    for line in report.machine_lines(facts):
        out.print(line, markup=False)
    remarks = report.remarks(facts, plan.note)
    for line in remarks:
        out.print(f"Note: {line}", markup=False)
    titles = {name: pool_figures.GROUPS[name][0] for name in groups}
    reasons = {titles[name]: [reason] for name, reason in absent.items()}
    out.print(report.tables({titles[name]: rows for name, rows in groups.items()}, out.width, reasons))
    document = {
        "quick": plan.quick,
        "data_bytes": plan.data_bytes,
        "source_bytes": plan.source_bytes,
        "remarks": remarks,
        "machine": facts,
        "absent": absent,
        "groups": {name: [report.row_json(row) for row in rows] for name, rows in groups.items()},
    }
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}", markup=False)


if __name__ == "__main__":
    main()
