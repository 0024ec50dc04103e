#!/bin/sh
# Install what requirements/ names: each file by its hash, torch by its version. `make setup` calls it.
#
# Ends with 2 when a file has another content than its hash says: somebody changed it, and nothing else is tried. With 1
# when the index lacks one, as a mirror may: the caller then takes what pyproject.toml allows.
#
#   PIP           the command, e.g. ".venv/bin/python -m pip"
#   TORCH         what to install from the index with torch's builds
#   TORCH_INDEX   that index, if it is not the configured one
set -u

LOG=build/lock-install.log
mkdir -p build

if $PIP install --quiet --no-deps --require-hashes --requirement requirements/lock.txt >"$LOG" 2>&1 &&
    $PIP install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint requirements/torch.txt "$TORCH" >"$LOG" 2>&1
then
    exit 0
fi
cat "$LOG" >&2
if grep -q 'DO NOT MATCH THE HASHES' "$LOG"; then
    echo '    A package is not the one that was locked, and nothing more is installed. If you trust this index:' >&2
    echo '    make setup LOCKED=' >&2
    exit 2
fi
echo '    The index does not have all that is locked: taking what pyproject.toml allows, without hashes.' >&2
exit 1
