"""The process that has a real model's KV, and makes it smaller with each codec: one core, no place, no pool.

Random bytes would not do: what a codec gains lies in how the numbers of KV repeat. So a model computes them, and they
are rounded to bf16 as engines keep them, laid out as the door of transformers lays a chunk out:
[layers][2][KV heads][tokens][head size].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maru.bench.rivals.contract import Answering
from maru.tier.codec import Codec, open_codec
from maru.tier.envelope import ChunkFacts, Unwrapping, wrap

LOSS_MAX = 0.02
"""What a codec that loses precision may take, of the values' root mean square; more is a wrong chunk."""
_KEY = bytes(16)


class KvChild(Answering):
    """Chunks of KV."""

    def answer(self, request: dict[str, Any]) -> Any:
        acts: dict[str, Callable[..., Any]] = {"compute": self.compute, "measure": self.measure}
        return acts[request.pop("do")](**request)

    def compute(self, model: str, prompt: list[int], chunk_tokens: int) -> int:
        """Have the model read a prompt. Returns the items of a row, which is what codecs scale by."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
        with torch.inference_mode():
            past = made(torch.tensor([prompt]), use_cache=True, logits_to_keep=1).past_key_values
            whole = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in past.layers])
            whole = whole.to(torch.bfloat16).view(torch.int16)
        self.take(whole.numpy(), chunk_tokens)
        return int(whole.shape[-1])

    def take(self, whole: Any, chunk_tokens: int) -> None:
        """KV as items of 16 bits, [layers][2][KV heads][tokens][head size], in chunks."""
        count = whole.shape[-2] // chunk_tokens
        self._chunks: list[Any] = [
            np.ascontiguousarray(whole[..., n * chunk_tokens : (n + 1) * chunk_tokens, :]).reshape(-1).view(np.uint8)
            for n in range(count)
        ]

    def measure(self, codec: str) -> tuple[float, float, float, int, int]:
        """Bytes of an object by bytes of its chunk; bytes of chunks wrapped, and unwrapped, in a second; how many were
        compared, how many are wrong.

        Raises MissingPackage.
        """
        made = open_codec(codec, 2)
        self._through(made, self._chunks[0])  # What only the first one costs is in no figure.
        told = [self._through(made, chunk) for chunk in self._chunks]
        object_bytes, wrap_s, unwrap_s, wrong = (sum(column) for column in zip(*told, strict=True))
        size = sum(chunk.nbytes for chunk in self._chunks)
        return object_bytes / size, size / wrap_s, size / unwrap_s, len(told), int(wrong)

    def _through(self, codec: Codec, chunk: Any) -> tuple[int, float, float, bool]:
        """A chunk made an object and a chunk again: bytes of the object, seconds of either, and is it wrong?"""
        out = np.invert(chunk)
        begun = time.perf_counter()
        frames = wrap(ChunkFacts(_KEY, _KEY, chunk.nbytes), chunk, codec)
        wrapped = time.perf_counter()
        unwrap(frames, out, codec.is_lossy)
        unwrapped = time.perf_counter()
        size = sum(memoryview(frame).nbytes for frame in frames)
        is_right = _is_near(out, chunk) if codec.is_lossy else np.array_equal(out, chunk)
        return size, wrapped - begun, unwrapped - wrapped, not is_right

    def end(self) -> None:
        """Nothing outlives the process."""


def unwrap(frames: Sequence[Any], out: Any, is_lossy: bool) -> None:
    """The chunk that an object holds, into `out`. Raises TornObject."""
    unwrapping = Unwrapping(_KEY, _KEY, accept_lossy=is_lossy)
    header, *others = frames
    unwrapping.feed(header)
    unwrapping.begin(memoryview(out))
    for frame in others:
        unwrapping.feed(frame)
    unwrapping.finish()


def _is_near(out: Any, chunk: Any) -> bool:
    got, wanted = _values(out), _values(chunk)
    return bool(((got - wanted) ** 2).mean() ** 0.5 <= LOSS_MAX * (wanted**2).mean() ** 0.5)


def _values(items: Any) -> Any:
    return (items.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
