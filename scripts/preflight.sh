#!/bin/sh
# What building Maru needs, checked before anything is built: each missing thing is named together with the
# line that installs it, all of them at once, and the exit status is then 1. What running the demo needs
# (/dev/shm, memory, torch) is checked by the demo itself.
#
# Environment: PYTHON (default python3), CXX (default the first of g++, clang++, c++), TORCH_INDEX.

PYTHON=${PYTHON:-python3}
DISK_NEEDED_KIB=3145728 # The environment with torch, the build and the demo's model: 3 GiB.
missing=0

lacks() { # what, Debian and Ubuntu, Fedora, Arch
  missing=$((missing + 1))
  printf '  missing: %s\n' "$1"
  printf '      Debian, Ubuntu:  sudo apt-get install -y %s\n' "$2"
  printf '      Fedora:          sudo dnf install -y %s\n' "$3"
  printf '      Arch:            sudo pacman -S --needed %s\n' "$4"
}

if [ "$(uname -s)" != Linux ]; then
  printf '  Maru needs Linux, this is %s. In a container:\n' "$(uname -s)"
  printf '      docker run --shm-size=4g -it -v "$PWD:/maru" -w /maru python:3.12 make demo\n'
  exit 1
fi

if ! command -v "$PYTHON" >/dev/null 2>&1; then
  lacks "Python ($PYTHON is not there)" "python3 python3-venv python3-dev" "python3 python3-devel" "python"
elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  found=$("$PYTHON" -c 'import platform; print(platform.python_version())')
  lacks "Python 3.11 or newer ($PYTHON is $found); then: make PYTHON=python3.12 …" \
    "python3.12 python3.12-venv python3.12-dev" "python3.12 python3.12-devel" "python"
else
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    lacks "Python's venv and ensurepip" "python$version-venv" "python3" "python"
  fi
  if ! "$PYTHON" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())'; then
    lacks "Python's headers (Python.h)" "python$version-dev" "python3-devel" "python"
  fi
fi

# A compiler is asked to compile: version numbers of the many g++ and clang++ do not compare. GCC 10 takes
# -std=c++20 and is still refused here, by the value of __cplusplus.
compiles_cxx20() {
  printf '%s\n' '#include <atomic>' '#include <bit>' '#include <concepts>' '#include <span>' \
    'static_assert(__cplusplus >= 202002L);' \
    'template <std::integral T> T load(T& word) { return std::atomic_ref<T>(word).load(); }' \
    'int main() { int word = 0; return load(word) + std::countr_zero(1u); }' |
    "$1" -std=c++20 -x c++ -fsyntax-only - >/dev/null 2>&1
}
compiler=
for candidate in ${CXX:-g++ clang++ c++}; do
  if command -v "$candidate" >/dev/null 2>&1 && compiles_cxx20 "$candidate"; then
    compiler=$candidate
    break
  fi
done
if [ -z "$compiler" ]; then
  lacks "a C++20 compiler (g++ 11 or newer, clang++ 14 or newer)" "g++" "gcc-c++" "gcc"
fi

if ! command -v make >/dev/null 2>&1; then
  lacks "make" "make" "make" "make"
fi

free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
if [ "${free_kib:-0}" -lt "$DISK_NEEDED_KIB" ]; then
  missing=$((missing + 1))
  printf '  missing: room on disk: %s MiB are free here, %s MiB are needed\n' \
    "$((${free_kib:-0} / 1024))" "$((DISK_NEEDED_KIB / 1024))"
  printf '      make room, or clone into another file system\n'
fi

if [ "$missing" -gt 0 ]; then
  printf '  %s missing; install and run make again.\n' "$missing"
  exit 1
fi

# Not an error, only slow: on x86-64 the torch of the default package index carries CUDA, 3 GB of it.
if [ -z "${TORCH_INDEX:-}" ] && [ "$(uname -m)" = x86_64 ]; then
  indexes="${PIP_INDEX_URL:-} ${PIP_EXTRA_INDEX_URL:-} ${PIP_FIND_LINKS:-} $("$PYTHON" -m pip config list 2>/dev/null)"
  case $indexes in
  *cpu* | *find-links*) ;;
  *)
    printf '  note: pip brings a torch with CUDA here, 3 GB more to download than the demo needs. For the CPU one:\n'
    printf '      TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo\n'
    ;;
  esac
fi
