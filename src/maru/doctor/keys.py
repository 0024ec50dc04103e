"""Would two instances agree on keys? The same tokens are made into keys here and in another interpreter, and compared
with the answer that every host must give.
"""

from __future__ import annotations

import os
import subprocess
import sys
from array import array

from maru.doctor.line import Line
from maru.key import Identity
from maru.native import core

KNOWN_ANSWER = (
    "061fbc2ca003d2f100361df7c651c434a589d7aaea68ee89fe24f78b1d7e6d13"
    "5ccfe4a90e6c513fea37d82f55df99bd5ceaadbf2f05fcf0db5f0030bf677259"
)
"""Hex of the packed keys that example_keys() gives on every host and in every version. It may never change."""

_SECTION = "keys"
_CHUNK_TOKENS = 16
_DEADLINE_S = 60.0
_PROGRAM = "from maru.doctor.keys import example_keys; print(example_keys().hex())"


def example_keys() -> bytes:
    """Packed keys of a made-up prompt of 64 tokens under a made-up identity with letters beyond ASCII."""
    identity = Identity(model="maru-doctor", kv_layout="example/1", tenant="anybody", tokenizer="日本語", salt="é")
    seed = core.blake3(identity.encode(), 16)
    return core.chunk_keys(array("i", [token * token + 7 for token in range(64)]), _CHUNK_TOKENS, seed)


def fingerprint() -> str:
    """Eight letters that are equal on hosts which give equal keys: "3f2a-91c0"."""
    short = core.blake3(example_keys(), 4).hex()
    return f"{short[:4]}-{short[4:]}"


def look_at_keys() -> list[Line]:
    """The known answer here, and in an interpreter that hashes strings otherwise."""
    here = example_keys().hex()
    lines = []
    if here == KNOWN_ANSWER:
        text = f"as on every host; the fingerprint is {fingerprint()}"
        lines.append(Line(_SECTION, "known answer", "ok", text, fingerprint()))
    else:
        advice = "this build makes other keys: it would share nothing with others. Install it anew and report it"
        lines.append(
            Line(_SECTION, "known answer", "bad", f"{here[:16]}…, not {KNOWN_ANSWER[:16]}…", fingerprint(), advice)
        )
    there = _in_another_interpreter()
    if there == here:
        lines.append(Line(_SECTION, "another process", "ok", "agrees, with another PYTHONHASHSEED", True))
    else:
        advice = "run every instance with one installation of maru-kvcache; if it is, report it"
        lines.append(Line(_SECTION, "another process", "bad", f"answers {there[:80]!r}", False, advice))
    return lines


def _in_another_interpreter() -> str:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=paths)
    try:
        done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True,
                              timeout=_DEADLINE_S, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip() or done.stderr.strip()[-80:]
