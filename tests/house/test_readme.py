"""What the documents tell a reader to type exists, and what they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, commands, documents, fenced, files, section
from typer.main import get_command

from maru.cli import app

README = ROOT / "README.md"
GUIDES = (README, ROOT / "CONTRIBUTING.md")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
_LINK = re.compile(r"\[[^\]]*\]\((?!\w+:|#)([^)#\s]+)")
_OTHERS_NAME = re.compile(r"(?:pip|pipx|uv|uvx|uv pip|uv tool) install[^\n`]*[\s'\"]maru(?![\w-])")
_PREFIX = re.compile(r"^(?:\S*python\S* -m |\.venv/bin/)(?=maru )")


def told(path: Path) -> list[str]:
    return commands(path.read_text())


def maru_commands(path: Path) -> list[list[str]]:
    """The `maru …` command lines of a document, as words without `maru`."""
    lines = (_PREFIX.sub("", line) for line in told(path))
    typed = (re.split(r"\s[|>&;]", line)[0] for line in lines if line.startswith("maru "))
    return [shlex.split(line, comments=True)[1:] for line in typed]


def misread(words: list[str]) -> str | None:
    """Why the command line would refuse these words, or None."""
    command: Any = get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    unknown = given - options - {"-h", "--help"}
    return f"there is no option {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_make_target_that_is_told_exists(path: Path) -> None:
    targets = {target for line in told(path) for target in re.findall(r"\bmake ([a-z][\w-]*)", line)}
    assert targets
    assert targets - TARGETS == set()


def test_every_maru_command_in_the_readme_exists() -> None:
    typed = maru_commands(README)
    assert typed
    wrong = {" ".join(words): misread(words) for words in typed}
    assert {line: why for line, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    "words", [["stats"], ["stat", "--jsno"], ["pool", "made"], ["pool", "create", "--json", "--hurry"]]
)
def test_a_command_that_does_not_exist_would_be_noticed(words: list[str]) -> None:
    assert misread(words)


def test_python_in_the_readme_compiles() -> None:
    blocks = fenced(README.read_text(), "python", "py")
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_quick_start_is_two_commands() -> None:
    typed = [
        line.partition(" #")[0].strip().removeprefix("$ ")
        for block in fenced(section(README.read_text(), "quick start"), "sh", "bash", "console")
        for line in block.splitlines()
    ]
    assert [line for line in typed if line and not line.startswith("#")] == ["make demo", "make test"]


def test_nobody_is_told_to_install_somebody_elses_package() -> None:
    sources = [path for path in files() if path.suffix in (".py", ".sh") and "tests" not in path.parts]
    wrong = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in (*documents(), *sources)
        for found in _OTHERS_NAME.findall(path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(path: Path) -> None:
    assert [link for link in _LINK.findall(path.read_text()) if not (path.parent / link).exists()] == []
