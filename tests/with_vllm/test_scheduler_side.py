"""Promises of the scheduler's side: what a request is told stays, asking is free, and plans fit vLLM's blocks."""

from __future__ import annotations

from array import array
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from requests_of_vllm import Request, blocks_of, step

import maru
from maru.engine.vllm.fit import Shape, request_seed
from maru.engine.vllm.plan import Done, Load, Save
from maru.engine.vllm.scheduler import BETWEEN_STEPS_S, IDLE_WAIT_S, PIN_AGE_S, SchedulerSide

SHAPE = Shape(block_tokens=4, blocks_per_chunk=2, layer_names=("a", "b"))
CHUNK = SHAPE.chunk_tokens


class Side:
    """A scheduler's side with a clock that is moved by hand, and what it said of failures."""

    def __init__(self, pool: maru.Pool, workers: int = 1, wait_s: float = 0.0) -> None:
        self.pool = pool
        self.now = 1000.0
        self.failures: list[str] = []
        self.namespace = pool.namespace(maru.Identity(model="m", kv_layout="test"))
        self.side = SchedulerSide(
            pool, self.namespace, SHAPE, workers, lambda what, _: self.failures.append(what), lambda: self.now, wait_s
        )
        self.side.plan(step(new={"another": ([0], 0, 1)}))  # Nothing sleeps while there is something to compute.

    def keys(self, tokens: list[int]) -> bytes:
        return self.namespace.chunk_keys(array("q", tokens), CHUNK)

    def store(self, tokens: list[int], chunks: int) -> None:
        keys = self.keys(tokens)[: 16 * chunks]
        self.pool.put_many(keys, [b"kv"] * chunks, namespace=self.namespace)

    def is_pinned(self, tokens: list[int], chunk: int) -> bool:
        """Somebody pins it: it cannot be removed. It stays as it was."""
        key = self.keys(tokens)[16 * chunk : 16 * (chunk + 1)]
        if self.pool.remove(key):
            self.pool.put(key, b"kv", namespace=self.namespace)
            return False
        return self.pool.exists(key)


@pytest.fixture
def side(pool: maru.Pool) -> Side:
    return Side(pool)


TOKENS = list(range(100, 100 + 5 * CHUNK + 3))


def test_nothing_stored_is_nothing_found(side: Side) -> None:
    assert side.side.matched_tokens(Request("r", TOKENS), 0) == 0


def test_whole_chunks_are_found_and_pinned(side: Side) -> None:
    side.store(TOKENS, 3)
    assert side.side.matched_tokens(Request("r", TOKENS), 0) == 3 * CHUNK
    assert [side.is_pinned(TOKENS, chunk) for chunk in range(3)] == [True, True, True]


def test_the_last_token_is_always_left_to_compute(side: Side) -> None:
    tokens = TOKENS[: 3 * CHUNK]
    side.store(tokens, 3)
    assert side.side.matched_tokens(Request("r", tokens), 0) == 2 * CHUNK


def test_asking_again_changes_nothing(side: Side) -> None:
    side.store(TOKENS, 3)
    request = Request("r", TOKENS)
    answers = [side.side.matched_tokens(request, 0) for _ in range(5)]
    assert answers == [3 * CHUNK] * 5
    assert side.side.pinned_requests == 1
    assert side.pool.stats()["processes"][0]["pins"] == 3


def test_asking_later_finds_what_came_meanwhile(side: Side) -> None:
    side.store(TOKENS, 2)
    request = Request("r", TOKENS)
    assert side.side.matched_tokens(request, 0) == 2 * CHUNK
    side.store(TOKENS, 4)
    assert side.side.matched_tokens(request, 0) == 4 * CHUNK


@pytest.mark.parametrize(("local", "found"), [(4, 3 * CHUNK - 4), (CHUNK, 2 * CHUNK), (3 * CHUNK, 0), (4 * CHUNK, 0)])
def test_what_the_engine_has_itself_is_not_counted(side: Side, local: int, found: int) -> None:
    side.store(TOKENS, 3)
    assert side.side.matched_tokens(Request("r", TOKENS), local) == found


