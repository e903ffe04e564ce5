"""One connection to an upstream, without the daemon around it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.children import free_port
from proxyd.clock import Clock
from proxyd.config.schema import Kind, Upstream
from proxyd.errors import ProxyError
from proxyd.upstream import http
from proxyd.upstream.pool import Pool
from tests.e2e.client import becomes
from tests.origin import HANG, Ending, delta, stream, whole

uvloop = pytest.importorskip("uvloop")


class Ignore:
    """A sink."""

    def head(self, status, headers):
        pass

    def body(self, data):
        pass

    def end(self, failure):
        raise AssertionError("whoever gave the call up is not told of its end")


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_call_that_is_given_up_is_closed_at_once_not_in_a_later_turn_of_the_loop(origin, factory):
    origin.on("/v1/chat", stream(delta("a"), ending=Ending.HANG))

    async def main():
        pool = Pool(Upstream(Kind.OPENAI, origin.url), origin.url, Clock())
        call = await pool.call(b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b"", Ignore(), HANG)
        await becomes(lambda: origin.requests)
        call.close()
        assert origin.requests[0].connection.closed.wait(HANG), "not while this loop stands still"
        pool.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_pool_that_is_closed_lets_a_look_up_end():
    """Whoever began under the old configuration still needs it; and who is not cancelled must not look as if."""
    pool = Pool(Upstream(Kind.OPENAI, "http://localhost:1"), "http://localhost:1", Clock())
    first = threading.Event()
    pool._resolver = ThreadPoolExecutor(1)
    pool._resolver.submit(first.wait, HANG)
    waiting = asyncio.create_task(pool.resolved())
    await asyncio.sleep(0)
    pool.close()
    first.set()
    assert await waiting


async def test_a_probe_that_cannot_connect_leaves_no_pool_open(monkeypatch):
    """Each has a resolver's thread of its own."""
    made = []

    def pool(*given):
        made.append(Pool(*given))
        return made[-1]

    monkeypatch.setattr(http, "Pool", pool)
    door = http.HttpUpstream(Upstream(Kind.OPENAI, f"http://127.0.0.1:{free_port()}"), Clock())
    with pytest.raises(ProxyError):
        await door.probe("/")
    assert [each.closed for each in made] == [False, True]
    door.close()


async def test_a_call_that_must_not_be_reused_is_not_where_the_pool_is_full_of_idle_connections(origin):
    """It is the second try after one that had gone stale: the others may have, too."""
    origin.on("/v1/chat", whole(b"{}"))
    pool = Pool(Upstream(Kind.OPENAI, origin.url, max_connections=1), origin.url, Clock())
    head = b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"

    class Whole(Ignore):
        over = False

        def end(self, failure):
            self.over = failure is None

    reused = []
    for fresh in (False, False, True):
        sink = Whole()
        call = await pool.call(head, b"", sink, HANG, fresh=fresh)
        reused.append(call.reused)
        await becomes(lambda sink=sink: sink.over)
    assert reused == [False, True, False]
    pool.close()
