"""What the house tests read: the files of this checkout, and the code in its documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = {".git", ".venv", ".cache", "build", "dist", "__pycache__", "bench-results"}
_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def files() -> list[Path]:
    """Every file that is, or with the next commit will be, under version control; all files without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [path for path in ROOT.rglob("*") if not _SKIPPED & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


def documents() -> list[Path]:
    """Every Markdown file."""
    return [path for path in files() if path.suffix == ".md"]


def fenced(text: str, *languages: str) -> list[str]:
    """The fenced code blocks of a document in one of these languages."""
    return [code for language, code in _FENCE.findall(text) if language in languages]


def commands(text: str) -> list[str]:
    """What a document tells a reader to type: the lines of its shell blocks, and its inline code."""
    lines = [line for block in fenced(text, "sh", "bash", "console") for line in block.splitlines()]
    typed = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in [*typed, *_INLINE.findall(_FENCE.sub("", text))] if line and line[0] != "#"]


def section(text: str, title: str) -> str:
    """What stands under the heading that begins with `title`, down to the next heading; "" without one."""
    kept, is_inside, is_code = [], False, False
    for line in text.splitlines(keepends=True):
        is_code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not is_code:
            is_inside = line.lstrip("# ").lower().startswith(title.lower())
        elif is_inside:
            kept.append(line)
    return "".join(kept)