def test_a_load_names_keys_blocks_and_where_in_the_first_chunk_it_begins(side: Side) -> None:
    side.store(TOKENS, 3)
    request = Request("r", TOKENS)
    assert side.side.matched_tokens(request, 4) == 3 * CHUNK - 4
    side.side.allocated(request, blocks_of(list(range(20, 31))), 3 * CHUNK - 4)
    plan = side.side.plan(step(new={"r": (list(range(20, 31)), 3 * CHUNK, len(TOKENS) - 3 * CHUNK)}))
    keys = side.keys(TOKENS)
    assert plan.loads == [Load("r", keys[:48], tuple(range(21, 26)), 1)]
    assert plan.saves == [Save("r", keys[48:80], keys[32:48], tuple(range(26, 30)))]


def test_a_cold_prompt_is_stored_as_its_prefill_goes_on(side: Side) -> None:
    request = Request("r", TOKENS)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of([1, 2, 3]), 0)
    keys = side.keys(TOKENS)
    first = side.side.plan(step(new={"r": ([1, 2, 3], 0, 10)}))
    assert first.saves == [Save("r", keys[:16], None, (1, 2))]
    second = side.side.plan(step(cached={"r": ([4, 5, 6], 10, 13)}))
    assert second.saves == [Save("r", keys[16:32], keys[:16], (3, 4))]
    third = side.side.plan(step(cached={"r": ([7, 8, 9, 10, 11], 23, 20)}))
    assert third.saves == [Save("r", keys[32:80], keys[16:32], (5, 6, 7, 8, 9, 10))]
    assert side.side.plan(step(cached={"r": ([], 43, 1)})).saves == []


def test_what_the_engine_had_and_the_pool_had_not_is_stored_too(side: Side) -> None:
    request = Request("r", TOKENS)
    assert side.side.matched_tokens(request, 2 * CHUNK) == 0
    side.side.allocated(request, blocks_of(list(range(1, 12))), 0)
    plan = side.side.plan(step(new={"r": (list(range(1, 12)), 2 * CHUNK, len(TOKENS) - 2 * CHUNK)}))
    assert plan.saves == [Save("r", side.keys(TOKENS), None, tuple(range(1, 11)))]


def test_answers_are_not_stored(side: Side) -> None:
    tokens = TOKENS[: CHUNK + 2]
    request = Request("r", tokens)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of([1, 2, 3]), 0)
    assert len(side.side.plan(step(new={"r": ([1, 2, 3], 0, len(tokens))})).saves) == 1
    for token in range(3 * CHUNK):
        assert side.side.plan(step(cached={"r": ([], len(tokens) + token, 1)})).saves == []


def test_a_preempted_request_comes_back_with_other_blocks(side: Side) -> None:
    request = Request("r", TOKENS)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of([1, 2]), 0)
    side.side.plan(step(new={"r": ([1, 2], 0, CHUNK)}))
    side.store(TOKENS, 1)
    assert side.side.matched_tokens(request, 0) == CHUNK
    side.side.allocated(request, blocks_of([7, 8, 9, 10]), CHUNK)
    plan = side.side.plan(step(cached={"r": ([7, 8, 9, 10], CHUNK, CHUNK)}, resumed={"r"}))
    keys = side.keys(TOKENS)
    assert plan.loads == [Load("r", keys[:16], (7, 8), 0)]
    assert plan.saves == [Save("r", keys[16:32], keys[:16], (9, 10))]


def test_blocks_that_could_not_be_filled_are_stored_again(side: Side) -> None:
    side.store(TOKENS, 1)
    request = Request("r", TOKENS)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of([1, 2, 3, 4]), CHUNK)
    side.side.plan(step(new={"r": ([1, 2, 3, 4], CHUNK, CHUNK)}))
    side.side.not_loaded({2})
    plan = side.side.plan(step(cached={"r": ([], 0, 2 * CHUNK)}))
    assert plan.saves == [Save("r", side.keys(TOKENS)[:32], None, (1, 2, 3, 4))]


