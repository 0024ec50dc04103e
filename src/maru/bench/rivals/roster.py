"""Who takes part, in the order of the table, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One store that can be measured."""

    title: str
    kind: str
    """`module:class`, imported by the process that is the store's."""
    modules: tuple[str, ...] = ()
    """What has to be importable."""
    program: str = ""
    """What has to be installed beside, as a command."""
    folder: str = ""
    """The virtual environment of its own, under the rivals' folder; "" if it runs in this interpreter."""
    packages: tuple[str, ...] = ()
    """What goes into that environment."""
    variables: tuple[tuple[str, str], ...] = ()
    """Set for its processes."""
    password: str = ""
    """The variable, if any, that gets a word new in each run and the same in all its processes."""


_ROOM = "maru.bench.rivals"
_RAY = ("ray>=2.50,<3", "numpy>=1.26,<3")
# No figures of this machine go to anybody. Ray asks for a token; one of the run's own keeps the user's out of it.
_RAY_VARIABLES = (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "token"))
# NIXL's wheels name torch and CUDA as what they need, which moving bytes between memories does not.
_NIXL = ("--no-deps", "nixl==1.5.1", "nixl-cu12==1.5.1", "numpy>=1.26,<3", "pyzmq>=26,<28", "msgspec>=0.19,<1")
_QUIET_MOONCAKE = (("GLOG_minloglevel", "2"),)
_MOONCAKE = ("mooncake-transfer-engine-non-cuda>=0.3.13,<0.4", "numpy>=1.26,<3")

OURS = "maru"
ENTRIES: dict[str, Entry] = {
    OURS: Entry("maru", f"{_ROOM}.pool_store:PoolStore"),
    "server": Entry("metadata server", f"{_ROOM}.server_store:ServerStore", ("zmq", "msgspec")),
    "lmdb": Entry("LMDB", f"{_ROOM}.lmdb_store:LmdbStore", ("lmdb",)),
    "files": Entry("plain files", f"{_ROOM}.files_store:FilesStore"),
    "redis": Entry("Redis", f"{_ROOM}.redis_store:RedisStore", ("redis",), program="redis-server"),
    "ray": Entry(
        "Ray",
        f"{_ROOM}.ray_store:RayStore",
        ("ray",),
        folder="ray",
        packages=_RAY,
        variables=_RAY_VARIABLES,
        password="RAY_AUTH_TOKEN",
    ),
    "nixl": Entry("NIXL", f"{_ROOM}.nixl_store:NixlStore", ("nixl", "zmq"), folder="nixl", packages=_NIXL),
    "mooncake": Entry(
        "Mooncake, standalone",
        f"{_ROOM}.mooncake_store:MooncakeStore",
        ("mooncake.store",),
        folder="mooncake",
        packages=_MOONCAKE,
        variables=_QUIET_MOONCAKE,
    ),
    "mooncake-embedded": Entry(
        "Mooncake, embedded",
        f"{_ROOM}.mooncake_store:EmbeddedMooncakeStore",
        ("mooncake.store",),
        folder="mooncake",
        packages=_MOONCAKE,
        variables=_QUIET_MOONCAKE,
    ),
}
"""By the name on the command line."""
