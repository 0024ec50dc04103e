"""The daemon as a process: how it begins, what it says, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request

import pytest
from serving import serve_process

import maru

END_DEADLINE_S = 20


def test_it_makes_the_pool_says_where_it_listens_and_ends_without_loss(pool_url: str) -> None:
    with serve_process(pool_url) as served:
        with maru.connect(served.address, mode="wire") as client:
            assert client.put(bytes(16), b"kept") is maru.Outcome.STORED
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(END_DEADLINE_S) == 0
    with maru.Pool.attach(pool_url) as pool:
        assert pool.exists(bytes(16))
        assert pool.check() == []


def test_it_shows_people_what_is_there(pool_url: str) -> None:
    with serve_process(pool_url) as served:
        with urllib.request.urlopen(f"{served.http}/readyz", timeout=END_DEADLINE_S) as answer:
            assert answer.read().strip() == b"ready"
        with urllib.request.urlopen(f"{served.http}/metrics", timeout=END_DEADLINE_S) as answer:
            assert b"maru_pool_up" in answer.read()


def test_it_ends_by_itself_when_its_pool_is_destroyed(pool_url: str) -> None:
    """Whoever watches over it starts it again, and it makes the pool anew."""
    with serve_process(pool_url) as served:
        maru.Pool.destroy(pool_url, force=True)
        assert served.process.wait(END_DEADLINE_S) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "tcp://0.0.0.0:0"], "can be reached from other hosts, and there are no keys"),
        (["--http", "0.0.0.0:0"], "can be reached from other hosts, and there are no tokens"),
        (["--listen", "http://127.0.0.1:0"], "write tcp://ADDRESS:PORT"),
        (["--http", "nowhere"], "write ADDRESS:PORT, or off"),
        (["--kv-events", "tcp://127.0.0.1"], "write tcp://ADDRESS:PORT"),
        (["--engine", "one=ftp://x"], "an engine's URL is http"),
        (["--keys", "/nowhere"], "maru keys generate"),
    ],
)
def test_what_cannot_be_served_is_said_with_what_to_do(pool_url: str, words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "maru", "serve", pool_url, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert said in " ".join((done.stderr + done.stdout).replace("│", " ").split())