def test_pins_end_when_every_worker_has_loaded(pool: maru.Pool) -> None:
    side = Side(pool, workers=2)
    side.store(TOKENS, 2)
    side.side.matched_tokens(Request("r", TOKENS), 0)
    side.side.done(Done({"r": 1}))
    assert side.is_pinned(TOKENS, 0)
    side.side.done(Done({"r": 1}))
    assert not side.is_pinned(TOKENS, 0)


def test_two_workers_counts_are_one_message() -> None:
    both = Done({"r": 1, "s": 1}).aggregate(Done({"r": 1}))
    assert both == Done({"r": 2, "s": 1})


def test_pins_end_with_the_request_however_it_ends(side: Side) -> None:
    side.store(TOKENS, 2)
    side.side.matched_tokens(Request("r", TOKENS), 0)
    side.side.finished("r")
    assert not side.is_pinned(TOKENS, 0)
    side.side.finished("r")
    side.side.finished("never heard of")


def test_pins_of_a_request_that_waits_too_long_end_and_it_may_ask_again(side: Side) -> None:
    side.store(TOKENS, 2)
    request = Request("r", TOKENS)
    side.side.matched_tokens(request, 0)
    side.now += PIN_AGE_S + 1
    side.side.plan(step())
    assert not side.is_pinned(TOKENS, 0)
    assert side.side.matched_tokens(request, 0) == 2 * CHUNK


def test_a_request_that_vllm_gives_no_external_tokens_holds_nothing(side: Side) -> None:
    side.store(TOKENS, 2)
    request = Request("r", TOKENS)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of([1, 2, 3, 4]), 0)
    assert not side.is_pinned(TOKENS, 0)


def test_a_prompt_without_token_ids_has_no_keys(side: Side) -> None:
    assert side.side.matched_tokens(Request("r", None), 0) == 0
    assert side.side.matched_tokens(Request("s", TOKENS, prompt_embeds=object()), 0) == 0


def test_a_closed_pool_is_a_miss_and_told(side: Side) -> None:
    side.store(TOKENS, 2)
    side.pool.close()
    assert side.side.matched_tokens(Request("r", TOKENS), 0) == 0
    assert side.failures == ["look a prompt up"]


def lora(name: str) -> SimpleNamespace:
    return SimpleNamespace(lora_name=name, lora_path=f"/adapters/{name}")


def picture(name: str, at: int) -> SimpleNamespace:
    return SimpleNamespace(identifier=name, mm_position=SimpleNamespace(offset=at, length=4))


def test_equal_tokens_that_mean_other_kv_have_other_keys() -> None:
    digest = bytes(range(16))
    seeds = [
        request_seed(digest, request)
        for request in (
            Request("a", TOKENS),
            Request("a", TOKENS, cache_salt="x"),
            Request("a", TOKENS, cache_salt="y"),
            Request("a", TOKENS, lora_request=lora("x")),
            Request("a", TOKENS, lora_request=lora("y")),
            Request("a", TOKENS, mm_features=[picture("x", 3)]),
            Request("a", TOKENS, mm_features=[picture("x", 4)]),
            Request("a", TOKENS, mm_features=[picture("x", 3), picture("x", 9)]),
            Request("a", TOKENS, cache_salt="x", lora_request=lora("x")),
        )
    ]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == digest
    assert request_seed(digest, Request("b", [], cache_salt="x")) == seeds[1]
    assert request_seed(bytes(16), Request("b", [], cache_salt="x")) != seeds[1]


class Rival:
    """Another instance that computes a prompt: what it computes just now is reserved."""

    def __init__(self, side: Side, tokens: list[int]) -> None:
        self.side = side
        self.tokens = tokens
        self.writing: maru.ReservationBatch | None = None

    def begin(self, first: int, end: int) -> None:
        keys = self.side.keys(self.tokens)[16 * first : 16 * end]
        self.writing = self.side.pool.reserve_many(keys, 2, namespace=self.side.namespace)

    def finish(self) -> None:
        assert self.writing is not None
        for buffer in self.writing.buffers:
            assert buffer is not None
            buffer[:] = b"kv"
        self.writing.seal()

    def give_up(self) -> None:
        assert self.writing is not None
        self.writing.discard()


