"""The client for asyncio, on aiohttp. Same names, same behaviour as `Client`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

import aiohttp
from yarl import URL

from proxyd.client.turn import Answer, Failure, Prompt, Request, Settings, Transcript, Turn, broken, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_BROKEN = (OSError, aiohttp.ClientError, asyncio.TimeoutError)
_NEEDLESS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class AsyncClient:
    """Talks to one proxyd; any number of answers at once."""

    def __init__(
        self, url: str | Settings, *, key: str = "", model: str = "", sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.settings = url if isinstance(url, Settings) else Settings(url, key, model)
        tls, host, port, prefix = self.settings.address()
        self._base = str(URL.build(scheme="https" if tls else "http", host=host, port=port, path=prefix))
        self._session: aiohttp.ClientSession | None = None
        self._sleep = sleep
        self._coming: set[aiohttp.ClientResponse] = set()
        self._closed = 0
        """How often: it may be used again, but what had begun before ends."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; answers that still come end with a Failure."""
        session, self._session = self._session, None
        self._closed += 1
        for response in list(self._coming):
            response.close()  # else whoever reads it would wait for ever
        if session is not None:
            await session.close()

    def stream(self, prompt: Prompt) -> Answer[AsyncIterator[str]]:
        """Ask, and give the answer as it comes; nothing is sent before it is iterated. Raises Failure while iterating."""
        turn = Turn(request(prompt, self.settings.model, stream=True), self.settings)
        return Answer(turn, self._pieces(turn))

    async def ask(self, prompt: Prompt) -> Answer[AsyncIterator[str]]:
        """Ask, wait, and give the whole answer, in the fewest bytes. Raises Failure."""
        turn = Turn(request(prompt, self.settings.model, stream=False), self.settings)
        async for _ in self._pieces(turn):
            pass
        return Answer(turn, _said(turn.text))

    def chat(self, system: str = "", *, model: str = "") -> AsyncChat:
        """Begin a conversation, which the server keeps."""
        return AsyncChat(self, Transcript(model or self.settings.model, system))

    async def _pieces(self, turn: Turn) -> AsyncIterator[str]:
        closed = self._closed
        while (wanted := turn.next_request()) is not None:
            if self._closed != closed:
                raise Failure("The client was closed before the answer was whole.", code="closed")
            try:
                async with self._send(wanted) as response:
                    with self._known(response):
                        if response.status >= 300:
                            turn.refused(response.status, await response.read())
                        else:
                            async for data in response.content.iter_any():
                                for text in turn.feed(data):
                                    yield text
                            for text in turn.end():
                                yield text
            except _BROKEN as error:
                if self._closed == closed:
                    turn.cut(broken(error))
            if turn.pause:
                await self._sleep(turn.pause)

    @contextlib.contextmanager
    def _known(self, response: aiohttp.ClientResponse) -> Iterator[None]:
        """Let `close` end a response that comes."""
        self._coming.add(response)
        try:
            yield
        finally:
            self._coming.discard(response)

    def _send(self, wanted: Request) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.settings.timeout, sock_read=self.settings.timeout)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        headers = {"Authorization": f"Bearer {self.settings.key}"} if self.settings.key else {}
        if wanted.method == "GET":
            headers["Accept"] = "application/protobuf"
        url = URL(self._base.rstrip("/") + wanted.path, encoded=True)
        return self._session.request(wanted.method, url, data=wanted.body or None, headers=headers, skip_auto_headers=_NEEDLESS)


class AsyncChat:
    """A conversation; see `Chat`."""

    def __init__(self, client: AsyncClient, transcript: Transcript) -> None:
        self._client = client
        self.transcript = transcript

    def send(self, question: str) -> Answer[AsyncIterator[str]]:
        """Take a turn; the answer has to be read to its end before the next. Raises Failure while iterating."""
        answer = self._client.stream(self.transcript.ask(question, whole=False))
        answer.pieces = self._turn(question, answer)
        return answer

    async def _turn(self, question: str, answer: Answer[AsyncIterator[str]]) -> AsyncIterator[str]:
        try:
            async for text in self._client._pieces(answer.turn):  # noqa: SLF001
                yield text
        except Failure as failure:
            if failure.code != "conversation_not_found" or answer.turn.received:
                raise
            answer.turn = Turn(self.transcript.ask(question, whole=True), self._client.settings)
            async for text in self._client._pieces(answer.turn):  # noqa: SLF001
                yield text
        self.transcript.answered(question, answer.turn)


async def _said(text: str) -> AsyncIterator[str]:
    yield text
