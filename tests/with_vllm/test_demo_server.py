"""How the demo starts a server and asks it, with the real vLLM. The whole story is `make demo-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest

import maru
from maru.demo.vllm_servers import Server, ServerLost

BYTES_PER_TOKEN = 46_080

pytestmark = [pytest.mark.engines, pytest.mark.crash, pytest.mark.timeout(600)]


def test_a_server_answers_alike_cold_and_from_the_pool_and_a_dead_one_is_named(
    model: Path, pool_name: str, tmp_path: Path
) -> None:
    url = f"maru:///{pool_name}?size=512MiB"
    maru.Pool.open(url).close()
    question = {"role": "user", "content": "The tempest took the ship. " * 100 + "What took the ship?"}
    request = {"do": "answer", "messages": [question], "max_new_tokens": 8}
    with Server("B", model, url, cpus=[0], folder=tmp_path) as server:
        server.wait_ready()
        stored, cold, pooled = (server.ask({**request, "with_pool": with_pool}) for with_pool in (True, False, True))
        for computed in (stored, cold):
            assert computed["reused_tokens"] == computed["bytes_loaded"] == 0
        assert pooled["prompt_tokens"] == cold["prompt_tokens"] > 512
        assert pooled["reused_tokens"] == 512
        assert pooled["bytes_loaded"] == 512 * BYTES_PER_TOKEN
        assert pooled["output_ids"] == cold["output_ids"] == stored["output_ids"]
        assert len(cold["output_ids"]) == 8
        assert pooled["answer"] == cold["answer"] != ""
        asking = server.ask_in_vain([question])
        assert server.kill() == -9
        asking.join(60)
        assert not asking.is_alive()
        with pytest.raises(ServerLost, match=r"server B .* gave no answer"):
            server.ask({**request, "with_pool": True})
