"""The unit tests and the crash tour once more, in a core built with AddressSanitizer and UndefinedBehaviorSanitizer.

The interpreter is not instrumented, so the runtime is loaded before it. An editable install is found before anything
on the path; a copy of the package beside the sanitized core is used instead, by the interpreter that the virtual
environment was made from. Leaks are not looked for: Python keeps much until its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from builds import COMPILER, ROOT, build_drivers, calm_addresses, sanitizer_environment, why_not

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

SANITIZE = "address,undefined"
# They also run without the sanitizer, which makes a death by SIGSEGV its own and whose shadow fills a memory limit.
NOT_BESIDE_A_SHADOW = "not inherited_memory_faults and not pool_larger_than_its_container"
# What they are about are measuring, drawing and servers, and the core only as all the others are.
NOT_OF_THE_CORE = ("bench*", "rivals", "vllm_demo")
# Threads under a sanitizer take their time; what this file is about are bytes, not seconds.
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=240", "-k", NOT_BESIDE_A_SHADOW]


def runtime(library: str) -> str:
    named = [COMPILER, f"-print-file-name={library}"]
    return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a Python process needs to run the sanitized core."""
    reason = why_not(SANITIZE)
    if reason:
        pytest.skip(reason)
    libraries = [runtime("libasan.so"), runtime("libstdc++.so.6")]
    if not all(Path(library).is_file() for library in libraries):
        pytest.skip(f"{COMPILER} has no shared AddressSanitizer runtime to load before Python")
    folder = build_drivers(SANITIZE, with_python=True)
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "src" / "maru", site / "maru", ignore=shutil.ignore_patterns("__pycache__", "_native*"))
    for module in folder.glob("_native_testing.*.so"):
        shutil.copy(module, site / "maru")
    # Tests that name the product's core get the same one.
    (site / "maru" / "_native.py").write_text(
        "from maru import _native_testing\n\nglobals().update(vars(_native_testing))\n"
    )
    return sanitizer_environment() | {
        "LD_PRELOAD": " ".join(libraries),
        "MARU_CORE": "testing",
        "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_python(environment: dict[str, str], *arguments: str) -> str:
    interpreter = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [*calm_addresses(), interpreter, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-12_000:]
    return done.stdout


def test_the_sanitized_core_is_the_one_that_runs(environment: dict[str, str]) -> None:
    code = "from maru.native import core; print(core.__file__); print('asan' in open('/proc/self/maps').read())"
    file, is_loaded = run_python(environment, "-c", code).split()
    assert "native-tests" in file
    assert is_loaded == "True"


def test_the_unit_tests_touch_nothing_that_is_not_theirs(environment: dict[str, str]) -> None:
    others = [f"--ignore-glob={ROOT}/tests/unit/test_{name}.py" for name in NOT_OF_THE_CORE]
    assert " passed" in run_python(environment, *PYTEST, "tests/unit", *others)


def test_the_crash_tour_touches_nothing_that_is_not_its_own(environment: dict[str, str]) -> None:
    url = f"maru:///test-{os.getpid()}-tour"
    code = f"from maru.testing import tour; tour.walk_and_tell({url!r} + tour.POOL_QUERY)"
    reached = run_python(environment, "-c", code).split()
    assert len(reached) > 40
