"""An answer that is given up leaves nothing that rings later."""

from __future__ import annotations

import asyncio
import contextlib

from proxyd.clock import Clock
from proxyd.errors import ProxyError
from proxyd.flow import answer as answers
from proxyd.flow.answer import Answer
from proxyd.model import Endpoint
from tests.origin import DONE, delta

EVENTS = [(b"content-type", b"text/event-stream")]


def streamed() -> Answer:
    answer = Answer(Clock(), Endpoint.CHAT, streamed=True, strip_usage=False)
    answer.head(200, EVENTS)
    return answer


async def test_whoever_waited_for_its_beginning_and_left_does_not_hold_it():
    answer = streamed()
    waiting = asyncio.create_task(answer.begun(60))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert [timer for timer in asyncio.get_running_loop()._scheduled if timer._callback == answer._wake] == []


async def test_given_up_by_what_its_last_bytes_brought_about_it_stays_so(monkeypatch):
    monkeypatch.setattr(answers, "END_GRACE", 0.0)
    answer, failure = streamed(), ProxyError("upstream_bad_response", "Enough.")
    answer.push = lambda _: answer.fail(failure)
    answer.body(delta("a") + delta("", finish="stop") + DONE + b": more\n\n")
    before = answer.failure
    await asyncio.sleep(0.01)
    assert answer.over
    assert answer.failure is before
    assert answer._grace is None
