"""Two vLLM processes, each at an LMCache server of its own, Maru as both servers' second level: a request's salt goes
all the way into the pool's keys.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_kit import settled, stored
from maru.bench.engines.lmcache_ways import WAYS, Setting
from maru.bench.engines.vllm_instance import About, VllmInstance

CHUNK_TOKENS, CHUNKS, ANSWER_TOKENS = 256, 2, 8

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM: see make engines"),
]


@pytest.fixture(scope="module")
def setting(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("mp")
    return Setting(model, folder, folder, capacity_bytes=1 << 30, context_tokens_max=2048)


@pytest.fixture(scope="module")
def two(setting: Setting) -> Iterator[list[VllmInstance]]:
    way = next(way for way in WAYS if way.name == "mp-l2-maru")
    with way.servers(setting):
        instances = [VllmInstance(way.engine(setting, number)) for number in (0, 1)]
        try:
            yield [instance.wait_ready() for instance in instances]
        finally:
            for number, instance in enumerate(instances):
                pid = instance.process.pid
                instance.close()
                way.clean_up(setting, number, pid)


@pytest.mark.parametrize(
    ("number", "mine", "theirs", "shared"),
    [
        pytest.param(0, "one", "one", True, id="equal salts share"),
        pytest.param(1, "one", "other", False, id="other salts do not"),
        pytest.param(2, "one", None, False, id="a salt and none do not"),
    ],
)
def test_users_share_exactly_when_their_salts_are_equal(
    two: list[VllmInstance], text_ids: list[int], setting: Setting,
    number: int, mine: str, theirs: str | None, shared: bool,
) -> None:  # fmt: skip
    a, b = two
    before = stored(setting.pool)
    asked = text_ids[number * 700 :][: CHUNKS * CHUNK_TOKENS + 30]
    computed = a.ask(asked, ANSWER_TOKENS, About(salt=mine))
    there = settled(setting.pool, CHUNKS, before)
    answer = b.ask(asked, ANSWER_TOKENS, About(salt=theirs))
    assert answer.cached_tokens == (CHUNKS * CHUNK_TOKENS if shared else 0)
    assert answer.output_ids == computed.output_ids
    settled(setting.pool, 0 if shared else CHUNKS, there)
