"""Everything that can go wrong with a world that failed. A miss, a full pool or a lost race is never an error.

    MaruError
    ├── PoolError                 the pool as a whole
    │   ├── PoolNotFound          there is none of that name
    │   ├── PoolExists            create() found one
    │   ├── PoolMismatch          not ours, torn, truncated, another format, another pool's memory
    │   ├── PoolBusy              in use, being created, or every process slot taken
    │   ├── NoSpace               the medium has no room for it
    │   ├── NamespaceTableFull    more namespaces than the pool was made for
    │   ├── ShareTooLarge         more promised to a tenant than there is
    │   ├── LeaseEnded            what another host held here is not held for it any more
    │   ├── NoDaemon              another host is asked, and no daemon answers
    │   ├── ReadsOnly             attached with access=read, and asked to change something
    │   └── NotAttached           this handle was closed
    ├── CannotListen              a daemon's address is taken, or its certificate cannot be used
    ├── Forbidden                 a daemon knows who asks, and it is not theirs to ask
    ├── NotProtected              a daemon would show pools, or tokens, to a network
    ├── BadUrl (ValueError)       a pool URL that cannot be read
    ├── BadSize (ValueError)      a size that cannot be laid out
    ├── BadKey (ValueError)       keys that are not n x 16 bytes
    ├── BadMessage (ValueError)   bytes from a network that are no message of ours, or one with impossible values
    ├── VersionSkew               a daemon and a client that have no protocol in common
    ├── SessionUnknown            a daemon that was not greeted, or has forgotten
    ├── ChunkTooLarge (ValueError)  one chunk does not fit a slab
    ├── NotReserved               writing to, or sealing, what is not (or no longer) reserved
    ├── TooManyPins               one process holds 60,000 views of one chunk
    ├── CredentialError           who may speak to a daemon: its folder of keys could not be used
    │   ├── UnsafeCredentials     somebody else could read, change or swap it
    │   ├── CredentialNotFound    no key, client, token or certificate of that name
    │   ├── CredentialExists      that name has one already
    │   ├── CredentialsBusy       another command holds the folder for longer than a deadline
    │   └── BadCredential (ValueError)  a name, key, role, host or key file that cannot be read
    ├── AuditError                a folder that no audit log can be kept in, or read from
    ├── TierError                 a place below the pool
    │   ├── TierFailed            it cannot be reached, or did not do what was asked
    │   │   └── TierFull          it has no room, and makes none
    │   ├── NoSuchObject          nothing lies there under that name
    │   └── TornObject            what lies there is not what was stored, or not for this reader
    └── MissingPackage            an optional part was not installed with Maru

Each carries the numbers a reader needs as attributes, and `hint`: what to do about it.
"""

from __future__ import annotations


class MaruError(Exception):
    """Base of all errors that Maru raises on purpose."""

    hint: str = ""

    def __init__(self, message: str, **fields: int | str) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        fields = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _rebuild, (type(self), self.message, fields)


def _rebuild(kind: type[MaruError], message: str, fields: dict[str, int | str]) -> MaruError:
    return kind(message, **fields)


class PoolError(MaruError):
    """Something about the pool as a whole; `path` is its folder or the file concerned."""

    path: str = ""


class PoolNotFound(PoolError):
    """There is no pool of that name."""

    hint = "Pool.open(url) or `maru pool create` makes one"


class PoolExists(PoolError):
    """A pool of that name exists already."""

    hint = "Pool.open(url) attaches to it; Pool.destroy(url) removes it"


class PoolMismatch(PoolError):
    """What lies there is not a pool this version can serve. Nothing was changed."""


class PoolBusy(PoolError):
    """Other processes use the pool, or hold what this call needs, for longer than its deadline."""

    processes: str = ""
    hint = "stop them first; Pool.destroy(url, force=True) turns all of them to misses"


class NoSpace(PoolError):
    """The medium has no room for the pool's index."""

    wanted_bytes: int = 0
    free_bytes: int = -1
    hint = (
        "ask for a smaller size, free some memory, or enlarge the medium "
        "(a container: --shm-size=8g or --ipc=host; a host: mount -o remount,size=8G /dev/shm)"
    )


class ShareTooLarge(PoolError):
    """A tenant was to be promised more than the pool has left, or more than its limit."""

    wanted_bytes: int = 0
    hint = "`maru tenants list POOL` shows who was promised what"


