"""`python -m maru.bench lossy`: what codecs do to a model's answers, when its KV goes through a place below the pool.

A model reads the beginning of a text. Its KV becomes objects with each codec, as a place stores them, and chunks again.
With that KV, and with the KV that it computed, it reads the next tokens, and answers. Compared are the logits of what
it reads: a codec that loses nothing has to give the very same ones. Beside the codecs stands what recomputing in pieces
does, which every engine takes for granted.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from maru.bench import report
from maru.bench.kv_child import unwrap
from maru.bench.loads.prompts import prompts_for
from maru.demo.model import MODEL_NAME, ensure_model
from maru.tier.codec import open_codec
from maru.tier.envelope import ChunkFacts, wrap

if TYPE_CHECKING:
    import torch

DEFAULT_JSON = Path("bench-results") / "lossy-answers.json"
CHUNK_TOKENS = 256
CONTEXT_TOKENS, FOLLOWING_TOKENS, ANSWER_TOKENS = 1024, 256, 64
PROMPTS = 8
SEPARATELY = "computed in pieces"
_KEY = bytes(16)

Change = Callable[["torch.Tensor"], "torch.Tensor"]
"""From KV, [layers][2][KV heads][tokens][head size], to KV as it comes back."""


@dataclass(frozen=True)
class Effect:
    """What a change of the KV did to one prompt. Logits are of each following token, over the whole vocabulary."""

    logit_max: float
    """The largest difference of two logits."""
    logit_mean: float
    divergence: float
    """Kullback and Leibler's, of the distributions of the next token; nats a token, on average."""
    same_top: float
    """Share of the following tokens where the most likely one is the same."""
    perplexity: float
    """Of the text that follows."""
    perplexity_exact: float
    """With the KV as it was computed."""
    answer_tokens: int
    """Of a greedy answer, until it takes another token; ANSWER_TOKENS: it never does."""


class Reader:
    """A model that reads on from KV."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def kv_of(self, tokens: Sequence[int], piece: int | None = None) -> torch.Tensor:
        """[layers][2][KV heads][tokens][head size], computed at once, or `piece` tokens at a time."""
        import torch
        from transformers.cache_utils import DynamicCache

        past = DynamicCache(config=self.model.config)
        for at in range(0, len(tokens), piece or len(tokens)):
            part = torch.tensor([tokens[at : at + (piece or len(tokens))]])
            with torch.inference_mode():
                past = self.model(part, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
        return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in past.layers])

    def logits(self, kv: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens][vocabulary], float32: after each of `tokens`, read behind the KV."""
        import torch

        with torch.inference_mode():
            found = self.model(torch.tensor([list(tokens)]), past_key_values=self._past(kv), use_cache=True).logits
        return found[0].float()

    def answer(self, kv: torch.Tensor, first: int, wanted: Sequence[int] = ()) -> list[int]:
        """ANSWER_TOKENS, greedily, behind the KV and the token `first`; up to the first that is not as `wanted`."""
        import torch

        past, told = self._past(kv), first
        found: list[int] = []
        with torch.inference_mode():
            while len(found) < ANSWER_TOKENS and (not wanted or found == list(wanted[: len(found)])):
                out = self.model(torch.tensor([[told]]), past_key_values=past, use_cache=True)
                told = int(out.logits[0, -1].argmax())
                found.append(told)
        return found

    def _past(self, kv: torch.Tensor) -> Any:
        from transformers.cache_utils import DynamicCache

        past = DynamicCache(config=self.model.config)
        for layer, (keys, values) in zip(past.layers, kv, strict=True):
            layer.lazy_initialization(keys[None], values[None])
            layer.keys, layer.values = keys[None].clone(), values[None].clone()
        return past


