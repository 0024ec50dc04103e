"""What is meant as a value in a URL or an address stays one: never another parameter, another pool or a command."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from maru.address import read_address
from maru.config import parse_url
from maru.credentials.sources import read_source
from maru.errors import BadCredential, BadUrl, CredentialNotFound
from maru.tier.cipher import Keyring
from maru.tier.opening import parse_tier_url

DEFAULTS = parse_url("maru:///kv")
TIER = parse_tier_url("file:///below")

# As somebody would write them who gets one value into a line that others wrote.
HOSTILE = [
    "x&size=1MiB", "x&dir=/tmp&tenant_secret=env:HOME", "x;size=1MiB", "x#size=1MiB", "x?size=1MiB", "x%26size=1MiB",
    "x\0y", "x\ny", "x\r\nsize=1MiB", "$(touch /tmp/no)", "`touch /tmp/no`", "${HOME}", "x' --size '1", 'x" --size "1',
    "x y", "x|y", "../x", "/../../x", "x/../../y", "-x --size=1", "%2e%2e%2fx", "x\u2028y", "x\u202ey",
    "\uff0e\uff0e/x", "x\u037esize=1MiB", "x\uff06size=1MiB",
]  # fmt: skip
REFUSED = [value for value in HOSTILE if any(char < " " or char == "\x7f" for char in value)]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_quoted_value_of_a_pool_url_is_that_value_and_nothing_else(value: str) -> None:
    url = f"maru:///kv?dir=/place/{quote(value, safe='')}&slots=700"
    if value in REFUSED:
        with pytest.raises(BadUrl):
            parse_url(url)
        return
    config = parse_url(url)
    assert config.folder == Path(f"/place/{value}/kv")
    assert (config.name, config.slots, config.size_given, config.tenant_secret) == ("kv", 700, False, "")


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_name_of_a_pool_is_refused_quoted_or_not(value: str) -> None:
    """Names would be folders' names. Only what is separated by `?` is no part of it."""
    with pytest.raises(BadUrl):
        parse_url("maru:///" + quote(value, safe=""))
    try:
        config = parse_url("maru:///" + value)
    except BadUrl:
        return
    assert value == "x?size=1MiB"
    assert (config.name, config.size_bytes) == ("x", 1 << 20)


@pytest.mark.parametrize("value", ["x&size=1MiB", "x;size=1MiB", "x#y", "$(touch /tmp/no)", "x' 'y", "x%00y"])
def test_a_semicolon_a_dollar_and_quotes_separate_nothing(value: str) -> None:
    config = parse_url("maru:///kv?dir=/" + quote(value, safe=""))
    assert config.folder == Path("/", value, "kv")
    assert not config.size_given


@pytest.mark.parametrize("value", HOSTILE)
def test_a_quoted_value_of_a_tiers_url_is_that_value_and_nothing_else(value: str) -> None:
    url = f"s3://bucket/prefix?region={quote(value, safe='')}&retries=3"
    if value in REFUSED:
        with pytest.raises(BadUrl):
            parse_tier_url(url)
        return
    config = parse_tier_url(url)
    assert dict(config.options) == {"region": value, "retries": "3"}
    assert (config.place, config.keys, config.encrypt, config.ttl_s) == ("bucket/prefix", None, None, None)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_quoted_folder_of_a_tier_is_that_folder_or_is_refused(value: str) -> None:
    url = f"file:///below/{quote(value, safe='')}?size=1GiB"
    if value in REFUSED or ".." in value.split("/"):
        with pytest.raises(BadUrl):
            parse_tier_url(url)
        return
    config = parse_tier_url(url)
    assert (config.place, config.size_bytes, config.policy) == (f"/below/{value}", 1 << 30, TIER.policy)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_tier_within_an_address_takes_nothing_of_it_along(value: str) -> None:
    """The address is read once, and its tier once more: what was quoted twice is not unquoted a third time."""
    inner = f"file:///below/{quote(value, safe='')}?size=1GiB"
    address = f"maru:///kv?tier={quote(inner, safe='')}&slots=700"
    if value in REFUSED:
        with pytest.raises(BadUrl):
            parse_tier_url(read_address(address).tiers[0])
        return
    read = read_address(address)
    assert read.tiers == (inner,)
    assert (read.pool.name, read.pool.slots, read.pool.size_given, read.tenant) == ("kv", 700, False, "default")


