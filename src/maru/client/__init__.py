"""One call for every kind of pool: on this host, on a host whose memory is mapped here, or over the wire.

    maru.connect("maru:///kv")                    a pool of this host
    maru.connect("maru://10.0.0.7:6555")          the pool of a daemon (`maru serve`), by the best way there is
    maru.connect("unix:///run/maru/kv.sock")      what a daemon of this host (`maru serve --local`) has for this user

Asked for a daemon, a client learns which pool it serves. On the same host it gets that pool itself, and speaks with the
daemon no more. On another host that maps the same memory (segments are known by their UUID) it asks the daemon where
bytes are and reads them in place. Otherwise they come over the wire, in verified pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from maru.client.remote import RemotePool
    from maru.pool import Pool

Mode = Literal["auto", "local", "mapped", "wire"]


def connect(
    url: str,
    *,
    mode: Mode = "auto",
    key: str | None = None,
    data: tuple[str, ...] = (),
    deadline: float = 5.0,
    memory_bytes: int | None = None,
) -> Pool | RemotePool:
    """Attach to a pool, wherever it is. Both kinds of result have the same calls for chunks.

    `url`: maru:///NAME, unix:///PATH[?mode=], or maru://HOST:PORT[?mode=&key=&data=], whose parameters count where
    no argument is given. `mode`: take this way or fail. `key`: a client's key file (maru keys generate NAME);
    without one the connection is plain. `data`: devices or files to look for the pool's segments in, besides where
    the daemon has them. `deadline`: seconds that a call waits. `memory_bytes`: what is fetched at once over the
    wire.

    Raises BadUrl, NoDaemon, Forbidden, VersionSkew, PoolMismatch, and what opening a pool raises.
    """
    from maru.pool import Pool

    if url.startswith("maru:///"):
        return Pool.open(url)
    from maru.client.ways import connect_to_daemon

    return connect_to_daemon(url, mode, key, data, deadline, memory_bytes)


__all__ = ["Mode", "connect"]
