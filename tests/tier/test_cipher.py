"""Keys of tiers: who can open what, where keys come from, and that they are shown to nobody."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from maru.errors import BadCredential, CredentialError, CredentialNotFound, TornObject, UnsafeCredentials
from maru.tier.cipher import TAG_BYTES, Keyring, ObjectKey

OLD, NEW = "0a" * 32, "0b" * 32
HEADER = b"a header"


def written(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return f"file:{path}"


def ring() -> Keyring:
    return Keyring({"old": bytes.fromhex(OLD), "new": bytes.fromhex(NEW)})


def test_a_sealed_frame_opens_with_the_same_key_and_says_nothing_of_its_content() -> None:
    salt, key = ring().for_tenant("alice").fresh()
    sealed = key.seal(b"content" * 100, HEADER, 3, 716, True)
    assert len(sealed) == 700 + TAG_BYTES
    assert b"content" not in sealed
    reading = ring().for_tenant("alice").object_key("new", salt)
    assert reading.open(sealed, HEADER, 3, 716, True) == b"content" * 100
    assert reading.masked(key.masked(12345)) == 12345 != key.masked(12345)


def test_a_frame_opens_only_with_everything_that_it_was_sealed_with() -> None:
    salt, key = ring().for_tenant("alice").fresh()
    sealed = key.seal(b"content", HEADER, 3, 23, True)
    others = [(b"another", 3, 23, True), (HEADER, 2, 23, True), (HEADER, 3, 24, True), (HEADER, 3, 23, False)]
    for header, number, word, is_last in others:
        with pytest.raises(TornObject, match=f"frame {number}"):
            key.open(sealed, header, number, word, is_last)
    strangers = [
        ring().for_tenant("bob").object_key("new", salt),
        ring().for_tenant("alice").object_key("old", salt),
        ring().for_tenant("alice").object_key("new", secrets.token_bytes(32)),
    ]
    for stranger in strangers:
        with pytest.raises(TornObject):
            stranger.open(sealed, HEADER, 3, 23, True)


def test_two_objects_of_equal_content_look_unlike() -> None:
    cipher = ring().for_tenant("alice")
    sealed = [cipher.fresh()[1].seal(b"content", HEADER, 0, 23, True) for _ in range(2)]
    assert sealed[0] != sealed[1]


def test_a_tenants_name_and_a_keys_id_cannot_be_traded_for_each_other() -> None:
    key = bytes.fromhex(OLD)
    salt = bytes(32)
    one = Keyring({"a": key}).for_tenant("ba").object_key("a", salt)
    other = Keyring({"ab": key}).for_tenant("a").object_key("ab", salt)
    assert one.masked(0) != other.masked(0)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(TornObject, match="'gone'"):
        ring().for_tenant("alice").object_key("gone", bytes(32))


@pytest.mark.parametrize("kind", ["file", "env", "command"])
def test_keys_are_read_from_every_kind_of_source(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"# rotated in May\n\nold {OLD}\nnew {NEW}  # seals\n"
    file = written(tmp_path / "tier keys", lines)
    monkeypatch.setenv("TIER_KEYS", lines)
    sources = {"file": file, "env": "env:TIER_KEYS", "command": f"command:cat '{tmp_path / 'tier keys'}'"}
    keyring = Keyring.read(sources[kind])
    assert keyring.ids == ("old", "new")
    assert keyring.for_tenant("alice").key_id == "new"


def test_a_key_without_an_id_keeps_the_same_one_when_others_come_beside_it(tmp_path: Path) -> None:
    alone = Keyring.read(written(tmp_path / "one", OLD + "\n"))
    beside = Keyring.read(written(tmp_path / "two", f"{OLD.upper()}\nnew {NEW}\n"))
    assert beside.ids == (*alone.ids, "new")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCredentials, match="chmod 600"):
        Keyring.read(written(tmp_path / "keys", OLD, mode))


def test_a_link_and_what_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "keys", OLD).removeprefix("file:"))
    with pytest.raises(UnsafeCredentials):
        Keyring.read(f"file:{tmp_path / 'link'}")
    for source in (f"file:{tmp_path / 'none'}", "env:MARU_NO_SUCH_VARIABLE"):
        with pytest.raises(CredentialNotFound):
            Keyring.read(source)


@pytest.mark.parametrize(
    "lines",
    ["", "# nothing", OLD[:-1], OLD + "0", f"one two {OLD}", f"{OLD} one", f"a/b {OLD}", f"{'i' * 17} {OLD}",
     f"a {OLD}\na {NEW}", f"{OLD}\n{OLD}", "\n".join(f"k{n} {n:064x}" for n in range(65)), "x" * 70000],
)  # fmt: skip
def test_lines_that_are_no_keys_are_refused_without_being_shown(lines: str, tmp_path: Path) -> None:
    with pytest.raises(BadCredential) as caught:
        Keyring.read(written(tmp_path / "keys", lines))
    assert OLD[:8] not in str(caught.value)


@pytest.mark.parametrize("source", ["", "file:", "env:", "command:", "https://keys", OLD, "command:'"])
def test_a_source_that_is_none_is_refused_without_being_shown(source: str) -> None:
    with pytest.raises(BadCredential) as caught:
        Keyring.read(source)
    assert OLD not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/no/such/program", "cannot be run"),
        ("false", "ended with 1"),
        ("cat /dev/zero", "more than"),
        ("sh -c 'sleep 60 & sleep 60'", "longer than"),
        ("sh -c 'exec >&-; sleep 60'", "longer than"),
    ],
)
def test_a_program_that_fails_its_task_is_ended_and_named(command: str, why: str) -> None:
    with pytest.raises(CredentialError, match=why) as caught:
        Keyring.read(f"command:{command}", deadline_s=0.3 if "sleep" in command else 10)
    assert "sleep" not in str(caught.value)


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    with pytest.raises(BadCredential):
        Keyring.read(f"command:echo {OLD} > {tmp_path / 'leak'}")
    assert not (tmp_path / "leak").exists()


def test_no_key_is_in_a_repr() -> None:
    cipher = ring().for_tenant("alice")
    _, key = cipher.fresh()
    shown = f"{ring()!r} {cipher!r} {key!r} {ObjectKey(bytes.fromhex(OLD), bytes(32))!r}"
    assert "0a0a" not in shown
    assert "\\n" not in shown
    assert "old" in shown


@pytest.mark.parametrize("keys", [{}, {"a": b"short"}, {"a b": bytes(32)}, {"": bytes(32)}])
def test_a_keyring_of_what_are_no_keys_is_refused(keys: dict[str, bytes]) -> None:
    with pytest.raises(BadCredential):
        Keyring(keys)
