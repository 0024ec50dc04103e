"""A prompt's beginning from everywhere it can come from: the answers are the same, and who gave it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maru.bench.engines.hit_sources import (
    COMPUTED,
    CONNECTOR,
    FOLDER,
    LMCACHE,
    OBJECTS,
    POOL,
    PREFIX_CACHE,
    Field,
    NotCopied,
    measure,
)
from maru.bench.engines.lmcache_ttft import prompts_of

CONTEXT = 512
CHUNKS = 2
ROUNDS = 4
"""So many steps until a rate is measured: the first one does not count."""

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@contextmanager
def engines(door: str, model: Path, folder: Path) -> Iterator[Field]:
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    below = folder / "below"
    below.mkdir()
    with Field(door, model, below, folder) as engines:
        yield engines


def from_below(ladders: list[dict[str, Any]]) -> Counter[str]:
    """Chunks by the kind of place they came from."""
    found: Counter[str] = Counter()
    for told in ladders:
        for place, chunks in told["sources"]["below"].items():
            found[place.partition(":")[0]] += chunks
    return found


def test_hits_from_everywhere_give_the_same_answers_and_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engines(CONNECTOR, model, tmp_path) as running:
        rows, same, ladders = measure(running, prompts_of(model), CONTEXT, ROUNDS, lambda *_: None)
        monkeypatch.setattr("maru.bench.engines.hit_sources.COPIED_DEADLINE_S", 0.0)
        with pytest.raises(NotCopied, match=f"{ROUNDS * CHUNKS}.* of 1000 chunks"):
            running.wait_copied(1000)
    assert same
    assert {name: row["cached_tokens"] for name, row in rows.items()} == {
        COMPUTED: 0, PREFIX_CACHE: CONTEXT, POOL: CONTEXT, FOLDER: CONTEXT, OBJECTS: CONTEXT,
    }  # fmt: skip
    assert from_below(ladders[FOLDER]) == {"file": ROUNDS * CHUNKS}
    assert from_below(ladders[OBJECTS]) == {"s3": ROUNDS * CHUNKS}
    for (told,) in (ladders[FOLDER], ladders[OBJECTS]):
        assert told["decision"] == {
            "loads": ROUNDS, "computes": 0, "prefill_tokens_per_s": None, "prefill_double_at": None,
            "prefill_is": "none",
        }  # fmt: skip
        assert told["places"][0]["load_bytes_per_s"] > 0
    (storing,) = ladders[POOL]
    assert storing["decision"]["prefill_is"] == "measured"
    assert storing["decision"]["prefill_tokens_per_s"] > 0
    assert storing["sources"] == {"pool": 0, "below": {}, "computed": ROUNDS * CHUNKS}


def test_lmcache_hits_from_everywhere_too(model: Path, tmp_path: Path) -> None:
    with engines(LMCACHE, model, tmp_path) as running:
        rows, same, ladders = measure(running, prompts_of(model), CONTEXT, 1, lambda *_: None)
    assert same
    assert {name: row["cached_tokens"] for name, row in rows.items()} == {
        COMPUTED: 0, POOL: CONTEXT, FOLDER: CONTEXT, OBJECTS: CONTEXT,
    }  # fmt: skip
    assert from_below(ladders[FOLDER]) == {"file": CHUNKS}
    assert from_below(ladders[OBJECTS]) == {"s3": CHUNKS}
