"""The tag by which SaltedLMCacheConnector keeps requests apart, on vLLM's and LMCache's own objects."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmcache.utils import CacheEngineKey

if importlib.util.find_spec("vllm") is None:
    pytest.skip("no vLLM: see make engines", allow_module_level=True)

from lmcache.integration.vllm.utils import extract_request_configs_from_sampling_params
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import Request

from maru_lmcache import SaltedLMCacheConnector
from maru_lmcache.salted import TAG, apartness, tag


def lora(name: str, path: str = "/adapters") -> Any:
    return SimpleNamespace(lora_name=name, lora_path=path)


def request(salt: str | None = None, adapter: Any = None, **transfer: object) -> Request:
    extra = {"kv_transfer_params": transfer} if transfer else None
    asked = Request("r", [1, 2, 3], SamplingParams(extra_args=extra), None, cache_salt=salt)
    asked.lora_request = adapter
    return asked


def key_of(asked: Request) -> str:
    """LMCache's key of a request's chunk."""
    configs = extract_request_configs_from_sampling_params(asked.sampling_params)
    written: str = CacheEngineKey("m", 1, 0, 7, torch.bfloat16, configs).to_string()
    return written


def tagged_key(asked: Request) -> str:
    assert tag(asked)
    return key_of(asked)


def test_a_request_without_salt_and_adapter_keeps_lmcaches_own_key() -> None:
    assert tagged_key(request()) == key_of(request())
    assert tagged_key(request(**{"lmcache.tag.user": "u"})) == key_of(request(**{"lmcache.tag.user": "u"}))


def test_each_salt_and_each_adapter_has_keys_of_its_own() -> None:
    others = [
        request(),
        request("a"),
        request("b"),
        request(None, lora("a")),
        request(None, lora("b")),
        request(None, lora("a", "/elsewhere")),
        request("a", lora("a")),
        request("aa", lora("")),
    ]
    assert len({tagged_key(one) for one in others}) == len(others)
    assert tagged_key(request("a", lora("b"))) == tagged_key(request("a", lora("b")))


def test_the_salt_itself_is_not_in_the_key() -> None:
    assert "hunter2" not in tagged_key(request("hunter2"))


def test_what_a_request_says_under_the_tags_name_is_overwritten() -> None:
    forged = {TAG: apartness(request("victim"))}
    assert tagged_key(request(**forged)) == key_of(request())
    assert tagged_key(request("mine", **forged)) == tagged_key(request("mine"))


def test_no_tag_of_its_own_brings_a_request_to_another_salts_key() -> None:
    """LMCache writes tags one behind the other into one text."""
    victim = tagged_key(request("victim"))
    suffix = victim.removeprefix(key_of(request()))
    name, _, value = suffix.removeprefix("@").partition("%")
    for salt in (None, "mine"):
        for forged in ({f"lmcache.tag.{name}": value}, {f"lmcache.tag.x%y@{name}": value}, {"lmcache.tag.": suffix}):
            assert tagged_key(request(salt, **forged)) != victim


def test_the_rest_of_what_a_request_says_stays_and_the_callers_object_is_not_touched() -> None:
    asked = request("a", **{"lmcache.skip_save": True, "disagg_spec": {"x": 1}})
    given = asked.sampling_params
    assert given is not None
    before = dict(given.extra_args or {})
    assert tag(asked)
    assert asked.sampling_params is not None
    assert given.extra_args == before
    assert (asked.sampling_params.extra_args or {})["kv_transfer_params"] == {
        **before["kv_transfer_params"], TAG: apartness(asked),
    }  # fmt: skip
    again = asked.sampling_params
    assert tag(asked)
    assert asked.sampling_params is again


def test_a_session_whose_parameters_are_replaced_is_tagged_anew() -> None:
    asked = request("a")
    first = tagged_key(asked)
    asked.sampling_params = SamplingParams()
    assert tagged_key(asked) == first


def embedding(salt: str | None) -> Request:
    return Request("e", [1, 2, 3], None, PoolingParams(), cache_salt=salt)


def unstarted(monkeypatch: pytest.MonkeyPatch) -> tuple[SaltedLMCacheConnector, list[Any]]:
    """Ours, with what it passes on to LMCache's written down."""
    passed_on: list[Any] = []
    monkeypatch.setattr(LMCacheConnectorV1, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(LMCacheConnectorV1, "get_num_new_matched_tokens", lambda *_: (7, False))
    monkeypatch.setattr(LMCacheConnectorV1, "update_state_after_alloc", lambda *_: None)
    monkeypatch.setattr(LMCacheConnectorV1, "build_connector_meta", lambda _, output: passed_on.append(output))
    return SaltedLMCacheConnector(None, None, None), passed_on


def scheduled(*requests: Request) -> Any:
    new = [NewRequestData.from_request(one, ([0],)) for one in requests]
    return SimpleNamespace(scheduled_new_reqs=new)


def test_an_embedding_with_a_salt_is_neither_looked_up_nor_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no sampling parameters, and LMCache finds tags nowhere else."""
    connector, passed_on = unstarted(monkeypatch)
    salted, plain = embedding("a"), request("b")
    assert connector.get_num_new_matched_tokens(salted, 0) == (0, False)
    assert connector.get_num_new_matched_tokens(plain, 0) == (7, False)
    for one in (salted, plain):
        connector.update_state_after_alloc(one, None, 0)
    output = scheduled(salted, plain)
    connector.build_connector_meta(output)
    first, second = passed_on[0].scheduled_new_reqs
    assert extract_request_configs_from_sampling_params(first.sampling_params) == {"lmcache.skip_save": True}
    assert extract_request_configs_from_sampling_params(second.sampling_params) == {TAG: apartness(plain)}
    assert output.scheduled_new_reqs[0].sampling_params is None


def test_an_embedding_without_a_salt_is_lmcaches_business(monkeypatch: pytest.MonkeyPatch) -> None:
    connector, passed_on = unstarted(monkeypatch)
    plain = embedding(None)
    assert connector.get_num_new_matched_tokens(plain, 0) == (7, False)
    connector.update_state_after_alloc(plain, None, 0)
    output = scheduled(plain)
    connector.build_connector_meta(output)
    assert passed_on == [output]
