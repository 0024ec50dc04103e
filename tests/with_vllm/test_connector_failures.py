"""Promises of the connector when one of its two sides has no pool: nothing is taken for loaded that is not."""

from __future__ import annotations

from types import SimpleNamespace

from maru.engine.vllm import MaruConnector
from maru.engine.vllm.plan import Load, Plan, Save


def without_a_pool() -> MaruConnector:
    """As it is after its pool could not be opened; vLLM's own configuration is not needed for what is asked here."""
    connector = object.__new__(MaruConnector)
    connector._is_off, connector._pool = True, None
    connector._scheduler = connector._worker = None
    connector._unfilled = set()
    return connector


def test_a_worker_without_a_pool_reports_every_block_it_was_to_fill() -> None:
    connector = without_a_pool()
    connector.bind_connector_metadata(Plan(loads=[Load("r", bytes(32), (3, 4, 5, 6)), Load("s", bytes(16), (8, 9))]))
    connector.start_load_kv(None)
    assert connector.get_block_ids_with_load_errors() == {3, 4, 5, 6, 8, 9}
    assert connector.get_block_ids_with_load_errors() == set()


def test_a_worker_without_a_pool_stores_nothing_and_says_nothing() -> None:
    connector = without_a_pool()
    connector.bind_connector_metadata(Plan(saves=[Save("r", bytes(16), None, (1, 2))]))
    connector.start_load_kv(None)
    connector.wait_for_save()
    assert connector.get_block_ids_with_load_errors() == set()
    assert connector.build_connector_worker_meta() is None


def test_a_scheduler_without_a_pool_promises_nothing() -> None:
    connector = without_a_pool()
    request = SimpleNamespace(request_id="r", prompt_token_ids=list(range(1000)), num_tokens=1000)
    assert connector.get_num_new_matched_tokens(request, 0) == (0, False)
    connector.update_state_after_alloc(request, None, 0)
    assert connector.build_connector_meta(None) == Plan()
    assert connector.request_finished(request, []) == (False, None)
