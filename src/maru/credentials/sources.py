"""Where a secret is read from, as an address in a configuration says it: a file, a variable, a program's answer.

Holds:      reading "file:PATH", "env:NAME" and "command:PROGRAM ARGUMENT...".
Promises:   a file that others can read is refused; a program has a deadline, no shell, and room for
            SOURCE_BYTES_MAX; no message repeats what was read, or a program's arguments.
Leaves:     what the content means to whoever asks.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path

from maru.credentials.folder import read_private_file
from maru.errors import BadCredential, CredentialError, CredentialNotFound

SOURCE_BYTES_MAX = 1 << 16
COMMAND_DEADLINE_S = 10.0
SOURCE_KINDS = ("file", "env", "command")


def read_source(source: str, deadline_s: float = COMMAND_DEADLINE_S) -> tuple[bytes, str]:
    """What lies there, and what the place may be called in a message.

    Raises BadCredential, CredentialNotFound, UnsafeCredentials (a file that others can read), CredentialError (a
    program that fails, says too much, or takes longer than `deadline_s`).
    """
    kind, _, place = source.partition(":")
    if "\0" in source:  # No file, variable or argument has one in its name: what opens them would raise ValueError.
        raise BadCredential(
            "a source of keys has a NUL in it; write file:PATH, env:NAME or command:PROGRAM ARGUMENT..."
        )
    if kind == "file" and place:
        content = read_private_file(Path(place))
    elif kind == "env" and place:
        if place not in os.environ:
            raise CredentialNotFound(f"the environment has no variable {place}")
        content = os.environb[os.fsencode(place)]
    elif kind == "command" and place:
        content = _said_by(place, deadline_s)
    else:
        raise BadCredential("keys come from file:PATH, env:NAME or command:PROGRAM ARGUMENT...")
    name = f"{kind}:{place.split()[0] if kind == 'command' else place}"
    if len(content) > SOURCE_BYTES_MAX:
        raise BadCredential(f"{name} holds more than {SOURCE_BYTES_MAX} bytes: those are not keys")
    return content, name


def _said_by(command: str, deadline_s: float) -> bytes:
    """What a program writes to its standard output. Its other output is dropped, for it may hold secrets as well."""
    deadline = time.monotonic() + deadline_s
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words:
        raise BadCredential("command: is not followed by a program and its arguments")
    try:
        program = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise CredentialError(f"the program {words[0]} for keys cannot be run: {error.strerror}") from None
    said = bytearray()
    assert program.stdout is not None
    try:
        while len(said) <= SOURCE_BYTES_MAX:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([program.stdout], [], [], left_s)[0]:
                raise CredentialError(f"the program {words[0]} for keys took longer than {deadline_s:g} s")
            piece = os.read(program.stdout.fileno(), SOURCE_BYTES_MAX)
            if not piece:
                break
            said += piece
        else:
            raise CredentialError(f"the program {words[0]} for keys said more than {SOURCE_BYTES_MAX} bytes")
        code = program.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise CredentialError(f"the program {words[0]} for keys took longer than {deadline_s:g} s") from None
    finally:
        program.stdout.close()
        if program.poll() is None:  # Its whole session: a program of keys may have started others.
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    if code:
        raise CredentialError(f"the program {words[0]} for keys ended with {code}")
    return bytes(said)