@pytest.fixture
def patient(pool: maru.Pool) -> Side:
    return Side(pool, wait_s=10.0)


def test_a_request_waits_for_what_another_instance_computes_step_after_step(patient: Side) -> None:
    rival, request = Rival(patient, TOKENS), Request("r", TOKENS)
    rival.begin(0, 2)
    assert patient.side.matched_tokens(request, 0) is None
    patient.now += 3.0
    assert patient.side.matched_tokens(request, 0) is None
    rival.finish()  # The next two are not begun yet: a moment is granted.
    assert patient.side.matched_tokens(request, 0) is None
    assert patient.is_pinned(TOKENS, 1)
    patient.now += BETWEEN_STEPS_S / 2
    assert patient.side.matched_tokens(request, 0) is None
    rival.begin(2, 5)
    patient.now += BETWEEN_STEPS_S / 2
    assert patient.side.matched_tokens(request, 0) is None
    rival.finish()
    assert patient.side.matched_tokens(request, 0) == 5 * CHUNK
    assert patient.side.stats.data["counters"]["waits"] == 1
    assert patient.side.stats.data["counters"]["wait_seconds"] == pytest.approx(3.0 + BETWEEN_STEPS_S)


def test_a_request_computes_itself_when_the_other_gave_up(patient: Side) -> None:
    rival, request = Rival(patient, TOKENS), Request("r", TOKENS)
    rival.begin(0, 2)
    assert patient.side.matched_tokens(request, 0) is None
    rival.give_up()
    patient.now += BETWEEN_STEPS_S + 0.01
    assert patient.side.matched_tokens(request, 0) == 0
    rival.begin(0, 2)  # It waited once; that was enough.
    assert patient.side.matched_tokens(request, 0) == 0


def test_no_request_waits_longer_than_it_is_allowed_to(patient: Side) -> None:
    rival, request = Rival(patient, TOKENS), Request("r", TOKENS)
    patient.store(TOKENS, 1)
    rival.begin(1, 2)
    for _ in range(100):
        assert patient.side.matched_tokens(request, 0) is None
        patient.now += 0.1
    patient.now += 0.1
    assert patient.side.matched_tokens(request, 0) == CHUNK


def test_nobody_waits_for_what_nobody_computes(patient: Side) -> None:
    patient.store(TOKENS, 2)
    assert patient.side.matched_tokens(Request("r", TOKENS), 0) == 2 * CHUNK
    assert "waits" not in patient.side.stats.data["counters"]


def test_without_the_setting_nobody_waits(side: Side) -> None:
    rival = Rival(side, TOKENS)
    rival.begin(0, 2)
    assert side.side.matched_tokens(Request("r", TOKENS), 0) == 0


def test_an_idle_scheduler_sleeps_at_most_a_moment_while_it_waits(patient: Side) -> None:
    slept: list[float] = []
    rival, request = Rival(patient, TOKENS), Request("r", TOKENS)
    rival.begin(0, 2)
    assert patient.side.matched_tokens(request, 0) is None
    patient.side._pool = Watched(patient.pool, slept)
    assert patient.side.matched_tokens(request, 0) is None
    assert slept == []
    patient.side.plan(step())
    assert patient.side.matched_tokens(request, 0) is None
    assert patient.side.matched_tokens(request, 0) is None
    assert slept == [IDLE_WAIT_S]  # Once a step, however many wait.


class Watched:
    """A pool whose waits are written down and not waited."""

    def __init__(self, pool: maru.Pool, slept: list[float]) -> None:
        self._pool, self._slept = pool, slept

    def wait(self, _: bytes, timeout: float) -> bool:
        self._slept.append(timeout)
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)


# What lies below the pool


