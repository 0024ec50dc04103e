#!/bin/sh
# Chromium and its driver, for the tests that look at pages. `make test` calls it.
#
# Installed where that needs no question: on Debian and its kin, by root or by sudo without a password. Elsewhere it says
# what to install; the tests that need a browser are then skipped. Never fails: a page is not what Maru stands on.

for binary in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$binary" >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
    exit 0
  fi
done

advise() {
  printf '    no browser: %s; the tests of pages are skipped. To have them:\n' "$1"
  printf '      Debian:   sudo apt-get install -y chromium chromium-driver\n'
  printf '      Ubuntu:   sudo apt-get install -y chromium-browser chromium-chromedriver\n'
  printf '      Fedora:   sudo dnf install -y chromium chromedriver\n'
  printf '      Arch:     sudo pacman -S --needed chromium\n'
  exit 0
}

command -v apt-get >/dev/null 2>&1 || advise 'this is not Debian'
if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root='sudo -n'
else
  advise 'installing one needs root'
fi

printf '    installing chromium and chromium-driver\n'
log=build/browser-install.log
mkdir -p build
install() {
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >>"$log" 2>&1
}
: >"$log"
if ! install chromium chromium-driver; then
  $as_root apt-get update -qq >>"$log" 2>&1
  install chromium chromium-driver || advise "apt-get could not install it, see $log"
fi
