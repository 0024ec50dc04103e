"""URLs of places below the pool: what may stand in them, and what is shown of them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from maru.errors import BadUrl, MissingPackage
from maru.tier import opening
from maru.tier.opening import open_tier, parse_tier_url


def test_a_url_says_everything_about_a_tier() -> None:
    config = parse_tier_url(
        "s3://bucket/a/b?region=r&codec=blosc2&encrypt=tenant&keys=file:/etc/maru/tier.keys&write=through&ttl=7d"
        "&deadline=1.5&item_bytes=4"
    )
    assert (config.kind, config.place, config.codec, config.item_bytes) == ("s3", "bucket/a/b", "blosc2", 4)
    assert (config.encrypt, config.keys) == ("tenant", "file:/etc/maru/tier.keys")
    assert (config.policy.write, config.ttl_s, config.deadline_s) == ("through", 7 * 86400, 1.5)
    assert dict(config.options) == {"region": "r"}


@pytest.mark.parametrize(
    ("url", "kind", "place"),
    [
        ("file:///var/lib/maru/?size=500GiB", "file", "/var/lib/maru"),
        ("nfs:///mnt/a%20b", "nfs", "/mnt/a b"),
        ("gs://bucket", "gs", "bucket"),
        ("az://container/p", "az", "container/p"),
        ("redis://host", "redis", "host:6379/0"),
        ("rediss://:word@host:1/3", "rediss", "host:1/3"),
        ("valkey://[::1]:7/2?cluster=0", "redis", "[::1]:7/2"),
        ("valkeys://host", "rediss", "host:6379/0"),
        ("mooncake://host", "mooncake", "host:50051/maru"),
        ("mooncake://[::1]:7/kv/a", "mooncake", "[::1]:7/kv/a"),
    ],
)
def test_each_form_names_its_place(url: str, kind: str, place: str) -> None:
    config = parse_tier_url(url)
    assert (config.kind, config.place) == (kind, place)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "known are file, nfs, s3"),
        ("file:///x?sise=3", "known for file:// are codec, .*size"),
        ("redis://host?size=1G", "known for redis://"),
        ("file:///x?size=1G&size=2G", "twice"),
        ("file:///x?size=much", "not a size"),
        ("file://x/y", "three slashes"),
        ("file:///", "not a folder"),
        ("file:///a/../b", "not a folder"),
        ("file:/x", "not a tier's URL"),
        ("/x", "not a tier's URL"),
        ("s3:///x", "BUCKET/PREFIX"),
        ("mooncake:///x", "HOST:PORT/PREFIX"),
        ("mooncake://me:word@host", "no password"),
        ("s3://key:secret@bucket", "come from the environment"),
        ("s3://b/a/../c", "not a prefix"),
        ("redis:///0", "HOST:PORT/DB"),
        ("redis://host/x", "database"),
        ("redis://host:99999", "not a URL"),
        ("redis://host#x", "fragment"),
        ("redis://host?cluster=yes", "cluster=yes"),
        ("file:///x?encrypt=tenant", "go together"),
        ("file:///x?keys=env:K", "go together"),
        ("file:///x?encrypt=all&keys=env:K", "encrypt=all"),
        ("file:///x?write=never", "write=never"),
        ("file:///x?ttl=0", "ttl=0"),
        ("file:///x?deadline=1h", "deadline=1h"),
        ("file:///x?threads=0", "threads=0"),
        ("file:///x?item_bytes=3", "item_bytes=3"),
        ("file:///x?codec=", "codec="),
        ("file:///a b", "space"),
        ("file:///a%00b", "control"),
        ("file:///" + "x" * 5000, "too long"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_there_is(url: str, said: str) -> None:
    with pytest.raises(BadUrl, match=said) as refused:
        parse_tier_url(url)
    assert "maru:///NAME" not in str(refused.value)


def test_no_secret_is_shown() -> None:
    config = parse_tier_url("redis://user:hidden@host/0?encrypt=tenant&keys=env:hidden")
    assert "hidden" not in repr(config) + config.shown + config.place
    with pytest.raises(BadUrl) as refused:
        parse_tier_url("redis://user:hidden@host:port/0?keys=hidden")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(("url", "package"), [("s3://bucket", "obstore"), ("redis://host", "redis")])
def test_a_library_that_is_not_there_is_named_with_how_to_get_it(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_tier_url(url)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"maru-kvcache\[tiers\]") as missing:
        open_tier(config)
    assert missing.value.package == package


def not_a_tier(config: Any) -> object:
    return config


def test_others_bring_schemes_of_their_own_and_cannot_take_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, f"{__name__}:not_a_tier", opening.ENTRY_POINTS) for name in ("mine", "file")]
    monkeypatch.setattr(opening, "entry_points", lambda group: points if group == "maru.tiers" else [])
    config = parse_tier_url("mine://me:hidden@there/x?colour=red&codec=zstd")
    assert (config.kind, config.place, config.codec) == ("mine", "there/x", "zstd")
    assert dict(config.options) == {"colour": "red"}
    with pytest.raises(BadUrl, match="does not make"):
        open_tier(config)
    assert open_tier(parse_tier_url("file:///x")).kind == "file"
