# Everything a person does with this checkout. `make help` lists it.
#
# Everything goes into .venv and build/ of the checkout, nothing elsewhere; the only network used is the package
# index. Set PYTHON to choose the interpreter, TORCH_INDEX to take torch from another index, for example
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# What is installed is locked by version and hash (requirements/). Where an index does not have those very files, what
# pyproject.toml allows is taken instead, said aloud; `make setup LOCKED=` does so from the start.

PYTHON ?= python3
TORCH_INDEX ?=
LOCKED ?= yes
MINUTES ?= 10
SEED ?= $(shell date +%s)

VENV_PYTHON := .venv/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check
STAMP := .venv/.maru-setup
ENGINES_PYTHON := .venv-engines/bin/python
ENGINES_PIP := $(ENGINES_PYTHON) -m pip --disable-pip-version-check
ENGINES_STAMP := .venv-engines/.maru-setup
SGLANG_STAMP := .venv-sglang/.maru-setup
CORE_SOURCES := $(wildcard pool/*.cpp pool/*.h)
CPP_SOURCES := $(CORE_SOURCES) $(wildcard tests/native/*.cpp tests/native/*.h tests/fake_cuda/*)

# Read from pyproject.toml, so that a version is written down once.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml | sort -u)
CORE_REQUIREMENTS := $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')
ENGINES_REQUIREMENTS := $(shell sed -n '/^engines = \[/,/^\]/s/^ *\("[^"]*"\),*/\1/p' pyproject.toml)
LOCK_FILES := requirements/lock.txt requirements/torch.txt
NANOBIND := $(shell sed -n 's/^requires = .*"\(nanobind[^"]*\)".*/\1/p' pyproject.toml)
SCIKIT_BUILD := $(shell sed -n 's/^requires = .*"\(scikit-build-core[^"]*\)".*/\1/p' pyproject.toml)
BUILD_TOOLS := 'pip>=24.1' '$(SCIKIT_BUILD)' '$(NANOBIND)' 'cmake>=3.20,<5' 'ninja>=1.11,<2'

export PYTHON TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help setup engines demo demo-vllm test bench report bench-vllm bench-sources bench-lmcache hit-rates \
  stress fuzz instructions lock vulnerabilities lint format clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## Make .venv with everything that the demo and the tests need, and build the core.

# The stamp carries what an installation depends on: quick when nothing of it changed.
$(STAMP): pyproject.toml CMakeLists.txt $(CORE_SOURCES) $(LOCK_FILES)
	@echo '==> Looking for what the build needs'
	@sh scripts/preflight.sh
	@test -x $(VENV_PYTHON) || { echo '==> Making .venv'; $(PYTHON) -m venv .venv; }
ifneq ($(strip $(LOCKED)),)
	@echo '==> Installing what requirements/lock.txt names, file by file'
	@PIP='$(PIP)' TORCH='$(TORCH)' sh scripts/install_locked.sh || \
	  { test $$? -ne 2 && $(MAKE) --no-print-directory setup LOCKED=; }
	@echo '==> Building the native core (minutes, the first time)'
	@$(PIP) install --no-build-isolation --no-deps --config-settings=build-dir=build/editable \
	  --config-settings=cmake.define.MARU_TEST_BUILD=ON --editable .
else
	@echo '==> Installing the build tools'
	@$(PIP) install --quiet $(BUILD_TOOLS)
ifneq ($(strip $(TORCH_INDEX)),)
	@echo '==> Installing $(TORCH) from the index that TORCH_INDEX names'
	@$(PIP) install --index-url '$(TORCH_INDEX)' '$(TORCH)'
endif
	@echo '==> Installing the packages and building the native core (minutes, the first time)'
	@$(PIP) install --no-build-isolation --config-settings=build-dir=build/editable \
	  --config-settings=cmake.define.MARU_TEST_BUILD=ON --editable '.[demo,test]'
endif
	@cp build/editable/_native.pyi src/maru/_native.pyi  # mypy and editors look beside the sources.
	@touch $(STAMP)

demo: setup  ## Watch separate processes share one KV cache, on a real trained model.
	@$(VENV_PYTHON) -m maru demo --cache-dir .cache

demo-vllm: engines  ## Watch the same on vLLM's own API servers.
	@$(ENGINES_PYTHON) -m maru demo --engine vllm --cache-dir .cache

# A second environment: vLLM and LMCache pin half of PyPI, and bring packages that do not load beside a CPU's torch.
engines: $(ENGINES_STAMP) $(SGLANG_STAMP)  ## Make .venv-engines with vLLM and LMCache, .venv-sglang above it, for tests and measurements with real engines.

$(SGLANG_STAMP): requirements/sglang.txt scripts/install_sglang.sh | $(ENGINES_STAMP)
	@echo '==> Making .venv-sglang'
	@sh scripts/install_sglang.sh
	@touch $(SGLANG_STAMP)

$(ENGINES_STAMP): pyproject.toml CMakeLists.txt $(CORE_SOURCES) requirements/engines.txt
	@test -x $(ENGINES_PYTHON) || { echo '==> Making .venv-engines'; $(PYTHON) -m venv .venv-engines; }
	@echo '==> Installing vLLM and LMCache (some GB)'
	@$(ENGINES_PIP) install --quiet $(BUILD_TOOLS)
	@PIP='$(ENGINES_PIP)' CONSTRAINTS='$(if $(strip $(LOCKED)),requirements/engines.txt)' \
	  REQUIREMENTS='$(CORE_REQUIREMENTS) $(ENGINES_REQUIREMENTS)' sh scripts/install_engines.sh
	@$(ENGINES_PIP) install --no-build-isolation --no-deps --config-settings=build-dir=build/engines \
	  --config-settings=cmake.define.MARU_TEST_BUILD=ON --editable .
	@$(ENGINES_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
	@touch $(ENGINES_STAMP)

test: lint engines  ## Lint, ask for known vulnerabilities, then run every test.
	@echo '==> pip-audit'
	@$(VENV_PYTHON) scripts/vulnerabilities.py
	@echo '==> Looking for programs that tests run against'
	@sh scripts/install_test_programs.sh
	@echo '==> pytest'
	@$(VENV_PYTHON) -m pytest
	@echo '==> pytest, with vLLM, LMCache and SGLang'
	@PYTHONHASHSEED=0 $(ENGINES_PYTHON) -m pytest -o filterwarnings=default tests/with_lmcache tests/with_vllm

bench: setup  ## Measure the pool on this machine.
	@$(VENV_PYTHON) -m maru.bench

report: setup  ## Measure every figure of maru bench, quickly, and write bench-results/report.html (8 min).
	@$(VENV_PYTHON) -m maru bench all --quick --cache-dir .cache

hit-rates: setup  ## Replay traces of requests through a pool smaller than they are, beside LRU and the optimum.
	@$(VENV_PYTHON) -m maru.bench.hit_rates

bench-lmcache: setup engines  ## Measure vLLM with LMCache, with Maru and in every other way it has (20 min).
	@$(ENGINES_PIP) install --quiet --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	@$(ENGINES_PYTHON) -m maru.bench lmcache
	@$(ENGINES_PYTHON) -m maru.bench lmcache-copies

bench-vllm: setup engines  ## Measure what a hit through Maru's own vLLM connector costs, and its limits (12 min).
	@$(ENGINES_PYTHON) -m maru.bench vllm

bench-sources: setup engines  ## Measure vLLM's time to first token by where a prompt's beginning comes from (7 min).
	@$(ENGINES_PYTHON) -m maru.bench sources

stress: setup  ## Kill processes at random, alone and in pairs, for MINUTES (default 10), with a seed that can be run again.
	@MARU_CORE=testing $(VENV_PYTHON) -m maru.testing.stress --seconds $$(( $(MINUTES) * 60 )) --seed $(SEED)
	@MARU_CORE=testing $(VENV_PYTHON) -m maru.testing.pairs --pairs $$(( $(MINUTES) * 20 )) --seed $(SEED)

fuzz: setup  ## Change bytes of a pool under living processes, for MINUTES (default 10); each harm can be run again.
	@$(VENV_PYTHON) tests/native/fuzz.py --minutes $(MINUTES)

instructions: setup  ## Count the instructions of the hot calls and write the baseline that the tests compare with.
	@$(VENV_PYTHON) tests/native/counting.py --write

lock: setup  ## Write anew what setup and engines install (requirements/); UPGRADE=yes takes the newest versions.
	@$(PIP) install --quiet 'uv>=0.9,<1'
	@$(VENV_PYTHON) scripts/lock.py $(if $(UPGRADE),--upgrade) $(BUILD_TOOLS)

vulnerabilities: setup  ## Ask whether what is locked has known vulnerabilities.
	@$(VENV_PYTHON) scripts/vulnerabilities.py

lint: setup  ## Check style, types and floors.
	@echo '==> ruff'
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --check --quiet . || { echo 'make format puts these right:'; .venv/bin/ruff format --check .; }
	@echo '==> clang-format'
	@.venv/bin/clang-format --dry-run -Werror $(CPP_SOURCES)
	@echo '==> mypy --strict'
	@.venv/bin/mypy --strict
	@echo '==> import-linter'
	@.venv/bin/lint-imports --no-logo

format: setup  ## Put the layout of Python and C++ sources right.
	@.venv/bin/ruff check --quiet --fix . || true
	@.venv/bin/ruff format .
	@.venv/bin/clang-format -i $(CPP_SOURCES)

clean:  ## Remove what was built. .venv, .venv-engines, .venv-sglang and .cache stay; remove them by hand.
	rm -rf build dist src/maru/_native.pyi .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f $(STAMP) $(ENGINES_STAMP) $(SGLANG_STAMP)
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
