"""`maru tenants`: what people type to promise a tenant a part of a pool, and read about it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import maru
from maru.cli import app

MIB = 1 << 20


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["tenants", *words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def url(pool_url: str) -> str:
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=16MiB") as pool:
        pool.put(b"k" * 16, bytes(MIB), pool.namespace(maru.Identity("m", "l", tenant="search")))
        return pool.config.url


def test_a_share_and_a_limit_are_set_and_shown(url: str) -> None:
    code, out, _ = run("set", url, "search", "--share", "4MiB", "--limit", "8MiB", "--at-limit", "refuse", "--json")
    assert code == 0
    row = next(row for row in json.loads(out) if row["name"] == "search")
    assert (row["used_bytes"], row["share_bytes"], row["limit_bytes"]) == (MIB, 4 * MIB, 8 * MIB)
    assert row["at_limit"] == "refuse"
    code, out, _ = run("list", url)
    assert code == 0
    assert "search" in out
    assert "12 MiB of 16 MiB are promised to nobody" in out


def test_what_is_not_named_again_is_taken_back(url: str) -> None:
    run("set", url, "search", "--share", "4MiB")
    _, out, _ = run("set", url, "search", "--limit", "8MiB", "--json")
    row = next(row for row in json.loads(out) if row["name"] == "search")
    assert (row["share_bytes"], row["limit_bytes"]) == (0, 8 * MIB)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("search", "--share", "17MiB"), 1, "has not promised to others"),
        (("search", "--share", "2MiB", "--limit", "1MiB"), 1, "is below the share"),
        (("search", "--share", "much"), 2, "is not a size"),
        (("n" * 64, "--share", "1MiB"), 2, "1 to 63 bytes"),
    ],
)
def test_what_cannot_be_promised_is_refused_by_name(url: str, words: tuple[str, ...], code: int, says: str) -> None:
    got, _, told = run("set", url, *words)
    assert got == code
    assert says in " ".join(told.replace("│", " ").split())


def test_a_pool_with_tenants_shows_them_in_its_figures(url: str) -> None:
    done = CliRunner().invoke(app, ["stat", url])
    assert "Tenants" in done.stdout
    assert "search" in done.stdout
