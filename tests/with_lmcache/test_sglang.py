"""Two SGLang engines, each at an LMCache server of its own, Maru as both servers' second level: what one computed the
other answers from, and a request's salt goes all the way into the pool's keys.

SGLang runs on a CPU without a kernel of its own (`make engines`); LMCache's server has to be told that the engine moves
the bytes, since the other way round it gets SGLang's memory on a CPU wrong.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine_kit import settled, stored
from maru.bench.engines.way_servers import Servers, lmcache_server
from maru.bench.rivals.contract import HOST, free_ports

TESTS = Path(__file__).parents[1]
PYTHON = TESTS.parent / ".venv-sglang" / "bin" / "python"
DEADLINE_S = 240.0
CHUNK_TOKENS, CHUNKS, ANSWER_TOKENS = 256, 2, 8

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="no SGLang: see make engines"),
]


class Engine:
    """One SGLang, in processes of its own."""

    def __init__(self, model: Path, settings: Path, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [PYTHON, TESTS / "sglang_engine.py", model, settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "LMCACHE_TRACK_USAGE": "false"},
                start_new_session=True,  # SGLang kills whoever started it when it cannot start.
            )
        self.log = log

    def wait_ready(self) -> Engine:
        assert self._told() == {"ready": True}
        return self

    def ask(self, ids: list[int], salt: str | None) -> tuple[list[int], int]:
        """(the answer's tokens, prompt tokens that were not computed)."""
        assert self.process.stdin is not None
        asked = {"ids": ids, "answer_tokens": ANSWER_TOKENS, "salt": salt}
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()
        told = self._told()
        return told["ids"], told["cached"]

    def _told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ends = time.monotonic() + DEADLINE_S
        assert select.select([self.process.stdout], [], [], ends - time.monotonic())[0], self.log.read_text()[-4000:]
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-4000:]
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture(scope="module")
def two(model: Path, pool_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    folder = tmp_path_factory.mktemp("sglang")
    before = set(Path("/dev/shm").iterdir())
    place = {"module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter"}
    l2 = {
        "type": "plugin",
        "shared": True,
        **place,
        "adapter_params": {"pool": f"maru:///{pool_of_module}?size=512MiB"},
    }
    moving = ("--supported-transfer-mode", "engine_driven")
    ports = free_ports(4)
    servers = [
        lmcache_server(ports[2 * number], ports[2 * number + 1], 256 << 20, *moving, "--l2-adapter", json.dumps(l2))
        for number in (0, 1)
    ]
    engines = []
    try:
        with Servers(servers, folder / "servers.log"):
            for number in (0, 1):
                settings = folder / f"lmcache-{number}.yaml"
                settings.write_text(
                    f"mp_host: {HOST}\nmp_port: {ports[2 * number]}\n"
                    "extra_config: {lmcache.mp.mp_transfer_mode: engine_driven}\n"
                )
                engines.append(Engine(model, settings, folder / f"engine-{number}.log"))
            yield [engine.wait_ready() for engine in engines]
            for engine in engines:
                engine.close()
    finally:
        for engine in engines:
            engine.close()
        for file in set(Path("/dev/shm").iterdir()) - before:
            if file.name.startswith(("sglang_loads_", "lmcache_kv_")):
                file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("number", "mine", "theirs", "shared"),
    [
        pytest.param(0, None, None, True, id="without salts they share"),
        pytest.param(1, "one", "one", True, id="equal salts share"),
        pytest.param(2, "one", "other", False, id="other salts do not"),
        pytest.param(3, "one", None, False, id="a salt and none do not"),
    ],
)
def test_users_share_exactly_when_their_salts_are_equal(
    two: list[Engine], text_ids: list[int], pool_of_module: str,
    number: int, mine: str | None, theirs: str | None, shared: bool,
) -> None:  # fmt: skip
    a, b = two
    before = stored(pool_of_module)
    asked = text_ids[number * 700 :][: CHUNKS * CHUNK_TOKENS + 30]
    computed, cached = a.ask(asked, mine)
    assert cached == 0
    there = settled(pool_of_module, CHUNKS, before)
    answer, cached = b.ask(asked, theirs)
    assert cached == (CHUNKS * CHUNK_TOKENS if shared else 0)
    assert answer == computed
    settled(pool_of_module, 0 if shared else CHUNKS, there)
