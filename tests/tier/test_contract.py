"""Every place below the pool keeps the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from maru.testing.tier_contract import TierContract
from maru.tier.contract import Tier
from maru.tier.opening import open_tier, parse_tier_url
from mooncake_servers import MooncakeServers


class TestDisk(TierContract):
    def make_tier(self, tmp_path: Path) -> Tier:
        return open_tier(parse_tier_url(f"file://{tmp_path}/maru?size=500MiB"))


class TestDiskThroughThePageCache(TierContract):
    def make_tier(self, tmp_path: Path) -> Tier:
        return open_tier(parse_tier_url(f"file://{tmp_path}/maru?direct=0"))


class TestNetworkFolder(TierContract):
    def make_tier(self, tmp_path: Path) -> Tier:
        return open_tier(parse_tier_url(f"nfs://{tmp_path}?size=500MiB"))


class TestS3(TierContract):
    @pytest.fixture(autouse=True)
    def _server(self, s3_url: str) -> None:
        self.url = s3_url

    def make_tier(self, tmp_path: Path) -> Tier:  # noqa: ARG002
        return open_tier(parse_tier_url(self.url))


class TestRedis(TierContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = redis_url

    def make_tier(self, tmp_path: Path) -> Tier:  # noqa: ARG002
        return open_tier(parse_tier_url(self.url))


class TestMooncake(TierContract):
    @pytest.fixture(autouse=True)
    def _server(self, mooncake_store: MooncakeServers) -> None:
        self.url = mooncake_store.url()

    def make_tier(self, tmp_path: Path) -> Tier:  # noqa: ARG002
        return open_tier(parse_tier_url(self.url))