@pytest.mark.parametrize("value", HOSTILE)
def test_a_tenant_of_an_address_is_that_tenant_and_changes_no_pool(value: str) -> None:
    read = read_address(f"maru:///kv?size=1GiB&tenant={quote(value, safe='')}")
    assert read.tenant == value
    assert read.pool == parse_url("maru:///kv?size=1GiB")


@pytest.mark.parametrize("value", HOSTILE)
def test_what_an_address_hands_on_to_the_pool_is_what_it_read(value: str) -> None:
    """LMCache's address becomes a pool's URL: it is written anew, so each value has to be quoted anew."""
    try:
        read = read_address(f"tcp:///kv?dir=/place/{quote(value, safe='')}", size_bytes=1 << 30)
    except BadUrl:
        assert value in REFUSED
        return
    assert read.pool.folder == Path(f"/place/{value}/kv")
    assert (read.pool.name, read.pool.size_bytes, read.daemon, read.tiers) == ("kv", 1 << 30, "", ())


@pytest.mark.parametrize("value", HOSTILE)
def test_a_key_of_a_daemons_address_gives_it_no_other_parameter(value: str) -> None:
    read = read_address(f"maru://cache-7:5555?key={quote('/k/' + value, safe='')}&mode=wire")
    head, _, query = read.daemon.partition("?")
    assert head == "maru://cache-7:5555"
    assert [pair.partition("=")[0] for pair in query.split("&")] == ["key", "mode"]
    assert read.pool.folder == parse_url(f"maru:///{read.pool.name}").folder


@pytest.mark.parametrize(
    "host", ["a@b", "a:b@c", "cache-7%2f..%2f", "cache-7\\..", "cache-7;size=1", "$(id)", "a'b", "..", "%00", "a%0Ab"]
)
def test_no_host_makes_a_name_that_leads_elsewhere(host: str) -> None:
    try:
        read = read_address(f"maru://{host}:5555?size=1GiB")
    except BadUrl:
        return
    assert read.pool.folder.parent == DEFAULTS.folder.parent
    assert read.pool.size_bytes == 1 << 30


@pytest.mark.parametrize("tail", ["; touch {0}", "&& touch {0}", "| touch {0}", "$(touch {0})", "`touch {0}`",
                                  "> {0}", "\ntouch {0}", "& touch {0} &", "<(touch {0})"])  # fmt: skip
def test_no_word_of_a_command_is_a_command_of_its_own(tmp_path: Path, tail: str) -> None:
    made = tmp_path / "made"
    said, _ = read_source("command:echo here " + tail.format(made))
    assert not made.exists()
    # Every sign of a shell's came to the program as a word; blanks and line ends separate words.
    assert said.decode().split() == ["here", *tail.format(made).split()]


def test_a_command_gets_a_words_blanks_and_quotes_as_they_were_quoted() -> None:
    said, _ = read_source("command:printf [%s] 'a b' \"c'd\" $HOME *")
    assert said == b"[a b][c'd][$HOME][*]"


def test_a_command_in_a_tiers_url_runs_only_where_a_source_of_keys_is_meant(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = quote(f"command:touch {made}", safe="")
    for url in (f"file:///below/{command}", f"s3://bucket/{command}?region={command}", f"redis://h?prefix={command}"):
        parse_tier_url(url)
    config = parse_tier_url(f"file:///below?encrypt=tenant&keys={command}")
    assert not made.exists()
    with pytest.raises(BadCredential):  # It says nothing, so it holds no key; but it ran.
        Keyring.read(config.keys or "")
    assert made.exists()


@pytest.mark.parametrize("source", ["env:HOME;x", "env:$HOME", "env:A=B", "env:${HOME}", "env:HOME\n"])
def test_a_variables_name_is_taken_literally(source: str) -> None:
    with pytest.raises(CredentialNotFound):
        read_source(source)


@pytest.mark.parametrize("source", ["file:/etc/hosts;x", "file:$HOME", "file:~root", "file:/e*c/hosts"])
def test_a_files_name_is_taken_literally(source: str) -> None:
    with pytest.raises(CredentialNotFound):
        read_source(source)


@pytest.mark.parametrize("source", ["file:/a\0b", "env:A\0B", "command:a\0b", "command:echo a\0b"])
def test_a_source_that_no_system_call_takes_is_an_error_with_a_name(source: str) -> None:
    with pytest.raises(BadCredential, match="NUL"):
        read_source(source)
