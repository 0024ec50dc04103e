#!/bin/sh
# What tests run against that no Python package brings: Chromium and its driver, which look at pages, Redis, which the
# pool is measured beside, Prometheus, which answers the dashboard's queries, and the RDMA library, without which Mooncake's
# wheels do not load. `make test` calls it.
#
# Installed where that needs no question: on Debian and its kin, by root or by sudo without a password. Elsewhere it says
# what to install; the tests that need it are then skipped. Never fails: Maru stands on none of them.

missing=
has_browser=
for binary in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$binary" >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
    has_browser=yes
  fi
done
[ -n "$has_browser" ] || missing='chromium chromium-driver'
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
command -v prometheus >/dev/null 2>&1 || missing="$missing prometheus"
ldconfig=$(command -v ldconfig || echo /sbin/ldconfig) # Not on everybody's PATH.
"$ldconfig" -p 2>/dev/null | grep -q 'libibverbs\.so\.1 ' || missing="$missing libibverbs1"
[ -n "$missing" ] || exit 0

advise() {
  printf '    not here: %s (%s); the tests that need them are skipped. To have them:\n' "$missing" "$1"
  printf '      Debian:   sudo apt-get install -y chromium chromium-driver redis-server prometheus libibverbs1\n'
  printf '      Ubuntu:   sudo apt-get install -y chromium-browser chromium-chromedriver redis-server prometheus libibverbs1\n'
  printf '      Fedora:   sudo dnf install -y chromium chromedriver redis golang-github-prometheus libibverbs\n'
  printf '      Arch:     sudo pacman -S --needed chromium redis prometheus rdma-core\n'
  exit 0
}

command -v apt-get >/dev/null 2>&1 || advise 'this is not Debian'
if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root='sudo -n'
else
  advise 'installing them needs root'
fi

printf '    installing %s\n' "$missing"
log=build/programs-install.log
mkdir -p build
install() {
  # shellcheck disable=SC2086 # Words on purpose: packages.
  $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing \
    >>"$log" 2>&1
}
: >"$log"
if ! install; then
  $as_root apt-get update -qq >>"$log" 2>&1
  install || advise "apt-get could not install them, see $log"
fi
