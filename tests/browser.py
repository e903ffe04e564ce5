"""A real browser, headless, told what to do over the DevTools protocol. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.origin import HANG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = 60.0
"""Seconds that a browser may take to start: a guard, not a target."""


def found() -> str | None:
    """The browser of this machine, if it has one."""
    return next((place for name in NAMES if (place := shutil.which(name))), None)


class Page:
    """One open page. `errors` are what its console, its scripts and its Content-Security-Policy complained of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._number = 10
        self.errors: list[str] = []

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Do something, and return what came of it."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "sessionId": self._session, "method": method, "params": params})
        while True:
            said = await asyncio.wait_for(self._socket.receive_json(), START)
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    async def run(self, script: str) -> Any:
        """Evaluate a script, a promise too, and return its value."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> Any:
        """Evaluate a script until its value is true, and return it."""
        async with asyncio.timeout(HANG):
            while not (value := await self.run(script)):  # noqa: ASYNC110 - the browser tells of nothing by itself
                await asyncio.sleep(0.02)
        return value


@contextlib.asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Page]:
    """A page of a fresh browser."""
    browser = found()
    assert browser is not None
    child = await asyncio.create_subprocess_exec(
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--no-proxy-server", "--remote-debugging-port=0"),
        *(f"--user-data-dir={folder}", "about:blank"),
        env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with asyncio.timeout(START):
            while not (place := re.search(rb"ws://\S+", await child.stderr.readline())):
                assert not child.stderr.at_eof(), "the browser ended"
        draining = asyncio.create_task(child.stderr.read())
        async with aiohttp.ClientSession() as client, client.ws_connect(place[0].decode(), max_msg_size=0) as socket:
            bare = Page(socket, "")
            target = (await _bare(bare, "Target.createTarget", url="about:blank"))["targetId"]
            session = (await _bare(bare, "Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            page = Page(socket, session)
            for domain in ("Log", "Runtime", "Page"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=url)
            await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        await draining


async def _bare(page: Page, method: str, **params: object) -> dict[str, Any]:
    """Tell the browser itself, not a page."""
    await page._socket.send_json({"id": 1, "method": method, "params": params})
    while (said := await asyncio.wait_for(page._socket.receive_json(), START)).get("id") != 1:
        pass
    return said["result"]
