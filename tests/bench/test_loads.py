"""What replicas are asked: equal names give equal prompts, files are read in their formats or refused by their line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maru.bench.loads import streams
from maru.bench.loads.contexts import conversations, pack, packed_contexts
from maru.bench.loads.prompts import NumberPrompts, source_files

PROMPTS = NumberPrompts()


def test_equal_names_are_equal_prompts_and_others_share_no_beginning() -> None:
    assert PROMPTS.prompt("a", 100) == PROMPTS.prompt("a", 100)
    assert PROMPTS.prompt("a", 100)[:16] != PROMPTS.prompt("b", 100)[:16]
    assert len(PROMPTS.prompt("a", 100)) == 100


def test_source_files_are_real_modules() -> None:
    assert next(source_files()).startswith("# ")


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 100), st.integers(1, 6))
def test_packing_overfills_no_bin_and_uses_no_item_twice(sizes: list[int], room: int, bins: int) -> None:
    packed = pack(sizes, room, bins)
    used = [item for items in packed for item in items]
    assert len(used) == len(set(used))
    assert all(sum(sizes[item] for item in items) <= room for items in packed)


def test_contexts_have_the_wanted_length_and_share_no_beginning() -> None:
    contexts = packed_contexts(PROMPTS, 3, 2000, "a test")
    assert [len(context.tokens) for context in contexts] == [2000] * 3
    assert len({context.tokens[:16] for context in contexts}) == 3
    assert contexts == packed_contexts(PROMPTS, 3, 2000, "a test")


def test_a_conversation_grows_turn_by_turn() -> None:
    for session in conversations(PROMPTS, 2, 500, 3, "a test"):
        for before, after in itertools.pairwise(session):
            assert after.prompt[: len(before.prompt)] == before.prompt
            assert len(after.prompt) > len(before.prompt)


def test_a_long_set_gives_context_and_question(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"context": "x" * 400, "input": "why?", "answers": ["so"], "length": 100}) + "\n\n")
    ((turn,),) = streams.long_set(PROMPTS, file, 10, 60)
    assert len(turn.prompt) == 60


@pytest.mark.parametrize("line", ["{", "[1]", '{"context": 3, "input": "x"}', '{"context": "x"}'])
def test_a_long_set_that_is_none_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(streams.BadStream, match="line 1"):
        streams.long_set(PROMPTS, file, 10, 60)


def test_equal_hash_ids_of_a_trace_are_equal_tokens_and_times_are_kept(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [1, 3]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (first,), (second,) = streams.trace(PROMPTS, file, 10, 10_000, speed=2.0)
    assert (len(first.prompt), len(second.prompt)) == (1000, 700)
    assert first.prompt[:512] == second.prompt[:512]
    assert first.prompt[512:600] != second.prompt[512:600]
    assert (first.wait_s, second.wait_s) == (0.0, 1.5)


@pytest.mark.parametrize("row", [{}, {"timestamp": "x", "input_length": 1, "hash_ids": []}])
def test_a_trace_that_is_none_is_refused_by_its_line(tmp_path: Path, row: dict[str, object]) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(streams.BadStream, match="line 1"):
        streams.trace(PROMPTS, file, 10, 100, 1.0)


def test_documents_are_asked_about_again_and_short_prompts_are_not() -> None:
    high, low = streams.high_reuse(PROMPTS, 8, 400), streams.low_reuse(PROMPTS, 8, 400)
    assert len({session[0].prompt[:64] for session in high}) <= 2
    assert len({session[0].prompt[:64] for session in low}) == 8
    rag = streams.retrieval(PROMPTS, 6, 600)
    assert len({session[0].prompt[:300] for session in rag}) == 1
    assert len({session[0].prompt for session in rag}) == 6
