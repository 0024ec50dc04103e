"""Several hosts on one machine: network namespaces joined by cables that a test can cut.

Holds:      the hosts, their links, and the client processes that run on them.
Promises:   whatever a test does, nothing of it is left: processes are killed, namespaces removed; those of a test run
            that was itself killed go when the next one begins. A process that is not to see the pools has a /dev/shm
            of its own.
Leaves:     what a client does there to `far_client`, slow links to `relay`.

The first host is joined with each of the others by a cable of its own; the others do not see each other.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FAR_CLIENT = Path(__file__).with_name("far_client.py")
PREFIX = "maru-host"
ANSWER_DEADLINE_S = 30.0
HIDING = 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"'


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout


@cache
def why_not() -> str:
    """What this machine lacks for hosts of its own; nothing when it has all."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {missing[0]}"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", "to-other", "netns", name, "type", "veth", "peer", "name", "back", "netns", name)
            subprocess.run(["unshare", "-m", "sh", "-c", HIDING, "true"], check=True, capture_output=True, timeout=20)
        finally:
            _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        said = error.stderr if isinstance(error.stderr, str) else error.stderr.decode()
        return f"network namespaces cannot be made here: {said.strip()[:200]}"
    return ""


@dataclass
class Host:
    """One of them, as the first host reaches it."""

    namespace: str
    address: str
    """Its own; for the first host the one on the cable to the second."""
    cable: str = ""
    """The first host's end of the cable to this one."""
    first: str = ""
    """The first host's namespace."""
    clients: list[Far] = field(default_factory=list)

    @property
    def inside(self) -> tuple[str, ...]:
        """Words before a command that is to run here."""
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        _ip("-n", self.first, "link", "set", self.cable, "down")

    def mend(self) -> None:
        _ip("-n", self.first, "link", "set", self.cable, "up")

    def client(self, sees_pools: bool = False) -> Far:
        """A client process on this host, which sees this machine's /dev/shm or an empty one."""
        hiding = () if sees_pools else ("unshare", "-m", "sh", "-c", HIDING)
        far = Far([*self.inside, *hiding, sys.executable, str(FAR_CLIENT)])
        self.clients.append(far)
        return far

    def die(self) -> None:
        """As by a power cut: the link first, so that no word of it gets out; then every process."""
        self.cut()
        for far in self.clients:
            far.kill()


class Far:
    """A client process elsewhere, told what to do line by line."""

    def __init__(self, words: list[str]) -> None:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))

    def begin(self, call: str, **arguments: Any) -> None:
        """Have it do this; answer() waits until it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self.process.stdin.flush()

    def said(self, deadline_s: float = ANSWER_DEADLINE_S) -> dict[str, Any]:
        """The next thing it says. Raises queue.Empty when it hangs."""
        return self._said.get(timeout=deadline_s)

    def ask(self, call: str, deadline_s: float = ANSWER_DEADLINE_S, **arguments: Any) -> Any:
        """What it answers. Fails when it raised."""
        self.begin(call, **arguments)
        said = self.said(deadline_s)
        assert "answer" in said, said
        return said["answer"]

    def tries(self, call: str, deadline_s: float = ANSWER_DEADLINE_S, **arguments: Any) -> Any:
        """What it answers; None when it raised."""
        self.begin(call, **arguments)
        return self.said(deadline_s).get("answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self._listener.join(20)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """The first and those that are joined with it."""
    _remove_left_over()
    first = f"{PREFIX}-{os.getpid()}-{names[0]}"
    made: list[Host] = []
    namespaces: list[str] = []
    try:
        for number, name in enumerate(names):
            namespace = f"{PREFIX}-{os.getpid()}-{name}"
            _ip("netns", "add", namespace)
            namespaces.append(namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            if number == 0:
                made.append(Host(namespace, "10.77.1.1"))
                continue
            cable = f"to-{name}"
            _ip("link", "add", cable, "netns", first, "type", "veth", "peer", "name", "back", "netns", namespace)
            for end, place, last in ((cable, first, 1), ("back", namespace, 2)):
                _ip("-n", place, "addr", "add", f"10.77.{number}.{last}/24", "dev", end)
                _ip("-n", place, "link", "set", end, "up")
            made.append(Host(namespace, f"10.77.{number}.2", cable, first))
        yield made
    finally:
        for host in made:
            for far in host.clients:
                far.kill()
        for namespace in namespaces:
            _ip("netns", "del", namespace)


def _remove_left_over() -> None:
    """Namespaces of test runs that are no more."""
    for line in _ip("netns", "list").splitlines():
        name = line.partition(" ")[0]
        pid = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(f"{PREFIX}-") and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _ip("netns", "del", name)
