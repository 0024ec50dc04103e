"""One SGLang engine that keeps its KV in an LMCache server, asked by lines of JSON: run by .venv-sglang's Python.

    sglang_engine.py MODEL LMCACHE_YAML
    asked   {"ids": [...], "answer_tokens": N, "salt": null or a text}
    told    {"ready": true} at first, then {"ids": [...], "cached": N} for each question

Both go over the standard streams; what SGLang says goes to standard error. It ends when nobody asks any more.
"""

from __future__ import annotations

import json
import os
import sys

import torch

# torchvision's own library needs CUDA; SGLang imports it for models with pictures. Its processes come by here too.
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def main() -> None:
    model, settings = sys.argv[1:]
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import sglang

    engine = sglang.Engine(
        model_path=model,
        device="cpu",
        dtype="float32",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        disable_overlap_schedule=True,
        disable_cuda_graph=True,
        max_total_tokens=4096,
        mem_fraction_static=0.3,
        page_size=64,
        enable_lmcache=True,
        lmcache_config_file=settings,
    )
    print(json.dumps({"ready": True}), file=told, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        greedy = {"temperature": 0, "max_new_tokens": asked["answer_tokens"], "ignore_eos": True}
        answer = engine.generate(input_ids=asked["ids"], sampling_params=greedy, cache_salt=asked["salt"])
        found = {"ids": answer["output_ids"], "cached": answer["meta_info"]["cached_tokens"]}
        print(json.dumps(found), file=told, flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
