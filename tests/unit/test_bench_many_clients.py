"""Many clients at once: each has one question under way, and a wrong answer is an error and no figure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from maru import wire
from maru.bench.ground import PREFIX_CHUNKS
from maru.bench.many_clients import Crowd, LookupClient

zmq = pytest.importorskip("zmq")
LOOKUPS = 7


class Served:
    """What a server of lookups saw."""

    def __init__(self, found: int) -> None:
        self.found = found
        self.asked: list[bytes] = []
        self.most_under_way = 0

    def run(self, router: object) -> None:
        """Answers when everybody has asked, so that nobody has two questions under way unseen."""
        while True:
            frames = [router.recv_multipart()]  # type: ignore[attr-defined]
            while router.poll(20):  # type: ignore[attr-defined]
                frames.append(router.recv_multipart())  # type: ignore[attr-defined]
            if any(frame[1] == b"end" for frame in frames):
                return
            peers = [frame[0] for frame in frames]
            self.most_under_way = max([self.most_under_way, *map(peers.count, peers)])
            for peer, header, *_ in frames:
                request = wire.decode_request(header)
                if isinstance(request, wire.Lookup):
                    self.asked.append(peer)
                    answer: wire.Answer = wire.Done(request.number, self.found)
                else:
                    answer = wire.Welcome(
                        request.number, 1, "toy", bytes(16), "", "", "", "", 1, 1, 1, 1.0, 0.1, [], None, []
                    )
                router.send_multipart((peer, wire.encode(answer)))  # type: ignore[attr-defined]


@contextmanager
def crowd_of(count: int, served: Served) -> Iterator[Crowd]:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind("inproc://lookups")
    thread = threading.Thread(target=served.run, args=(router,))
    thread.start()
    crowd = Crowd([LookupClient(context, "inproc://lookups", n, bytes(16)) for n in range(1, count + 1)], LOOKUPS)
    try:
        yield crowd
    finally:
        crowd.close()
        end = context.socket(zmq.DEALER)
        end.connect("inproc://lookups")
        end.send(b"end")
        thread.join(10)
        end.close()
        router.close()
        context.destroy(linger=0)


def test_every_client_asks_as_often_and_never_twice_at_once() -> None:
    served = Served(PREFIX_CHUNKS)
    with crowd_of(4, served) as crowd:
        crowd.run()
    assert sorted(map(served.asked.count, set(served.asked))) == [LOOKUPS] * 4
    assert served.most_under_way == 1
    assert (crowd.lookups, len(crowd.slowest_p99_s)) == (4 * LOOKUPS, 1)


def test_a_prefix_that_is_not_whole_is_no_figure() -> None:
    with crowd_of(2, Served(PREFIX_CHUNKS - 1)) as crowd, pytest.raises(RuntimeError, match="not whole"):
        crowd.run()
