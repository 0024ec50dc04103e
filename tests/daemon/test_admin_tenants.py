"""What tenants are promised, by the admin API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import maru
from fake_daemon import FakeFacts
from http_asking import ask, serving
from maru.daemon.web import WebServer

CHUNK = 64 << 10


@pytest.fixture
def space(pool: maru.Pool) -> maru.Namespace:
    """Of tenant `blue`, with four chunks in it."""
    blue = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="blue"))
    for number in range(4):
        assert pool.put(bytes([number]) * 16, bytes(CHUNK), namespace=blue) == maru.Outcome.STORED
    return blue


@pytest.fixture
def server(pool: maru.Pool) -> Iterator[WebServer]:
    with serving(FakeFacts(pools={"kv": pool})) as running:
        yield running


def test_a_tenant_is_promised_a_share_by_the_api(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    body = {"share_bytes": CHUNK, "limit_bytes": 4 * CHUNK, "at_limit": "refuse"}
    told = ask(server, "/v1/pools/kv/tenants/blue", body=body)
    assert told.status == 200
    rows = {row["name"]: row for row in ask(server, "/v1/pools/kv/tenants").json["tenants"]}
    assert rows == {row["name"]: row for row in told.json["tenants"]}
    assert rows["blue"] == body | {
        "name": "blue", "used_bytes": 4 * CHUNK, "made_way": 0, "made_own_way": 0, "refused": 0
    }  # fmt: skip
    assert pool.put(b"n" * 16, bytes(CHUNK), namespace=space) == maru.Outcome.FULL


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"share_bytes": 1 << 50}, 409, "ShareTooLarge"),
        ({"share_bytes": 2, "limit_bytes": 1}, 409, "ShareTooLarge"),
        ({"share_bytes": -1}, 400, "BadBody"),
        ({"at_limit": "beg"}, 400, "BadBody"),
    ],
)
def test_a_share_that_cannot_be_promised_is_refused(
    server: WebServer, space: maru.Namespace, body: dict[str, object], status: int, error: str
) -> None:
    answer = ask(server, "/v1/pools/kv/tenants/blue", body=body)
    assert (answer.status, answer.json["error"]) == (status, error)
