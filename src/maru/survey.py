"""Which pools there are, and a look at each of them from outside.

Every look attaches without touching the pool's memory and lets go again, so that looking holds nobody up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import maru
from maru.config import shared_memory_root
from maru.errors import MaruError, PoolNotFound
from maru.stat_view import SeenPool
from maru.tiering.told import told_beside


def url_in(folder: Path) -> str:
    """A URL that names the pool in `folder` and says nothing else; it holds no secret."""
    place = "" if folder.parent == shared_memory_root() else f"?dir={quote(str(folder.parent))}"
    return f"maru:///{quote(folder.name)}{place}"


def look_at(folder: Path) -> dict[str, Any]:
    """The figures of the pool in `folder`, and as "ladders" what those told that have places below it.

    Raises what Pool.attach raises.
    """
    url = url_in(folder)
    with maru.Pool.attach(url + ("&" if "?" in url else "?") + "populate=off") as pool:
        return {**pool.stats(), "ladders": told_beside(folder)}


def pool_folders(place: Path | None) -> list[Path]:
    """The folders in `place`, or in this user's own place, that may be pools, by name. Raises PoolNotFound."""
    root = place.absolute() if place else shared_memory_root()
    try:
        return sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PoolNotFound(f"cannot look into {root}: {error.strerror}", path=str(root)) from error


def survey(place: Path | None) -> list[SeenPool]:
    """Every pool in `place`, by name. A pool that cannot be attached is in it with its error."""
    pools = []
    for folder in pool_folders(place):
        if place and not (folder / "index").exists():
            continue  # Somebody else's folder beside the pools.
        seen = SeenPool(folder)
        try:
            seen.stats = look_at(folder)
        except MaruError as error:
            seen.error = error
        pools.append(seen)
    return pools
