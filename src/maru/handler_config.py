"""What a drop-in handler is made from: the fields, defaults and environment variables that its callers rely on."""

from __future__ import annotations

import logging
import os
import uuid
from dataclasses import dataclass, field


def _switch(name: str, default: bool) -> bool:
    """An environment variable that is on or off. Raises ValueError for anything else."""
    text = os.environ.get(name)
    if text is None:
        return default
    if text.strip().lower() in ("1", "true", "yes", "on"):
        return True
    if text.strip().lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{name}={text!r} is neither on nor off; write 1 or 0")


@dataclass
class MaruConfig:
    """What a handler is made from. Raises ValueError for sizes that cannot be, BadUrl only at connect().

    `pool_size` is the whole pool's, not this client's, and counts only when the pool is not there yet and `server_url`
    gives no size. `timeout_ms`: how long a daemon on another host is waited for. What else concerned a server
    (inflight, mapping, expansion) is accepted and has no effect.
    """

    server_url: str = field(default="tcp://localhost:5555", repr=False)
    instance_id: str | None = None
    pool_size: int = 100 << 20
    chunk_size_bytes: int = 1 << 20
    auto_connect: bool = True
    timeout_ms: int = 2000
    use_async_rpc: bool = True
    max_inflight: int = 64
    eager_map: bool = True
    auto_expand: bool = True
    expand_size: int | None = None
    rm_address: str = "127.0.0.1:9850"
    enable_stats: bool = False

    def __post_init__(self) -> None:
        if self.instance_id is None:
            self.instance_id = str(uuid.uuid4())
        self.eager_map = _switch("MARU_EAGER_MAP", self.eager_map)
        self.enable_stats = _switch("MARU_STAT", self.enable_stats)
        self.populate = _switch("MARU_PREFAULT", True)
        if self.chunk_size_bytes <= 0:
            raise ValueError(f"chunk_size_bytes must be above 0, not {self.chunk_size_bytes}")
        if self.pool_size < self.chunk_size_bytes:
            raise ValueError(f"pool_size {self.pool_size} is below chunk_size_bytes {self.chunk_size_bytes}")
        if self.expand_size is not None and not self.auto_expand:
            raise ValueError("expand_size means nothing with auto_expand=False; leave one of them out")
        if self.expand_size is not None and self.expand_size < self.chunk_size_bytes:
            raise ValueError(f"expand_size {self.expand_size} is below chunk_size_bytes {self.chunk_size_bytes}")


def show_log() -> None:
    """Let people see what the handler says: at MARU_LOG_LEVEL, else LMCache's, else INFO; an unknown level is INFO.

    A program that arranged its logging itself keeps its arrangement.
    """
    log = logging.getLogger("maru")
    if log.level == logging.NOTSET:
        name = os.environ.get("MARU_LOG_LEVEL") or os.environ.get("LMCACHE_LOG_LEVEL") or "INFO"
        log.setLevel(logging.getLevelNamesMapping().get(name.strip().upper(), logging.INFO))
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] maru %(levelname)s: %(message)s"))
        log.addHandler(handler)
