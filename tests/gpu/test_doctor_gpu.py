"""What `maru doctor --gpu` says about drivers, devices and memory that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from children import ask

from fake_gpu import Fake
from maru.doctor import Line, Machine, look_at_gpus, worst

GPU = {
    "ordinal": 0, "name": "Some GPU", "memory_bytes": 80 << 30, "pci": "0000:01:00.0", "numa_node": 1,
    "registers_host_memory": True, "registers_read_only_memory": True,
}  # fmt: skip
GOOD = {"driver": "13.0", "bindings": "13.0.1", "copies_in_batches": True, "devices": [GPU]}
ZONES = """Node 0, zone   Normal
  pages free     100
        present  4000
Node 1, zone  Movable
  pages free     5
        spanned  0
        present  {present}
Node 1, zone   Device
  pages free     0
        present  7
"""


def told(machine: Machine, facts: dict[str, Any], segments: tuple[str, ...] = ()) -> dict[str, Line]:
    return {line.name: line for line in look_at_gpus(machine, [Path(name) for name in segments], lambda: facts)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "proc/self").mkdir(parents=True)
    return Machine(tmp_path / "proc", tmp_path / "sys", tmp_path / "dev", tmp_path)


def test_a_good_gpu_has_nothing_to_do(machine: Machine) -> None:
    lines = told(machine, GOOD)
    assert worst(list(lines.values())) == "ok"
    assert "Some GPU, 80 GiB, PCI 0000:01:00.0, NUMA node 1" in lines["GPU 0"].text
    assert lines["GPU 0"].figure == GPU


def test_no_driver_is_one_line_and_no_fault(machine: Machine) -> None:
    lines = told(machine, {"problem": "no CUDA driver"})
    assert list(lines) == ["driver"]
    assert lines["driver"].verdict == "ok"
    assert "works without it" in lines["driver"].text


def test_a_driver_that_only_python_does_not_reach_is_worth_a_command(machine: Machine) -> None:
    (machine.proc / "driver/nvidia").mkdir(parents=True)
    (machine.proc / "driver/nvidia/version").write_text("NVRM version: 580.65\n")
    line = told(machine, {"problem": "the package cuda-bindings is not installed"})["driver"]
    assert line.verdict == "improve"
    assert "maru-kvcache[gpu]" in line.advice


def test_a_gpu_that_registers_nothing_and_a_driver_without_batches_could_be_better(machine: Machine) -> None:
    facts = {**GOOD, "copies_in_batches": False, "devices": [{**GPU, "registers_host_memory": False}]}
    lines = told(machine, facts)
    assert "one by one" in lines["driver"].text
    assert "detour" in lines["GPU 0"].text
    assert lines["driver"].verdict == lines["GPU 0"].verdict == "improve"


@pytest.mark.parametrize(
    ("options", "is_told"), [("rw,dax=always", True), ("rw,dax", True), ("rw,dax=never", False), ("rw", False)]
)
def test_a_pool_on_a_file_systems_dax_cannot_be_registered(machine: Machine, options: str, is_told: bool) -> None:
    (machine.proc / "self/mounts").write_text(f"/dev/pmem0 /pmem ext4 {options} 0 0\n")
    lines = told(machine, GOOD, ("/pmem/kv/segment-0", "/elsewhere/segment-0"))
    assert ("/pmem/kv/segment-0" in lines) == is_told
    assert "/elsewhere/segment-0" not in lines


@pytest.mark.parametrize("present", [0, 262144])
def test_movable_memory_is_told(machine: Machine, present: int) -> None:
    (machine.proc / "zoneinfo").write_text(ZONES.format(present=present))
    lines = told(machine, GOOD)
    assert ("movable memory" in lines) == bool(present)
    if present:
        assert lines["movable memory"].figure == [1]


def test_the_command_asks_the_driver_and_makes_no_context(loaded_fake: Fake) -> None:
    failing = {"LD_LIBRARY_PATH": str(loaded_fake.folder), "FAKE_CUDA_FAIL": "cuDevicePrimaryCtxRetain:0:2"}
    _, document = ask(failing, "doctor", "--gpu")
    names = [line["name"] for line in document["lines"] if line["section"] == "gpu"]
    assert names[:2] == ["driver", "GPU 0"]


def test_without_a_driver_the_verdict_is_what_it_was() -> None:
    environment = {"LD_LIBRARY_PATH": ""}
    code, document = ask(environment, "doctor")
    code_gpu, document_gpu = ask(environment, "doctor", "--gpu")
    assert (code_gpu, document_gpu["verdict"]) == (code, document["verdict"])
    assert next(line["verdict"] for line in document_gpu["lines"] if line["section"] == "gpu") == "ok"


def test_a_driver_that_crashes_is_an_answer() -> None:
    from maru.engine.device_copy import survey

    asked = survey.sys.executable
    survey.sys.executable = "/bin/false"
    try:
        assert "ended the process" in survey.survey()["problem"]
    finally:
        survey.sys.executable = asked