class NamespaceTableFull(PoolError):
    """The pool was made for fewer namespaces."""

    namespace_limit: int = 0


class LeaseEnded(PoolError):
    """A row of the process table that a daemon held for another host: its time is over, or somebody else holds it."""

    hint = "what it pinned may be gone: ask for it again"


class NoDaemon(PoolError):
    """The address names a daemon, and none answers there in time."""

    host: str = ""
    hint = "start one there: maru serve NAME --listen tcp://ADDRESS:PORT; instances on one host need none: maru:///NAME"


class ReadsOnly(PoolError):
    """This process attached for reading only, and was asked to remove or change something. Nothing was changed."""

    hint = "attach without access=read, as a user who may write the pool's segments"


class NotAttached(PoolError):
    """This handle was closed."""


class CannotListen(MaruError):
    """A daemon cannot serve at its address: taken, not this host's, or the certificate cannot be used."""

    host: str = ""
    port: int = 0


class Forbidden(MaruError):
    """The daemon knows by its key who asks, and what was asked is not theirs: another tenant's, or not granted."""

    hint = "`maru keys list`, where the daemon runs, shows whose client this is and what it may"


class NotProtected(MaruError):
    """The address reaches other hosts, and who asks would not be checked, or could be overheard."""

    host: str = ""
    hint = "make keys, tokens and a certificate with `maru keys` and give --keys; or listen on 127.0.0.1"


class BadUrl(MaruError, ValueError):
    """A pool URL that cannot be read."""

    hint = "the form is maru:///NAME?size=64GiB&data=PATH[,PATH...]&medium=shm|hugetlb|file|devdax"


class BadSize(MaruError, ValueError):
    """A size that cannot be laid out."""

    wanted_bytes: int = 0


class BadKey(MaruError, ValueError):
    """Keys are packed: any contiguous buffer of n x 16 bytes."""

    got_bytes: int = 0


class BadMessage(MaruError, ValueError):
    """What came over the network is not a message of ours, or says what cannot be. Nothing was changed."""


class VersionSkew(MaruError):
    """The daemon and this client have no version of the protocol in common."""

    hint = "install the same version of maru-kvcache on both hosts"


class SessionUnknown(MaruError):
    """The daemon does not know this session: it restarted, or the session was silent for too long."""


class ChunkTooLarge(MaruError, ValueError):
    """One chunk does not fit a slab of this pool."""

    wanted_bytes: int = 0
    slab_bytes: int = 0
    hint = "create the pool with a larger slab_bytes, or use fewer tokens per chunk"


class NotReserved(MaruError):
    """The reservation or draft has ended, or there never was one: look at its outcome first."""


class TooManyPins(MaruError):
    """One process holds more live views of one chunk than a pin counter can count."""


class CredentialError(MaruError):
    """Something about the keys of a daemon and its clients; `path` is the file or folder concerned."""

    path: str = ""


class UnsafeCredentials(CredentialError):
    """Others than its owner could read, change or swap this file or folder, so nothing in it is believed."""


class CredentialNotFound(CredentialError):
    """There is no key, client, token or certificate of that name."""


class CredentialExists(CredentialError):
    """That name has one already. Nothing was changed."""


class CredentialsBusy(CredentialError):
    """Another command was changing the same folder for longer than this one waits."""

    hint = "try again; a lock ends with the process that holds it"


class BadCredential(CredentialError, ValueError):
    """A name, key, role, host or key file that cannot be read. The message never shows a secret."""


class AuditError(MaruError):
    """An audit log that cannot be kept, or read; `path` is its folder."""

    path: str = ""


class TierError(MaruError):
    """Something about a place below the pool; `place` is its URL, without secrets."""

    place: str = ""


class TierFailed(TierError):
    """The place cannot be reached, or did not do what was asked. To an engine this is a miss."""


class TierFull(TierFailed):
    """There is no room for the object, and none could be made."""

    wanted_bytes: int = 0


class NoSuchObject(TierError):
    """Nothing lies there under that name."""


class TornObject(TierError):
    """What lies there is not the object that was stored: cut off, changed, swapped, or sealed with another key."""


class MissingPackage(MaruError):
    """An optional part that this call needs was not installed with Maru."""

    package: str = ""
