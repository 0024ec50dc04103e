"""One turn of the conversation, answered twice by the same process: cold, and from the pool."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

__all__ = ["MAX_NEW_TOKENS", "Answering", "Turn", "take_turn"]

# Long enough for a sentence, short enough for the demo's three minutes.
MAX_NEW_TOKENS = 24


class Answering(Protocol):
    """A process that answers: an `Actor`, or a `Server`."""

    name: str

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its report. Raises ActorLost."""
        ...


@dataclass(frozen=True)
class Turn:
    """What one process measured for one turn. Times in seconds, sizes in bytes; None: not measured."""

    process: str
    question: str
    prompt_tokens: int
    reused_tokens: int
    ttft_cold_s: float
    ttft_pool_s: float
    bytes_shared: int | None  # Read in place from the pool, where another process wrote them.
    bytes_copied: int | None  # Moved through files, pipes and sockets meanwhile; Linux does not always tell.
    bytes_loaded: int | None  # The one copy, from the pool into the model's own cache.
    bytes_stored: int | None
    answer: str
    answer_cold: str
    same_answer: bool
    reused_tokens_cold: int = 0

    @property
    def speedup(self) -> float:
        return self.ttft_cold_s / self.ttft_pool_s

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup}


def take_turn(actor: Answering, messages: list[dict[str, str]], *, cold_first: bool) -> Turn:
    """Let `actor` answer `messages` both ways; the order alternates, so that neither profits from it.

    Raises ActorLost.
    """
    reports = {
        with_pool: actor.ask(
            {
                "do": "answer",
                "messages": messages,
                "max_new_tokens": MAX_NEW_TOKENS,
                "with_pool": with_pool,
            }
        )
        for with_pool in ((False, True) if cold_first else (True, False))
    }
    cold, pooled = reports[False], reports[True]
    return Turn(
        process=actor.name,
        question=messages[-1]["content"],
        prompt_tokens=pooled["prompt_tokens"],
        reused_tokens=pooled["reused_tokens"],
        ttft_cold_s=cold["ttft_s"],
        ttft_pool_s=pooled["ttft_s"],
        bytes_shared=pooled["bytes_loaded"],
        bytes_copied=pooled["bytes_through_syscalls"],
        bytes_loaded=pooled["bytes_loaded"],
        bytes_stored=pooled["bytes_stored"],
        answer=pooled["answer"],
        answer_cold=cold["answer"],
        same_answer=pooled["output_ids"] == cold["output_ids"],
        reused_tokens_cold=cold["reused_tokens"],
    )
