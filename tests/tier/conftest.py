"""Real servers for tiers, for the whole run: one that speaks S3, one Redis, one Mooncake store."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from redis_servers import redis_server

from mooncake_servers import MooncakeServers, mooncake_servers

S3_SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Where moto answers, with an empty bucket `maru-kv`."""
    pytest.importorskip("moto.server")
    words = [sys.executable, "-W", "ignore", "-c", S3_SERVER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            make_bucket = urllib.request.Request(f"http://127.0.0.1:{port}/maru-kv", method="PUT")
            urllib.request.urlopen(make_bucket, timeout=30).close()
            yield port
        finally:
            server.terminate()


@pytest.fixture
def s3_url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    return f"s3://maru-kv/below?region=us-east-1&endpoint=http://127.0.0.1:{s3_port}&allow_http=1"


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis"), "--requirepass", "hidden") as port:
        yield port


@pytest.fixture
def redis_url(redis_port: int) -> str:
    return f"redis://:hidden@127.0.0.1:{redis_port}/0"


@pytest.fixture(scope="session")
def mooncake_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeServers]:
    with mooncake_servers(tmp_path_factory.mktemp("mooncake"), 512 << 20) as servers:
        yield servers
