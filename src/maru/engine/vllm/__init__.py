"""The door for vLLM: `MaruConnector`, a KVConnectorBase_V1 over a pool. Loaded by vLLM itself:

    --kv-transfer-config '{"kv_connector": "MaruConnector", "kv_connector_module_path": "maru.engine.vllm",
      "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
      "kv_connector_extra_config": {"pool": "maru:///vllm?size=8GiB"}}'

    connector   what vLLM calls, handed to one of two sides
    scheduler   which chunks a request finds, and which it will leave behind
    worker      the copies between vLLM's blocks and the pool
    plan        what the one tells the other, a step at a time
    fit         which models fit, and what makes two instances interchangeable

vLLM's words (block, request, step) go no further than here.
"""

from maru.engine.vllm.connector import MaruConnector

__all__ = ["MaruConnector"]
