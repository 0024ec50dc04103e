#!/bin/sh
# Make .venv-sglang: SGLang on a machine without a GPU, above what .venv-engines has. `make engines` calls it.
#
# Where its wheels cannot be had (another processor, another Python) the tests that need it are left out, said aloud.
set -eu

LOG=build/sglang-install.log
LOWER=.venv-engines/bin/python
UPPER=.venv-sglang/bin/python
mkdir -p build

packages() {
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

rm -rf .venv-sglang
"$LOWER" -m venv --without-pip .venv-sglang
if ! "$LOWER" -m pip --disable-pip-version-check --python "$UPPER" install --quiet --no-deps \
    --requirement requirements/sglang.txt >"$LOG" 2>&1; then
    tail -n 3 "$LOG"
    echo "==> SGLang cannot be installed here (see $LOG): it is not tested."
    rm -rf .venv-sglang
    mkdir .venv-sglang
    exit 0
fi
packages "$LOWER" >"$(packages "$UPPER")/engines.pth"
