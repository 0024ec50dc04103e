"""A connector whose worker has no pool, while its scheduler has one and promises: how a worker's own failure looks."""

from __future__ import annotations

from typing import Any

from maru.engine.vllm import MaruConnector


class ForgetfulConnector(MaruConnector):
    """Its worker can neither load nor store."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:  # noqa: ARG002 - vLLM names it.
        self._worker = None
