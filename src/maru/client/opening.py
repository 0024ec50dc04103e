"""From an address in an engine's configuration to a pool on this host: its own, the daemon's, or one in front of it.

Loads nothing of the network before an address asks for it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from maru.address import Address
from maru.config import PoolConfig, redact
from maru.errors import NoDaemon
from maru.pool import Pool

if TYPE_CHECKING:
    from maru.tiering.ladder import LadderSettings

_log = logging.getLogger("maru")


def open_pool(
    address: Address,
    deadline_s: float = 5.0,
    near: bool = True,
    must_not_wait: bool = False,
    ladder: LadderSettings | None = None,
) -> Pool:
    """The pool that an address means, by the best way there is; with the places below it, if the address names some.

    `deadline_s`: how long the daemon is waited for, here and later. `near`: a pool of this host in front of a far one
    will do. `must_not_wait`: nothing comes up from below but when it is asked for by name (TieredPool.begin). `ladder`:
    how it behaves.
    Raises NoDaemon, and what maru.connect, Pool.open and Ladder raise.
    """
    pool = _open(address, deadline_s, near)
    if not address.tiers:
        return pool
    if type(pool) is not Pool:
        _log.warning("the far pool's daemon has places below it; those named here are not used: %s", len(address.tiers))
        return pool
    from maru.tiering.tiered import TieredPool

    with pool:
        return TieredPool(pool.config, address.tiers, ladder, is_explicit=must_not_wait)


def _open(address: Address, deadline_s: float, near: bool) -> Pool:
    if not address.daemon:
        return Pool.open(address.url)
    try:
        from maru.client.near import NearPool
        from maru.client.ways import connect_to_daemon

        found = connect_to_daemon(address.daemon, "auto", None, (), deadline_s, None)
    except NoDaemon:
        if address.needs_daemon:
            raise
        return Pool.open(address.url)
    except ModuleNotFoundError as error:
        if not address.needs_daemon:
            return Pool.open(address.url)
        raise NoDaemon(
            f"speaking with a daemon needs {error.name}: pip install 'maru-kvcache[remote]'", host=address.daemon
        ) from None
    if isinstance(found, Pool):
        if not address.pool.tenant_secret or found.config.handed_by:  # What is handed over has it with it.
            return found
        with found:
            return Pool.attach(_told_again(found.config.url, address.pool))
    try:
        if not near:
            raise NoDaemon(
                f"the pool behind {redact(address.daemon)} is another host's, and this engine's door needs one of its "
                "own host",
                host=address.daemon,
            )
        Pool.open(address.url).close()  # Made, if it was not there.
        return NearPool(address.pool, found)
    except BaseException:
        found.close()
        raise


def settled(address: Address, pool: Pool) -> Address:
    """What to attach to again when this pool was destroyed and somebody made it anew.

    A pool of this host by its name, without asking a daemon on the way; a near pool as it was found.
    """
    if not address.daemon or hasattr(pool, "far") or pool.config.handed_by:
        return address
    return replace(address, url=_told_again(pool.config.url, address.pool), daemon="", needs_daemon=False)


def _told_again(url: str, config: PoolConfig) -> str:
    """The URL of a pool that was found, with what the address says to whoever attaches."""
    options = [] if config.populate else ["populate=off"]
    if config.tenant_secret:
        options.append(f"tenant_secret={quote(config.tenant_secret)}")
    return url + "".join(("&" if "?" in url or n else "?") + option for n, option in enumerate(options))


def reopened(address: Address, deadline_s: float = 5.0) -> Pool:
    """Attach to the pool of a settled address, as soon as there is one. Raises as Pool.attach and open_pool."""
    if address.daemon:
        return open_pool(address, deadline_s)
    pool = Pool.attach(address.url)
    if not address.tiers:
        return pool
    with pool:
        return open_pool(address, deadline_s)