def through(codec: str) -> Change:
    """KV through objects of this codec, chunk by chunk. Raises BadUrl, MissingPackage."""
    import torch

    def change(kv: torch.Tensor) -> torch.Tensor:
        made = open_codec(codec, kv.element_size())
        parts = []
        for part in kv.split(CHUNK_TOKENS, dim=3):
            data = part.contiguous().view(torch.uint8).reshape(-1).numpy()
            frames = wrap(ChunkFacts(_KEY, _KEY, data.nbytes), data, made)
            out = torch.empty(data.nbytes, dtype=torch.uint8)
            unwrap(frames, out.numpy(), made.is_lossy)
            parts.append(out.view(kv.dtype).reshape(part.shape))
        return torch.cat(parts, dim=3)

    return change


def rounded(codec: Change | None) -> Change:
    """KV of a float32 model as bf16, through a codec of that, and as float32 again."""
    import torch

    def change(kv: torch.Tensor) -> torch.Tensor:
        narrow = kv.to(torch.bfloat16)
        return (codec(narrow) if codec else narrow).to(kv.dtype)

    return change


def ways_for(dtype: str, channels: int) -> dict[str, Change]:
    """What is done to the KV of a model that computes in "bf16" or "fp32", by a name for people."""
    lossy = {name: through(f"{name}:bf16:channels={channels}") for name in ("int8", "fp8")}
    packages = {"zstd": "zstandard", "blosc2": "blosc2"}
    exact = {name: through(name) for name, package in packages.items() if importlib.util.find_spec(package)}
    exact = exact or {"none": through("none")}
    if dtype == "bf16":
        return {**exact, **lossy}
    return {**exact, "bf16": rounded(None), **{f"bf16, {name}": rounded(one) for name, one in lossy.items()}}


@dataclass(frozen=True)
class Exact:
    """What a reader makes of the KV that it computed."""

    text: Sequence[int]
    """What follows."""
    logits: torch.Tensor
    answer: list[int]

    @classmethod
    def of(cls, reader: Reader, kv: torch.Tensor, text: Sequence[int]) -> Exact:
        return cls(text, reader.logits(kv, text), reader.answer(kv, text[0]))


def effect_of(reader: Reader, exact: Exact, changed: torch.Tensor) -> Effect:
    """Of other KV than that which is exact."""
    logits = reader.logits(changed, exact.text)
    answer = reader.answer(changed, exact.text[0], exact.answer)
    apart = (exact.logits - logits).abs()
    chances, others = exact.logits.log_softmax(-1), logits.log_softmax(-1)
    return Effect(
        float(apart.max()), float(apart.mean()),
        max(0.0, float((chances.exp() * (chances - others)).sum(-1).mean())),
        float((exact.logits.argmax(-1) == logits.argmax(-1)).float().mean()),
        _perplexity(others, exact.text), _perplexity(chances, exact.text),
        next((at for at, (a, b) in enumerate(zip(exact.answer, answer, strict=False)) if a != b), ANSWER_TOKENS),
    )  # fmt: skip


def _perplexity(chances: torch.Tensor, text: Sequence[int]) -> float:
    return math.exp(-statistics.fmean(float(chances[at, token]) for at, token in enumerate(text[1:])))


def texts_of(model: Path, count: int) -> Iterator[list[int]]:
    """Tokens to read, in turns of Python's own source code and of its documentation."""
    from pydoc_data.topics import topics

    prompts, length = prompts_for(model), CONTEXT_TOKENS + FOLLOWING_TOKENS
    prose = [words for name in sorted(topics) if len(words := prompts.words(topics[name])) >= length]
    for number in range(count):
        if number % 2:
            yield prose[(number * 7) % len(prose)][:length]
        else:
            yield prompts.prompt(f"lossy {number}", length)


