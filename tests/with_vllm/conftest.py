"""Everything here runs against the real vLLM, in the virtual environment that `make engines` makes."""

from __future__ import annotations

import importlib.util

from engine_kit import model, pool_name, pool_of_module, text_ids
from fake_gpu import fake, loaded_fake

__all__ = ["fake", "loaded_fake", "model", "pool_name", "pool_of_module", "text_ids"]  # Fixtures of all tests here.

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]
