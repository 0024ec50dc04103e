"""A prompt's beginning from everywhere it can come from: the answers are the same, and who gave it is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from maru.bench.engines.hit_sources import (
    COMPUTED,
    FOLDER,
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


@pytest.fixture
def engines(model: Path, tmp_path: Path) -> Iterator[Field]:
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    below = tmp_path / "below"
    below.mkdir()
    with Field(model, below, tmp_path) as engines:
        yield engines


def test_hits_from_everywhere_give_the_same_answers_and_are_told(
    engines: Field, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, same, ladders = measure(engines, prompts_of(model), CONTEXT, ROUNDS, lambda *_: None)
    assert same
    assert {name: row["cached_tokens"] for name, row in rows.items()} == {
        COMPUTED: 0, PREFIX_CACHE: CONTEXT, POOL: CONTEXT, FOLDER: CONTEXT, OBJECTS: CONTEXT,
    }  # fmt: skip
    for name in (FOLDER, OBJECTS):
        (below,) = ladders[name]["sources"]["below"].items()
        assert below[0].startswith("file:" if name == FOLDER else "s3:")
        assert below[1] == ROUNDS * CHUNKS
        assert ladders[name]["decision"] == {
            "loads": ROUNDS, "computes": 0, "prefill_tokens_per_s": None, "prefill_double_at": None,
            "prefill_is": "none",
        }  # fmt: skip
        assert ladders[name]["places"][0]["load_bytes_per_s"] > 0
    storing = ladders[POOL]
    assert storing["decision"]["prefill_is"] == "measured"
    assert storing["decision"]["prefill_tokens_per_s"] > 0
    assert storing["sources"] == {"pool": 0, "below": {}, "computed": ROUNDS * CHUNKS}

    monkeypatch.setattr("maru.bench.engines.hit_sources.COPIED_DEADLINE_S", 0.0)
    with pytest.raises(NotCopied, match=f"{ROUNDS * CHUNKS}.* of 1000 chunks"):
        engines.wait_copied(1000)