def row_json(effects: Sequence[Effect]) -> dict[str, Any]:
    """Over all prompts: the largest, means, the share and the median; and every prompt's."""
    return {
        "logit_max": max(one.logit_max for one in effects),
        "logit_mean": statistics.fmean(one.logit_mean for one in effects),
        "divergence": statistics.fmean(one.divergence for one in effects),
        "same_top": statistics.fmean(one.same_top for one in effects),
        "perplexity": statistics.geometric_mean(one.perplexity for one in effects),
        "perplexity_exact": statistics.geometric_mean(one.perplexity_exact for one in effects),
        "answer_tokens": statistics.median(one.answer_tokens for one in effects),
        "same_answers": sum(one.answer_tokens == ANSWER_TOKENS for one in effects),
        "prompts": [asdict(one) for one in effects],
    }


def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """A line for each way."""
    out = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left", title_style="bold")
    out.add_column("KV", no_wrap=True)
    for name in (
        "logits: largest\ndifference", "mean\ndifference", "KL divergence,\nnats a token", "same most\nlikely token",
        "perplexity", "greedy answers:\nthe same", "tokens until\nthey differ",
    ):  # fmt: skip
        out.add_column(name, justify="right")
    for name, row in rows.items():
        out.add_row(
            name, f"{row['logit_max']:.3g}", f"{row['logit_mean']:.2g}", f"{row['divergence']:.2g}",
            f"{row['same_top']:.2%}", f"{row['perplexity']:.4f}", f"{row['same_answers']} of {len(row['prompts'])}",
            f"{row['answer_tokens']:.0f}",
        )  # fmt: skip
    return out


def measure(model: Any, dtype: str, texts: Sequence[Sequence[int]], tell: Callable[[str], None]) -> dict[str, Any]:
    """Rows by way. `tell`: what is done next."""
    reader = Reader(model)
    found: dict[str, list[Effect]] = {}
    for number, text in enumerate(texts):
        tell(f"{dtype}, prompt {number + 1} of {len(texts)}")
        context, following = text[:CONTEXT_TOKENS], text[CONTEXT_TOKENS:]
        kv = reader.kv_of(context)
        exact = Exact.of(reader, kv, following)
        for name, change in ways_for(dtype, kv.shape[-1]).items():
            found.setdefault(name, []).append(effect_of(reader, exact, change(kv)))
        found.setdefault(SEPARATELY, []).append(effect_of(reader, exact, reader.kv_of(context, CHUNK_TOKENS)))
    return {name: row_json(effects) for name, effects in found.items()}


def main(arguments: Sequence[str]) -> None:
    """Measure, show the tables, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m maru.bench lossy", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="default: %(default)s")
    parser.add_argument("--dtypes", default="bf16,fp32", help="what the model computes in; default: %(default)s")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"), help="for the model; default: %(default)s")
    options = parser.parse_args(arguments)
    if missing := [one for one in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(one) is None]:
        sys.exit(f"{', '.join(missing)} is missing: pip install 'maru-kvcache[demo]', or 'make setup' in a checkout")
    if options.prompts < 1 or not set(options.dtypes.split(",")) <= {"bf16", "fp32"}:
        sys.exit("at least one prompt, and of bf16 and fp32 one or both")
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # Many small steps: more threads wait for each other wherever anything else runs.
    out, begun = report.console(), time.monotonic()
    folder = ensure_model(options.cache_dir)
    texts = list(texts_of(folder, options.prompts))
    found = {}
    with out.status("reading") as status:
        for dtype in options.dtypes.split(","):
            kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa").eval()
            found[dtype] = measure(model, dtype, texts, status.update)
    for dtype, rows in found.items():
        exact = next(iter(rows.values()))["perplexity_exact"]
        out.print(table(f"the model computes in {dtype}; perplexity with its own KV {exact:.4f}", rows))
    document = {
        "model": MODEL_NAME, "context_tokens": CONTEXT_TOKENS, "following_tokens": FOLLOWING_TOKENS,
        "answer_tokens": ANSWER_TOKENS, "chunk_tokens": CHUNK_TOKENS, "prompts": options.prompts,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")},
        "dtypes": found,
    }  # fmt: skip
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every prompt: {options.json}", markup=False)
