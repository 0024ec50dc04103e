"""LMCache's configuration, as far as it decides whether LMCache uses a pool, and well."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maru.address import read_address
from maru.config import redact
from maru.doctor.line import Line
from maru.doctor.software import version_of_package
from maru.errors import MaruError

TESTED = "0.5.6"
_SECTION = "lmcache"
_PREFIX = "LMCACHE_"


def look_at_lmcache(
    environment: Mapping[str, str] = os.environ, version_of: Callable[[str], str | None] = version_of_package
) -> list[Line]:
    """Nothing when LMCache is not installed. Read as LMCache does: LMCACHE_CONFIG_FILE, and LMCACHE_* over it."""
    installed = version_of("lmcache")
    if installed is None:
        return []
    advice = "" if installed == TESTED else f"pip install lmcache=={TESTED}: the version that Maru's tests run against"
    lines = [Line(_SECTION, "version", "improve" if advice else "ok", installed, installed, advice)]
    try:
        settings = _settings(environment)
    except (OSError, ValueError) as error:
        file = environment.get("LMCACHE_CONFIG_FILE", "")
        lines.append(Line(_SECTION, "configuration", "bad", f"{file}: {error}", None, "set LMCACHE_CONFIG_FILE right"))
        return lines
    path = settings.get("maru_path")
    remote = str(settings.get("remote_url") or "")
    if not path and remote.startswith("maru://"):
        return [*lines, _address(remote, "remote_url"), *_plugin(settings), *_hashes(settings, environment)]
    if not path:
        text = "no maru_path in the configuration that this shell has: LMCache does not use Maru"
        return [*lines, Line(_SECTION, "maru_path", "ok", text, None)]
    lines += [_address(str(path), "maru_path"), *_local_cpu(settings), *_layerwise(settings)]
    return lines + _hashes(settings, environment)


def _settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Raises OSError, and ValueError for a file that is no YAML mapping."""
    settings: dict[str, Any] = {}
    file = environment.get("LMCACHE_CONFIG_FILE")
    if file:
        import yaml  # LMCache brings it.

        try:
            read = yaml.safe_load(Path(file).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML: {error}") from None
        if not isinstance(read, dict):
            raise ValueError("not a mapping of settings")
        settings.update(read)
    for name, value in environment.items():
        if name.startswith(_PREFIX) and name != "LMCACHE_CONFIG_FILE":
            settings[name.removeprefix(_PREFIX).lower()] = value
    return settings


def _is_on(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "true", "yes", "on")


def _address(path: str, setting: str) -> Line:
    try:
        address = read_address(path)
    except MaruError as error:
        return Line(_SECTION, setting, "bad", error.message, None, error.hint)
    if address.needs_daemon:
        text = f"a daemon elsewhere; chunks come through {address.pool.url} of this host"
        return Line(_SECTION, setting, "ok", text, redact(address.daemon))
    return Line(_SECTION, setting, "ok", address.pool.url, address.pool.url)


def _plugin(settings: Mapping[str, Any]) -> list[Line]:
    """LMCache finds a class outside its own tree by a plug-in only, also for a `remote_url`."""
    if "maru" in str(settings.get("remote_storage_plugins") or ""):
        return []
    text = "LMCache looks for remote_url: maru://... in its own tree only, and goes on without remote storage"
    advice = 'remote_storage_plugins: ["maru"] with module_path and class_name: docs/lmcache-mp.md; or maru_path'
    return [Line(_SECTION, "remote_storage_plugins", "bad", text, None, advice)]


def _local_cpu(settings: Mapping[str, Any]) -> list[Line]:
    size = settings.get("max_local_cpu_size", 5.0)
    try:
        copies = float(size) > 0
    except (TypeError, ValueError):
        copies = True
    if not copies:
        return [Line(_SECTION, "max_local_cpu_size", "ok", "0: LMCache allocates in the pool", 0)]
    text = f"{size}: LMCache allocates in memory of its own, and every store is a copy into the pool"
    advice = "local_cpu: false and max_local_cpu_size: 0"
    return [Line(_SECTION, "max_local_cpu_size", "improve", text, size, advice)]


def _layerwise(settings: Mapping[str, Any]) -> list[Line]:
    if not _is_on(settings.get("use_layerwise", False)):
        return []
    text = "LMCache's MaruBackend refuses it and does not start"
    return [Line(_SECTION, "use_layerwise", "bad", text, True, "use_layerwise: false")]


def _hashes(settings: Mapping[str, Any], environment: Mapping[str, str]) -> list[Line]:
    algorithm = str(settings.get("pre_caching_hash_algorithm", "builtin"))
    seed = environment.get("PYTHONHASHSEED", "")
    if algorithm != "builtin" or seed not in ("", "random"):
        return [Line(_SECTION, "hashes", "ok", f"{algorithm}, PYTHONHASHSEED={seed or 'not set'}", algorithm)]
    text = "LMCache hashes with Python's own hash(), which differs from process to process: nobody would hit"
    return [Line(_SECTION, "hashes", "bad", text, algorithm, "export PYTHONHASHSEED=0 for every instance")]
