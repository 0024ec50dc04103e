"""Asks pip-audit whether what `make setup` installs has known vulnerabilities; `make test` does it too.

    python scripts/vulnerabilities.py              exit 1 when one is known that is not in the list of ignored ones
    python scripts/vulnerabilities.py --required   exit 1 as well when nobody could be asked
    python scripts/vulnerabilities.py --osv-url=…  ask this service alone, a network's own copy of OSV

Asked are PyPI's JSON API, and OSV where that does not answer. Many machines reach only a package index, and there
pip-audit calls everything fine that it could not look up. So each service is first asked about a version whose holes
have long been known: one that does not tell them does not count, and when none counts that is said. Looked up are the
versions that this Python gets, and CUDA's libraries also where torch goes without.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
REQUIREMENTS = CHECKOUT / "requirements"
LOCKS = (REQUIREMENTS / "lock.txt", REQUIREMENTS / "torch.txt")
IGNORED = REQUIREMENTS / "ignored_vulnerabilities.toml"
SERVICES = ("pypi", "osv")
KNOWN_BAD = "jinja2==2.4.1"  # CVE-2014-0012 and others.
SERVICE_TIMEOUT_S = 15
ALL_TIMEOUT_S = 300

Answer = list[dict[str, Any]]


def pins() -> list[str]:
    """Names, versions and markers that are locked, without the hashes: pip-audit takes all with hashes, or none."""
    return [pin for path in LOCKS for pin in re.findall(r"^[^#\s][^\\\n]*", path.read_text(), re.M)]


def ask(service: str, requirements: list[str]) -> Answer | None:
    """pip-audit's list of packages with `name`, `version` and `vulns`, or `skip_reason`; None when it got no answer.

    `service` is one of SERVICES, or the URL of one that speaks as OSV does.
    """
    options = ["--vulnerability-service", *([service] if service in SERVICES else ["osv", "--osv-url", service])]
    options += [
        "--format=json",
        f"--cache-dir={CHECKOUT / 'build' / 'pip-audit'}",
        "--no-deps",
        "--disable-pip",
        "--progress-spinner=off",
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(requirements))
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            *options,
            f"--timeout={SERVICE_TIMEOUT_S}",
            f"--requirement={file}",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ALL_TIMEOUT_S)
            answer = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):  # It ends without a document when it reaches nobody.
            return None
    return answer if isinstance(answer, list) else None


def answers(service: str) -> bool:
    """Whether the service tells of holes that everybody knows."""
    return any(package.get("vulns") for package in ask(service, [KNOWN_BAD]) or [])


def ignored(text: str, today: datetime.date) -> dict[str, str]:
    """From identifier to reason, what is ignored on that day. Raises KeyError for an entry that lacks a field."""
    entries = tomllib.loads(text).get("ignored", [])
    for entry in entries:
        if not entry["package"] or not entry["since"] <= entry["until"]:
            raise KeyError(entry["id"])
    return {entry["id"]: entry["reason"] for entry in entries if today < entry["until"]}


def judged(answer: Answer, excused: dict[str, str]) -> tuple[list[str], list[str]]:
    """One line for each known vulnerability that nothing excuses, and one for each package that was not looked up."""
    found, unknown = [], []
    for package in answer:
        if "skip_reason" in package:
            unknown.append(f"{package['name']}: {package['skip_reason']}")
        for hole in package.get("vulns", []):
            if not excused.keys() & {hole["id"], *hole["aliases"]}:
                fixed = f"fixed in {', '.join(hole['fix_versions'])}" if hole["fix_versions"] else "not fixed yet"
                found.append(f"{package['name']} {package['version']}: {hole['id']}, {fixed}")
    return found, unknown


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for known vulnerabilities in what is locked.")
    parser.add_argument("--required", action="store_true", help="fail when nobody could be asked")
    parser.add_argument("--osv-url", metavar="URL", help="ask this service alone")
    given = parser.parse_args()
    excused = ignored(IGNORED.read_text(), datetime.datetime.now(datetime.UTC).date())
    services = (given.osv_url,) if given.osv_url else SERVICES
    service = next((service for service in services if answers(service)), None)
    answer = ask(service, pins()) if service else None
    if answer is None:
        print(f"    NOT CHECKED for known vulnerabilities: no answer from here ({', '.join(services)}).")
        print("    Run `make vulnerabilities` where pypi.org's JSON API or api.osv.dev can be reached.")
        return 1 if given.required else 0
    found, unknown = judged(answer, excused)
    for line in unknown:
        print(f"    not looked up: {line}")
    for line in found:
        print(f"    {line}")
    checked = len(answer) - len(unknown)
    print(f"    {checked} packages looked up ({service}), {len(found)} known vulnerabilities, {len(excused)} ignored")
    return 1 if found or (given.required and unknown) else 0


if __name__ == "__main__":
    sys.exit(main())