class Below:
    """Brings what it is asked for when the test says so."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.whole: list[int] = []
        self.coming: Future[int] = Future()

    def begin(self, keys: bytes) -> Future[int]:
        self.asked.append(keys)
        return self.coming


@pytest.fixture
def below(side: Side) -> Below:
    below = Below()
    side.side = SchedulerSide(
        side.pool, side.namespace, SHAPE, 1, lambda what, _: side.failures.append(what), lambda: side.now,
        begin_rise=below.begin, found_whole=below.whole.append,
    )  # fmt: skip
    side.side.plan(step(new={"another": ([0], 0, 1)}))
    return below


def test_a_request_waits_for_what_comes_from_below_and_finds_all_of_it(side: Side, below: Below) -> None:
    side.store(TOKENS, 1)
    request = Request("r", TOKENS)
    assert [side.side.matched_tokens(request, 0) for _ in range(3)] == [None, None, None]
    assert below.asked == [side.keys(TOKENS)]
    side.store(TOKENS, 4)
    below.coming.set_result(3)
    assert side.side.matched_tokens(request, 0) == 4 * CHUNK
    assert [side.is_pinned(TOKENS, chunk) for chunk in range(4)] == [True] * 4


def test_what_does_not_come_from_below_is_computed_and_not_asked_for_again(side: Side, below: Below) -> None:
    side.store(TOKENS, 1)
    request = Request("r", TOKENS)
    assert side.side.matched_tokens(request, 0) is None
    below.coming.set_result(0)
    assert [side.side.matched_tokens(request, 0) for _ in range(3)] == [CHUNK] * 3
    assert len(below.asked) == 1


def test_a_prompt_that_is_whole_in_the_pool_asks_for_nothing_below(side: Side, below: Below) -> None:
    side.store(TOKENS, 5)
    request = Request("r", TOKENS)
    assert [side.side.matched_tokens(request, 0) for _ in range(3)] == [5 * CHUNK] * 3
    assert (below.asked, below.whole) == ([], [5])


def test_a_request_that_goes_while_it_waits_leaves_no_pin(side: Side, below: Below) -> None:
    side.store(TOKENS, 2)
    assert side.side.matched_tokens(Request("r", TOKENS), 0) is None
    side.side.finished("r")
    assert side.pool.stats()["processes"][0]["pins"] == 0


def marked_request(name: str, said: object) -> Request:
    return Request(name, TOKENS, kv_transfer_params={"maru.cache": said})


@pytest.mark.parametrize("said", ["off", "of", "", None, 0])
def test_a_request_that_is_marked_off_is_neither_looked_up_nor_stored(side: Side, said: object) -> None:
    side.store(TOKENS, 3)
    request = marked_request("r", said)
    assert side.side.matched_tokens(request, 0) == 0
    assert side.side.pinned_requests == 0
    side.side.allocated(request, blocks_of(list(range(1, 12))), 0)
    assert side.side.plan(step(new={"r": (list(range(1, 12)), 0, len(TOKENS))})).saves == []


def test_a_request_that_is_marked_read_hits_and_stores_nothing(side: Side) -> None:
    side.store(TOKENS, 3)
    request = marked_request("r", "read")
    assert side.side.matched_tokens(request, 0) == 3 * CHUNK
    side.side.allocated(request, blocks_of(list(range(1, 12))), 3 * CHUNK)
    plan = side.side.plan(step(new={"r": (list(range(1, 12)), 3 * CHUNK, len(TOKENS) - 3 * CHUNK)}))
    assert len(plan.loads) == 1
    assert plan.saves == []


@pytest.mark.parametrize("parameters", [None, {}, {"maru.cache": "on"}, {"lmcache.tag.user": "x"}, "maru.cache"])
def test_a_request_without_a_marker_is_stored(side: Side, parameters: object) -> None:
    request = Request("r", TOKENS, kv_transfer_params=parameters)
    side.side.matched_tokens(request, 0)
    side.side.allocated(request, blocks_of(list(range(1, 12))), 0)
    saves = side.side.plan(step(new={"r": (list(range(1, 12)), 0, len(TOKENS))})).saves
    assert saves == [Save("r", side.keys(TOKENS), None, tuple(range(1, 11)))]
