"""A real browser without a screen, which the tests of pages look through. Where there is none, they are skipped.

Everything that Chromium and its driver write goes into a folder of the test run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.webdriver import WebDriver

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-crash-reporter",
)  # fmt: skip
LOAD_SECONDS_MAX = 30
HOW_TO = "sh scripts/install_test_programs.sh, or on Debian: sudo apt-get install -y chromium chromium-driver"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Headless Chromium with an empty profile; it keeps every message of the pages' consoles."""
    binary = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip(f"needs {'Chromium' if binary is None else 'chromedriver'}: {HOW_TO}")
    home = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*OPTIONS, f"--user-data-dir={folder(home, 'profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver, env=environment(home))
    found = webdriver.Chrome(options=options, service=service)
    try:
        found.set_page_load_timeout(LOAD_SECONDS_MAX)
        found.set_script_timeout(LOAD_SECONDS_MAX)
        yield found
    finally:
        found.quit()


def folder(home: Path, name: str) -> str:
    path = home / name
    path.mkdir()
    return str(path)


def environment(home: Path) -> dict[str, str]:
    """Of the driver and the browser: nothing of the user's, and no folder of theirs."""
    names = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
    folders = {name: folder(home, name.lower()) for name in names}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **folders}
