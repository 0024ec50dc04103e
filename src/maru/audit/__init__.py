"""Who did what with which namespace, when: an append-only log that shows when somebody changed it.

    record    one entry: who, through which door, what, how much; never content, never a secret
    chain     how a line is tied to the one before it, with a key or without
    log       the folder: lines appended by any number of processes, files that follow each other, a bound on all
    summing   what happens often becomes one line a second, what is rare comes at once, and neither waits for a disk
    tallied   what a pool counted of its own process, as entries
    verify    reads the chain and names each kind of damage
    reading   entries that match, for people

Nothing in here raises into whoever stores or reads chunks: a disk that fails is told once, counted, and leaves a line
that says what is missing as soon as it writes again.
"""

from maru.audit.chain import make_key, read_key
from maru.audit.log import AuditLog, Bounds
from maru.audit.reading import Wanted, entries_in
from maru.audit.record import Entry, Who, this_process
from maru.audit.summing import Audit
from maru.audit.tallied import audit_pool
from maru.audit.verify import Damage, Verdict, verify_log

__all__ = [
    "Audit",
    "AuditLog",
    "Bounds",
    "Damage",
    "Entry",
    "Verdict",
    "Wanted",
    "Who",
    "audit_pool",
    "entries_in",
    "make_key",
    "read_key",
    "this_process",
    "verify_log",
]
