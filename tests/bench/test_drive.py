"""Sessions keep their order, replicas get no more than they may, and what a dead one had in flight is asked again."""

from __future__ import annotations

import itertools

import pytest
from toy_systems import ToyReplica

from maru.bench.loads.drive import Drive, Turn, by_turn
from maru.bench.systems.contract import Answer, Replica, SystemFailed


def sessions_of(count: int, turns: int) -> list[list[Turn]]:
    return [[Turn(s, t, (s, t)) for t in range(turns)] for s in range(count)]


def test_every_turn_is_answered_once_and_each_session_in_its_order() -> None:
    served = Drive([ToyReplica(), ToyReplica()], 2).run(sessions_of(5, 4))
    assert sorted((one.turn.session, one.turn.number) for one in served) == [(s, t) for s in range(5) for t in range(4)]
    for session in range(5):
        mine = sorted((one for one in served if one.turn.session == session), key=lambda one: one.turn.number)
        assert all(a.done_s <= b.asked_s for a, b in itertools.pairwise(mine))


def test_each_turn_goes_to_another_replica_than_the_one_before() -> None:
    served = Drive([ToyReplica(), ToyReplica()], 1).run(sessions_of(3, 4))
    assert all(one.replica == (one.turn.session + one.turn.number) % 2 for one in served)
    assert by_turn(Turn(1, 2, ()), 2) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_no_replica_has_more_in_flight_than_it_may(most: int) -> None:
    replica = ToyReplica()
    Drive([replica], most).run(sessions_of(8, 2))
    assert replica.in_flight_most == most


def test_what_a_dead_replica_had_in_flight_is_asked_of_its_successor() -> None:
    first, second = ToyReplica(dies_after=3), ToyReplica()
    served = Drive([first], 2, on_failure=lambda _number: second).run(sessions_of(4, 2))
    assert sorted((one.turn.session, one.turn.number) for one in served) == [(s, t) for s in range(4) for t in range(2)]
    assert len(first.asked) == 3
    assert len(second.asked) == 5


def test_a_replica_without_successor_ends_the_drive() -> None:
    with pytest.raises(SystemFailed):
        Drive([ToyReplica(dies_after=1)], 1).run(sessions_of(2, 2))


def test_a_drive_ends_at_its_deadline() -> None:
    made: list[Replica] = []

    def again(_number: int) -> Replica:
        made.append(ToyReplica(dies_after=0))
        return made[-1]

    served = Drive([ToyReplica(dies_after=0)], 1, on_failure=again).run(sessions_of(1, 1), deadline_s=0.2)
    assert served == []
    assert made


def test_a_turn_that_is_to_come_later_does_not_come_before() -> None:
    (served,) = Drive([ToyReplica()], 1).run([[Turn(0, 0, (1,), wait_s=0.05)]])
    assert served.asked_s >= 0.05


class Waits(ToyReplica):
    """Nobody answers: whoever waits for it is interrupted."""

    def collect(self, _ticket: int) -> Answer:
        raise KeyboardInterrupt


def test_nobody_is_started_after_a_drive_was_interrupted() -> None:
    """As Ctrl-C does: it comes to the thread that waits, while others find their replica dead."""
    drive: Drive
    started: list[int] = []

    def again(number: int) -> Replica:
        started.append(number)
        return ToyReplica()

    drive = Drive([ToyReplica()], 1, on_failure=again)
    drive.run([])
    drive._give_up(KeyboardInterrupt())
    drive._replace(0, drive._lanes[0], SystemFailed("dead"))
    assert started == []
    with pytest.raises(KeyboardInterrupt):
        Drive([Waits()], 1, on_failure=again).run(sessions_of(1, 1))
    assert started == []


def test_a_user_waits_from_when_a_prompt_came_also_for_a_successor() -> None:
    replicas = iter([ToyReplica(dies_after=0), ToyReplica()])
    (one,) = Drive([ToyReplica(dies_after=0)], 1, on_failure=lambda _n: next(replicas)).run(sessions_of(1, 1))
    assert one.came_s <= one.asked_s
    assert one.user_ttft_s == pytest.approx(one.asked_s - one.came_s + 0.25)


def test_a_prompt_that_waits_for_a_place_came_before_it_was_asked() -> None:
    served = Drive([ToyReplica()], 1).run(sessions_of(3, 1))
    assert all(one.came_s < served[0].done_s for one in served)
    assert served[-1].user_ttft_s > 0.25


def test_a_drive_that_gives_up_says_so() -> None:
    late = [[Turn(0, 0, (1,), wait_s=60.0)]]
    with pytest.raises(SystemFailed, match="1 prompts were not answered"):
        Drive([ToyReplica()], 1, give_up_s=0.01).run(late)
