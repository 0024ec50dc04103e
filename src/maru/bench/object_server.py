"""An S3 server on this host (moto, in a process of its own), for measuring what lies in an object store.

It keeps objects in memory and is written in Python: what a place loses beside the same thing raw can be seen on it,
what an object store takes cannot.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maru.bench.engines.way_servers import Server, Servers
from maru.bench.rivals.contract import HOST, free_ports

BUCKET = "maru-bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}


def why_no_object_server() -> str:
    """What is missing; "" for nothing."""
    missing = [name for name in ("moto", "flask", "obstore") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} is missing: pip install 'moto[s3,server]' 'maru-kvcache[tiers]'" if missing else ""


@contextmanager
def object_server(log: Path) -> Iterator[str]:
    """`region=…&endpoint=…` of one with an empty BUCKET, as a place's URL takes it. Raises ServerFailed.

    Keys for it are in the environment while it runs, for this process and its children, if there were none.
    """
    port = free_ports(1)[0]
    command = (sys.executable, "-W", "ignore", "-m", "moto.server", "-H", HOST, "-p", str(port))
    lent = {name: key for name, key in KEYS.items() if name not in os.environ}
    with Servers([Server(command, f"http://{HOST}:{port}/moto-api/")], log):
        made = urllib.request.Request(f"http://{HOST}:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made, timeout=30).close()
        os.environ.update(lent)
        try:
            yield f"region=us-east-1&endpoint=http://{HOST}:{port}&allow_http=1"
        finally:
            for name in lent:
                del os.environ[name]
