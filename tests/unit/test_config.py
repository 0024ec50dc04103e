"""Pool URLs and sizes: what is understood, what is refused with BadUrl, and what is never printed."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maru.config import PoolConfig, default_folder, format_size, parse_size, parse_url, redact, secure_folder
from maru.errors import BadUrl

NAME_64 = "n" * 64


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1), ("4096", 4096), ("4096B", 4096), ("1k", 1024), ("1KiB", 1024), ("512M", 512 << 20),
        ("512MB", 512 << 20), ("64G", 64 << 30), ("64GB", 64 << 30), ("64GiB", 64 << 30), ("64 gib", 64 << 30),
        ("1.5G", 3 << 29), ("2T", 2 << 40), (" 8MiB ", 8 << 20), (str((1 << 63) - 1), (1 << 63) - 1),
    ],
)  # fmt: skip
def test_sizes_mean_powers_of_two(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "0", "0GiB", "0.0001", "-1", "-1GiB", "+1G", "1e9", "1,5G", "1..5G", ".5G", "5.G", "GiB", "inf", "nan",
        "0x10", "1PiB", "1 G i B", "64GiBs", "G64", "1_000", "8388608T", str(1 << 63), "9" * 65, "1" + "0" * 30 + ".5",
        "\0", "1\0", "size", "١GiBx",
    ],
)  # fmt: skip
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(BadUrl, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (8 << 20, "8 MiB"),
        (11_744_051, "11.2 MiB"), (4 << 30, "4 GiB"), (3 << 39, "1.5 TiB"), (1 << 50, "1024 TiB"),
    ],
)  # fmt: skip
def test_sizes_are_shown_in_the_largest_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 40), st.integers(1, 1023))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_a_whole_number_of_units_survives_showing_and_reading(power_step: int, count: int) -> None:
    size_bytes = count << (power_step // 10 * 10)
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("name", ["a", "demo", "A-b_c.d", "0", "-", "_x", "a..", NAME_64])
def test_a_pool_name_is_a_plain_file_name(name: str) -> None:
    config = parse_url(f"maru:///{name}")
    assert config.name == name
    assert config.folder == default_folder(name)
    assert not config.size_given


HOSTILE_NAMES = [
    "", ".", "..", "../x", "a/../b", "a/b", "/abs", "//abs", "a/", ".hidden", "%2e%2e", "%2Fetc", "a%2Fb", "a%00",
    "a%0Ab", "n" * 65, "name with space", "naïve", "имя", "𝕏", "a*", "~", "a;b", "a@b", "a\\b", "a%ff",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(f"maru:///{name}")


@pytest.mark.parametrize("text", ["a\0", "a\nb", "a\tb", "a\rb", "\x1fa", "a ", " a"])
def test_a_raw_control_character_or_space_never_names_another_pool(text: str) -> None:
    """Python's URL splitter drops some of these silently: then "a<newline>b" would open somebody's pool "ab"."""
    with pytest.raises(BadUrl):
        parse_url(f"maru:///{text}")


@pytest.mark.parametrize("url", ["maru:demo", "maru:", "maru:/", "maru://", "maru:///", "maru:///?size=1G", ""])
def test_a_url_without_three_slashes_and_a_name_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http:///demo", "begin with maru"),
        ("/dev/shm/demo", "begin with maru"),
        ("demo", "begin with maru"),
        ("maru://host/demo", "names a host"),
        ("maru://host:5555/demo", "names a host"),
        ("maru://user@/demo", "names a host"),
        ("maru://[::1/demo", "not a URL"),
        ("maru:///demo#part", "fragment"),
        ("maru:///demo?colour=red", "unknown parameter 'colour'"),
        ("maru:///demo?SIZE=1G", "unknown parameter"),
        ("maru:///demo?size=1G&size=2G", "twice"),
        ("maru:///demo?size", "not a size"),
        ("maru:///demo?size=", "not a size"),
        ("maru:///demo?size=-1", "not a size"),
        ("maru:///demo?size=99999999T", "not a size"),
        ("maru:///demo?slab_bytes=x", "not a size"),
        ("maru:///demo?unit_bytes=0", "not a size"),
        ("maru:///demo?chunk_bytes=-4", "not a size"),
        ("maru:///demo?dir=relative", "absolute"),
        ("maru:///demo?dir=", "absolute"),
        ("maru:///demo?data=relative", "absolute"),
        ("maru:///demo?data=/a,b", "absolute"),
        ("maru:///demo?data=/a,/a", "twice"),
        ("maru:///demo?data=" + ",".join(f"/d{n}" for n in range(33)), "at most 32"),
        ("maru:///demo?medium=tape", "not one of"),
        ("maru:///demo?medium=file", "needs data="),
        ("maru:///demo?medium=hugetlb", "needs data="),
        ("maru:///demo?medium=devdax", "needs data="),
        ("maru:///demo?medium=devdax&data=/dev/dax0.0&size=1G", "whole device"),
        ("maru:///demo?checksum=md5", "not one of"),
        ("maru:///demo?share=world", "not one of"),
        ("maru:///demo?populate=yes", "not one of"),
        ("maru:///demo?processes=0", "from 1 to 255"),
        ("maru:///demo?processes=256", "from 1 to 255"),
        ("maru:///demo?processes=-1", "from 1 to 255"),
        ("maru:///demo?processes=1.5", "from 1 to 255"),
        ("maru:///demo?processes=²", "from 1 to 255"),
        ("maru:///demo?slots=0", "from 1 to"),
        ("maru:///demo?slots=2147483649", "from 1 to"),
        ("maru:///demo?slots=" + "9" * 5000, "from 1 to"),
        ("maru:///demo?namespaces=1048577", "from 1 to"),
        ("maru:///demo?cooling=-1", "0 to 3600"),
        ("maru:///demo?cooling=3601", "0 to 3600"),
        ("maru:///demo?cooling=nan", "0 to 3600"),
        ("maru:///demo?cooling=inf", "0 to 3600"),
        ("maru:///demo?cooling=soon", "seconds"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_its_reason(url: str, says: str) -> None:
    with pytest.raises(BadUrl, match=says) as refused:
        parse_url(url)
    assert "maru:///NAME" in str(refused.value)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("parameter", ["dir=/tmp%00x", "data=/tmp/a%00b", "dir=/\ud800", "data=/\ud800"])
def test_a_path_that_no_file_can_have_is_refused(parameter: str) -> None:
    """A NUL would cut the path short in C: another file than the one that was named."""
    with pytest.raises(BadUrl):
        parse_url(f"maru:///demo?{parameter}")


@pytest.mark.parametrize("value", [None, 1, b"maru:///demo", ["maru:///demo"]])
def test_only_a_str_is_a_url(value: object) -> None:
    with pytest.raises(BadUrl, match="is a str"):
        parse_url(value)  # type: ignore[arg-type]


def test_every_parameter_is_read() -> None:
    config = parse_url(
        "maru:///demo?size=8GiB&dir=/shared/place&data=/mnt/a,/mnt/b&medium=file&checksum=always&unit_bytes=64K"
        "&slab_bytes=16M&chunk_bytes=1M&slots=5000&processes=7&namespaces=9&cooling=1.5&share=group&populate=off"
    )
    assert str(config.folder) == "/shared/place/demo"
    assert (config.size_bytes, config.size_given) == (8 << 30, True)
    assert (config.medium, config.data, config.checksum) == ("file", ("/mnt/a", "/mnt/b"), "always")
    assert (config.unit_bytes, config.slab_bytes, config.chunk_bytes) == (64 << 10, 16 << 20, 1 << 20)
    assert (config.slots, config.processes, config.namespaces) == (5000, 7, 9)
    assert (config.cooling, config.share, config.populate) == (1.5, "group", False)


def test_the_shortest_url_of_a_pool_names_the_same_folder() -> None:
    for url in ("maru:///demo?size=1G", "maru:///demo?dir=/a%20place/with%26signs"):
        assert parse_url(parse_url(url).url).folder == parse_url(url).folder


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"maru://user:{SECRET}@host/demo", f"maru://{SECRET}@host/demo", f"maru://user:p@{SECRET}@host/demo",
        f"maru://user:p/{SECRET}@host/demo", f"maru:///demo?password={SECRET}", f"maru:///demo?a=1&api_key={SECRET}&b=2",
        f"maru:///demo?Auth-Token={SECRET}", f"maru:///demo?client_secret={SECRET}", f"maru:///demo#token={SECRET}",
        f"maru:///demo?p%61ssword={SECRET}",
    ],
)  # fmt: skip
def test_a_secret_is_never_shown(url: str) -> None:
    assert SECRET not in redact(url)
    with pytest.raises(BadUrl) as refused:
        parse_url(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(refused.value)


@pytest.mark.parametrize("url", ["maru:///demo", "maru:///demo?size=8GiB&dir=/shared", "maru://host:5555", "nothing"])
def test_what_is_no_secret_stays_readable(url: str) -> None:
    assert redact(url) == url


def is_refused_politely(url: str) -> bool:
    try:
        return isinstance(parse_url(url), PoolConfig)
    except BadUrl:
        return True


@given(st.text(max_size=400))
@settings(derandomize=True, max_examples=500, deadline=None)
def test_any_text_is_a_url_or_bad_url(text: str) -> None:
    assert is_refused_politely(text)
    assert is_refused_politely("maru:///" + text)
    assert is_refused_politely("maru://" + text)


@given(
    st.sampled_from(
        ["size", "data", "medium", "dir", "checksum", "slab_bytes", "slots", "processes", "cooling", "share"]
    ),
    st.text(max_size=40) | st.text("/.,%0123456789aGMKTi", max_size=400) | st.text("/a", min_size=200, max_size=5000),
)
@settings(derandomize=True, max_examples=800, deadline=None)
def test_any_value_of_any_parameter_is_understood_or_bad_url(name: str, value: str) -> None:
    assert is_refused_politely(f"maru:///demo?{name}={value}")
    assert is_refused_politely(f"maru:///demo?{name}=/{value}")


def test_a_path_longer_than_any_file_name_is_bad_url_or_refused_later_by_name() -> None:
    assert is_refused_politely("maru:///demo?data=/" + "a" * 300)
    assert is_refused_politely("maru:///demo?data=/" + "a/" * 3000)
    config = parse_url("maru:///demo?dir=/" + "a" * 300)
    with pytest.raises(Exception, match="cannot use") as refused:
        secure_folder(config, create=True)
    assert type(refused.value).__name__ == "PoolMismatch"


@given(st.text(max_size=200))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_redact_takes_any_text(text: str) -> None:
    assert isinstance(redact(text), str)
    assert SECRET not in redact(f"maru:///demo?size=1&secret={SECRET}&{text}")


def test_bad_url_keeps_its_words_through_pickle() -> None:
    with pytest.raises(BadUrl) as refused:
        parse_url("maru:///demo?size=0")
    copy = pickle.loads(pickle.dumps(refused.value))
    assert type(copy) is BadUrl
    assert str(copy) == str(refused.value)
