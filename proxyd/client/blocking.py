"""The client without `await`, on the standard library's http.client. One per thread."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING, Self

from proxyd.client.turn import Answer, Failure, Prompt, Request, Settings, Transcript, Turn, broken, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BROKEN = (OSError, http.client.HTTPException)


class Client:
    """Talks to one proxyd over one connection, which it keeps: below 6 KB a turn, that saves more than any encoding."""

    def __init__(self, url: str | Settings, *, key: str = "", model: str = "", sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = url if isinstance(url, Settings) else Settings(url, key, model)
        self._address = self.settings.address()
        self._connection: http.client.HTTPConnection | None = None
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stream(self, prompt: Prompt) -> Answer[Iterator[str]]:
        """Ask, and give the answer as it comes; nothing is sent before it is iterated. Raises Failure while iterating."""
        turn = Turn(request(prompt, self.settings.model, stream=True), self.settings)
        return Answer(turn, self._pieces(turn))

    def ask(self, prompt: Prompt) -> Answer[Iterator[str]]:
        """Ask, wait, and give the whole answer, in the fewest bytes. Raises Failure."""
        turn = Turn(request(prompt, self.settings.model, stream=False), self.settings)
        for _ in self._pieces(turn):
            pass
        return Answer(turn, iter([turn.text]))

    def chat(self, system: str = "", *, model: str = "") -> Chat:
        """Begin a conversation, which the server keeps."""
        return Chat(self, Transcript(model or self.settings.model, system))

    def _pieces(self, turn: Turn) -> Iterator[str]:
        while (wanted := turn.next_request()) is not None:
            try:
                response = self._send(wanted)
                if response.status >= 300:
                    turn.refused(response.status, response.read())
                else:
                    while data := response.read1(65536):
                        yield from turn.feed(data)
                    yield from turn.end()
            except _BROKEN as error:
                self.close()
                turn.cut(broken(error))
            except (Failure, GeneratorExit):
                self.close()
                raise
            if turn.pause:
                self._sleep(turn.pause)

    def _send(self, wanted: Request) -> http.client.HTTPResponse:
        tls, host, port, prefix = self._address
        if self._connection is None:
            kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
            self._connection = kind(host, port, timeout=self.settings.timeout)
        connection = self._connection
        connection.putrequest(wanted.method, prefix + wanted.path, skip_accept_encoding=True)
        if self.settings.key:
            connection.putheader("Authorization", f"Bearer {self.settings.key}")
        if wanted.method == "POST":
            connection.putheader("Content-Length", str(len(wanted.body)))
        else:
            connection.putheader("Accept", "application/protobuf")
        connection.endheaders(wanted.body or None)
        return connection.getresponse()


class Chat:
    """A conversation. The server keeps it; if it has forgotten it, what this client remembers is sent again, by itself."""

    def __init__(self, client: Client, transcript: Transcript) -> None:
        self._client = client
        self.transcript = transcript

    def send(self, question: str) -> Answer[Iterator[str]]:
        """Take a turn; the answer has to be read to its end before the next. Raises Failure while iterating."""
        answer = self._client.stream(self.transcript.ask(question, whole=False))
        answer.pieces = self._turn(question, answer)
        return answer

    def _turn(self, question: str, answer: Answer[Iterator[str]]) -> Iterator[str]:
        client, turn = self._client, answer.turn
        try:
            yield from client._pieces(turn)  # noqa: SLF001
        except Failure as failure:
            if failure.code != "conversation_not_found" or turn.received:
                raise
            turn = answer.turn = Turn(self.transcript.ask(question, whole=True), client.settings)
            yield from client._pieces(turn)  # noqa: SLF001
        self.transcript.answered(question, turn)
