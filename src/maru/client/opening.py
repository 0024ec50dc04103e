"""From an address in an engine's configuration to a pool on this host: its own, the daemon's, or one in front of it.

Loads nothing of the network before an address asks for it.
"""

from __future__ import annotations

from dataclasses import replace

from maru.address import Address
from maru.config import redact
from maru.errors import NoDaemon
from maru.pool import Pool


def open_pool(address: Address, deadline_s: float = 5.0, near: bool = True) -> Pool:
    """The pool that an address means, by the best way there is.

    `deadline_s`: how long the daemon is waited for, here and later. `near`: a pool of this host in front of a far one
    will do. Raises NoDaemon, and what maru.connect and Pool.open raise.
    """
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
        return found
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
    if not address.daemon or type(pool) is not Pool:
        return address
    url = pool.config.url
    if not address.pool.populate:
        url += ("&" if "?" in url else "?") + "populate=off"
    return replace(address, url=url, daemon="", needs_daemon=False)


def reopened(address: Address, deadline_s: float = 5.0) -> Pool:
    """Attach to the pool of a settled address, as soon as there is one. Raises as Pool.attach and open_pool."""
    return open_pool(address, deadline_s) if address.daemon else Pool.attach(address.url)
