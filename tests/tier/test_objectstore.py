"""Object stores: what only they do."""

from __future__ import annotations

import asyncio
import socket

import pytest

from maru.errors import BadUrl, NoSuchObject, TierFailed
from maru.testing.tier_contract import content_of, fresh_name, read
from maru.tier.objectstore import PART_BYTES, _said
from maru.tier.opening import open_tier, parse_tier_url


def test_a_large_object_goes_up_in_parts_and_comes_back_by_ranges(s3_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(s3_url))
        name, content = fresh_name(), content_of(2 * PART_BYTES + 5)
        await tier.store(name, [content[:3], content[3:]])
        assert await read(tier, name) == content
        assert await read(tier, name, PART_BYTES - 1, 3) == content[PART_BYTES - 1 : PART_BYTES + 2]
        await tier.close()
        with pytest.raises(TierFailed, match="closed"):
            await tier.contains([name])

    asyncio.run(run())


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3_url: str) -> None:
    async def run() -> None:
        one, other = (open_tier(parse_tier_url(s3_url.replace("/below", f"/{name}"))) for name in ("one", "other"))
        name = fresh_name()
        await one.store(name, [b"x"])
        assert await other.contains([name]) == [False]
        assert [listed async for listed in other.list()] == []
        with pytest.raises(NoSuchObject):
            await read(other, name)

    asyncio.run(run())


def test_a_bucket_that_is_not_there_fails(s3_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(s3_url.replace("maru-kv", "nobodys-bucket")))
        with pytest.raises((TierFailed, NoSuchObject)):
            await tier.health()

    asyncio.run(run())


def test_a_store_that_does_not_answer_fails_at_its_deadline_and_shows_no_secret(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Bound, and nobody listens.
        url = f"s3://maru-kv?region=r&endpoint=http://127.0.0.1:{nobody.getsockname()[1]}&allow_http=1&deadline=0.3"

        async def run() -> None:
            tier = open_tier(parse_tier_url(url + "&retries=1"))
            for call in (tier.health(), tier.contains([fresh_name()] * 40), tier.store(fresh_name(), [b"x"])):
                with pytest.raises(TierFailed) as failed:
                    await call
                assert "hidden" not in str(failed.value)

        asyncio.run(run())


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    with pytest.raises(BadUrl, match="endpoint="):
        open_tier(parse_tier_url("s3://maru-kv?region=r&endpoint=host:1"))


def test_a_signature_in_an_address_is_not_shown() -> None:
    shown = _said(OSError("error for https://me:word@host/x?sig=secret&se=1 (timed out)\nmore"))
    assert shown == "error for https://***@host/x?*** (timed out)"


@pytest.mark.parametrize("url", ["gs://bucket/p?anonymous=1", "az://container/p?account=a&anonymous=1"])
def test_the_other_stores_can_be_opened_without_asking_anybody(url: str) -> None:
    assert open_tier(parse_tier_url(url)).kind == url[:2]
