"""What is installed is locked, and what is known against it is told."""

from __future__ import annotations

import datetime
import http.server
import json
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VULNERABILITIES = runpy.run_path(str(ROOT / "scripts" / "vulnerabilities.py"))
LOCKING = runpy.run_path(str(ROOT / "scripts" / "lock.py"))
KNOWN_BAD = ("jinja2", "2.4.1")  # What each service is tried with.
TODAY = datetime.date(2026, 11, 23)


def entries(name: str) -> list[str]:
    """The requirements of a locked file, each with the hashes on the lines below it."""
    return re.findall(r"^[^#\s].*(?:\n +.*)*", (REQUIREMENTS / name).read_text(), re.M)


def locked() -> dict[str, list[Requirement]]:
    """By package, what the lock says: more than one entry where versions of Python differ."""
    by_name: dict[str, list[Requirement]] = {}
    for text in entries("lock.txt") + entries("torch.txt"):
        requirement = Requirement(text.partition("\\")[0])
        by_name.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return by_name


def wanted() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    tools = re.findall(
        r"'([a-z]+>=[^']+)'", re.findall(r"^BUILD_TOOLS := (.*)", (ROOT / "Makefile").read_text(), re.M)[0]
    )
    return [
        Requirement(text)
        for text in (
            *project["dependencies"],
            *extras["demo"],
            *extras["test"],
            *PROJECT["build-system"]["requires"],
            *tools,
        )
    ]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_what_setup_installs_is_locked_to_a_version_that_fits(requirement: Requirement, python: str) -> None:
    there = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found = [
        Version(next(iter(lock.specifier)).version)
        for lock in locked().get(canonicalize_name(requirement.name), [])
        if lock.marker is None or lock.marker.evaluate(there)
    ]
    assert [requirement.specifier.contains(version) for version in found] == [True], "make lock writes the lock anew"


def test_what_the_engines_environment_asks_for_is_in_its_constraints() -> None:
    versions = {
        name: Version(version) for name, _, version in (text.partition("==") for text in entries("engines.txt"))
    }
    wanted = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"]["engines"]]
    fits = {one.name: one.specifier.contains(versions[canonicalize_name(one.name)]) for one in wanted}
    assert [name for name, does_fit in fits.items() if not does_fit] == [], "make lock writes the constraints anew"
    assert [str(version) for version in versions.values() if version.local] == []


def test_every_locked_package_but_torchs_has_the_hashes_of_its_files() -> None:
    assert [text for text in entries("lock.txt") if not re.search(r"--hash=sha256:[0-9a-f]{64}$", text)] == []
    assert not re.search(r"^(torch|triton|nvidia-[\w-]+)==", (REQUIREMENTS / "lock.txt").read_text(), re.M)
    assert {text.partition("==")[0] for text in entries("torch.txt")} >= {"torch", "triton"}


def test_a_resolution_is_split_by_whether_a_machine_chooses_the_build() -> None:
    resolution = (
        "a==1 ; x == 'y' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\ntorch==2 \\\n    --hash=sha256:cc\n"
    )
    locked, of_torch = LOCKING["split"](resolution)
    assert locked == "a==1 ; x == 'y' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    assert of_torch == "torch==2\n"


def test_each_vulnerability_that_is_ignored_has_a_reason_and_a_day_to_look_again() -> None:
    entries = tomllib.loads((REQUIREMENTS / "ignored_vulnerabilities.toml").read_text()).get("ignored", [])
    for entry in entries:
        assert len(entry["reason"]) > 10
        assert entry["until"] - entry["since"] <= datetime.timedelta(days=184)
    VULNERABILITIES["ignored"]((REQUIREMENTS / "ignored_vulnerabilities.toml").read_text(), TODAY)


ENTRY = '[[ignored]]\nid = "V-1"\npackage = "a"\nreason = "never called"\nsince = 2026-11-01\nuntil = 2026-12-01\n'


def test_an_ignored_vulnerability_counts_again_from_its_day_on() -> None:
    assert VULNERABILITIES["ignored"](ENTRY, datetime.date(2026, 11, 30)) == {"V-1": "never called"}
    assert VULNERABILITIES["ignored"](ENTRY, datetime.date(2026, 12, 1)) == {}


@pytest.mark.parametrize("field", ["id", "package", "reason", "since", "until"])
def test_an_ignored_vulnerability_without_one_of_its_fields_is_refused(field: str) -> None:
    with pytest.raises(KeyError):
        VULNERABILITIES["ignored"](re.sub(rf"^{field} = .*\n", "", ENTRY, flags=re.M), TODAY)


HOLE = {"id": "V-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("excused", "lines"), [({}, 1), ({"V-1": "why"}, 0), ({"CVE-1": "why"}, 0), ({"V-2": "why"}, 1)]
)
def test_a_known_vulnerability_is_told_unless_it_is_ignored_by_one_of_its_names(
    excused: dict[str, str], lines: int
) -> None:
    answer = [{"name": "a", "version": "1", "vulns": [HOLE]}, {"name": "b", "version": "1", "vulns": []}]
    found, unknown = VULNERABILITIES["judged"](answer, excused)
    assert found == ["a 1: V-1, fixed in 2"][:lines]
    assert unknown == []


class Osv(http.server.BaseHTTPRequestHandler):
    """A service that speaks as OSV does, and knows a hole in each name and beginning of a version of `holes`."""

    holes: frozenset[tuple[str, str]] = frozenset()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = asked["package"]["name"], asked["version"]
        is_known = any(name == package and version.startswith(begin) for package, begin in self.holes)
        hole = {"id": "V-1", "summary": "a hole", "affected": [{"package": asked["package"], "ranges": []}]}
        body = json.dumps({"vulns": [hole]} if is_known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def osv(*holes: tuple[str, str]) -> Iterator[str]:
    """The URL of such a service."""
    handler = type("Handler", (Osv,), {"holes": frozenset(holes)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/query"
        finally:
            server.shutdown()
            thread.join()


def vulnerabilities(*arguments: str) -> tuple[int, str]:
    """The exit code of the script and what it says."""
    command = [sys.executable, str(ROOT / "scripts" / "vulnerabilities.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_known_vulnerability_of_a_locked_package_fails_the_step() -> None:
    with osv(KNOWN_BAD, ("torch", "2.")) as url:
        code, said = vulnerabilities(f"--osv-url={url}")
    assert code == 1
    assert re.search(r"^ +torch 2\.\S+: V-1, not fixed yet$", said, re.M)


def test_what_is_asked_and_known_to_be_good_passes() -> None:
    with osv(KNOWN_BAD) as url:
        code, said = vulnerabilities(f"--osv-url={url}", "--required")
    assert code == 0
    assert re.search(r"\d{3} packages looked up .*, 0 known vulnerabilities", said)


def test_a_service_that_finds_nothing_anywhere_does_not_count_as_asked() -> None:
    with osv() as url:
        assert vulnerabilities(f"--osv-url={url}")[0] == 0
        code, said = vulnerabilities(f"--osv-url={url}", "--required")
    assert code == 1
    assert "NOT CHECKED" in said


def test_a_service_that_cannot_be_reached_is_said_and_fails_where_an_answer_is_required() -> None:
    with osv() as url:
        pass  # Its port is free again.
    code, said = vulnerabilities(f"--osv-url={url}")
    assert (code, "NOT CHECKED" in said) == (0, True)
    assert vulnerabilities(f"--osv-url={url}", "--required")[0] == 1
