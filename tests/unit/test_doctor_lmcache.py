"""Promises of the doctor about LMCache's configuration: what keeps it from a pool, or makes it copy, is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maru.doctor.line import Line
from maru.doctor.lmcache import TESTED, look_at_lmcache

Look = Callable[..., dict[str, Line]]
GOOD = "maru_path: maru:///kv\nlocal_cpu: false\nmax_local_cpu_size: 0\n"


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """The lines for a configuration file of this text, by name."""

    def at(text: str, version: str | None = TESTED, **environment: str) -> dict[str, Line]:
        file = tmp_path / "lmcache.yaml"
        file.write_text(text)
        found = {"LMCACHE_CONFIG_FILE": str(file), "PYTHONHASHSEED": "0"} | environment
        return {line.name: line for line in look_at_lmcache(found, lambda _: version)}

    return at


def test_without_lmcache_nothing_is_said(look: Look) -> None:
    assert look(GOOD, version=None) == {}


def test_the_documented_configuration_is_good(look: Look) -> None:
    assert {line.verdict for line in look(GOOD).values()} == {"ok"}


def test_a_daemon_elsewhere_is_named_with_the_pool_in_front_of_it(look: Look) -> None:
    line = look(GOOD.replace("maru:///kv", "maru://cache-7:5555"))["maru_path"]
    assert (line.verdict, line.figure) == ("ok", "maru://cache-7:5555")
    assert "near-cache-7-5555" in line.text


def test_a_version_that_no_test_ran_against_is_named(look: Look) -> None:
    line = look(GOOD, version="0.6.0")["version"]
    assert line.verdict == "improve"
    assert TESTED in line.advice


@pytest.mark.parametrize(
    ("text", "name", "verdict", "advice"),
    [
        ("maru_path: maru:///kv\n", "max_local_cpu_size", "improve", "max_local_cpu_size: 0"),
        (GOOD.replace("size: 0", "size: 64.0"), "max_local_cpu_size", "improve", "max_local_cpu_size: 0"),
        (GOOD.replace("maru:///kv", "maru:///kv?sizee=1"), "maru_path", "bad", "the form is"),
        (GOOD + "use_layerwise: true\n", "use_layerwise", "bad", "use_layerwise: false"),
        ("remote_url: maru://localhost:1\n", "remote_storage_plugins", "bad", "module_path"),
        ("remote_url: maru://me:pass@cache-7:1\n", "remote_url", "bad", "the form is"),
        ("a: [", "configuration", "bad", "LMCACHE_CONFIG_FILE"),
        ("just words", "configuration", "bad", "LMCACHE_CONFIG_FILE"),
    ],
)
def test_what_is_wrong_says_what_to_do(look: Look, text: str, name: str, verdict: str, advice: str) -> None:
    line = look(text)[name]
    assert line.verdict == verdict
    assert advice in line.advice


def test_hashes_that_differ_from_process_to_process_are_bad(look: Look) -> None:
    line = look(GOOD, PYTHONHASHSEED="random")["hashes"]
    assert line.verdict == "bad"
    assert "PYTHONHASHSEED=0" in line.advice
    assert look(GOOD + "pre_caching_hash_algorithm: sha256_cbor\n", PYTHONHASHSEED="")["hashes"].verdict == "ok"


def test_the_environment_wins_over_the_file(look: Look) -> None:
    assert look(GOOD, LMCACHE_MAX_LOCAL_CPU_SIZE="2")["max_local_cpu_size"].verdict == "improve"
    assert look("chunk_size: 256\n", LMCACHE_MARU_PATH="maru:///kv")["maru_path"].text == "maru:///kv"


def test_a_configuration_without_maru_is_told_and_not_judged(look: Look) -> None:
    lines = look("chunk_size: 256\n")
    assert lines["maru_path"].verdict == "ok"
    assert "does not use Maru" in lines["maru_path"].text
    assert set(lines) == {"version", "maru_path"}


def test_a_file_that_is_not_there_is_told(look: Look) -> None:
    assert look(GOOD, LMCACHE_CONFIG_FILE="/no/such/file.yaml")["configuration"].verdict == "bad"
