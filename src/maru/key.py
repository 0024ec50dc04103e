"""Identity: everything that must match for KV bytes to be reusable, as one digest.

Two instances share chunks exactly when their identities are equal. The digest seeds the key chain (BLAKE3 over
identity, then over tokens), so keys are equal everywhere: no PYTHONHASHSEED, no engine hash configuration, no luck.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

_DOMAIN = b"maru identity 1\0"


@dataclass(frozen=True)
class Identity:
    """What the bytes of a chunk depend on besides its tokens. Unknown parts stay empty.

    Raises TypeError for a value that is not a str, ValueError for an empty model or layout.
    """

    model: str
    """Model name, as the engine knows it."""
    kv_layout: str
    """How the bytes lie: engine and version, attention backend and ISA, shape order, block size."""
    tenant: str = "default"
    """Who pays and who may read."""
    revision: str = ""
    """Revision or digest of the weights."""
    tokenizer: str = ""
    dtype: str = ""
    """Of the KV cache."""
    parallel: str = ""
    """Tensor and pipeline sizes, e.g. "tp=2,pp=1". Ranks are parts of one chunk, not names."""
    adapter: str = ""
    """LoRA or other adapter."""
    salt: str = ""
    """Cache salt: equal salts share, others do not."""

    def __post_init__(self) -> None:
        for part in fields(self):
            if not isinstance(getattr(self, part.name), str):
                raise TypeError(f"Identity.{part.name} must be a str, not {type(getattr(self, part.name)).__name__}")
        if not self.model or not self.kv_layout:
            raise ValueError("Identity needs a model and a kv_layout")

    def encode(self) -> bytes:
        """Canonical bytes: each field's name and value with their lengths, so that no two identities collide."""
        out = bytearray(_DOMAIN)
        for part in sorted(fields(self), key=lambda item: item.name):
            for text in (part.name, getattr(self, part.name)):
                raw = text.encode()
                out += len(raw).to_bytes(4, "little") + raw
        return bytes(out)
