"""The client's side of one exchange: its request, and the answer as it goes out.

Bytes are written straight to the transport, framed here; aiohttp's response classes are not involved. The state of an answer
is `committed`: before it an error can still be said properly, after it a broken answer must look broken.
"""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web

from proxyd.errors import ProxyError
from proxyd.web.connection import ClientConnection, Sent
from proxyd.wire.coding import decoder

if TYPE_CHECKING:
    from proxyd.clock import Clock
    from proxyd.web.connection import Steered
    from proxyd.wire.coding import Decoder

FLUSH_SECONDS = 5.0
"""How long a broken answer's last bytes may take to reach a client that does not read."""
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
Headers = Iterable[tuple[bytes, bytes]]


class Downstream:
    """One request and its answer. `request_id` goes out with every answer."""

    def __init__(self, request: web.BaseRequest, request_id: str, clock: Clock) -> None:
        self._request = request
        self._connection = cast("ClientConnection", request.protocol)
        self._connection.asked = True
        self._transport = cast("asyncio.Transport", request.transport)
        self._clock = clock
        self.request_id = request_id
        # Request state
        self.method = request.method
        self.headers = self._connection.listener.fields(request.raw_headers)
        self.query = request.rel_url.query
        self.notes: Callable[[], Headers] = tuple
        """What else goes into the head of whichever answer it comes to; asked when the head goes out."""
        # Answer state
        self.committed = False
        self.bytes_out = 0
        self._chunked = False
        self._keep_alive = request.keep_alive and request.version == (1, 1)

    # Reading the request.

    async def body(self, limit: int, timeout: float) -> bytes:  # noqa: ASYNC109
        """Read the whole body: at most `limit` bytes, within `timeout` seconds, valid UTF-8.

        Raises ProxyError: unsupported_media_type, body_too_large, request_timeout, invalid_json (not UTF-8), client_gone.
        """
        request = self._request
        _check_media(request.headers.get("Content-Type"))
        coded = decoder(request.headers.get("Content-Encoding"))
        length = request.content_length
        if length is not None and length > limit:
            raise _too_large(limit)
        self._continue()
        content = request.content
        if coded is None and content.is_eof() and content.total_bytes <= limit:
            body = content.read_nowait()
            try:
                body.decode()
            except UnicodeDecodeError:
                raise _not_utf8() from None
            return body
        try:
            async with asyncio.timeout(timeout):
                return await self._pieces(limit, coded)
        except TimeoutError:
            raise ProxyError("request_timeout", f"The request body did not arrive within {timeout:g} seconds.") from None
        except web.RequestPayloadError:
            raise ProxyError("invalid_request", "The request body is not valid HTTP/1.1.") from None

    async def _pieces(self, limit: int, coded: Decoder | None) -> bytes:
        content, pieces, size = self._request.content, [], 0
        utf8 = codecs.getincrementaldecoder("utf-8")()
        while piece := await content.readany():
            if coded is not None:
                piece = coded.feed(piece, limit - size)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            _utf8(piece, utf8, final=False)
            pieces.append(piece)
        if coded is not None:
            coded.finish()
        _utf8(b"", utf8, final=True)
        return b"".join(pieces)

    def _continue(self) -> None:
        """RFC 9110 10.1.1: a client that waits for permission to send its body gets it; other expectations are ignored."""
        if self._request.headers.get("Expect", "").lower() == "100-continue" and not self._request.content.is_eof():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Answering at once.

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whole."""
        head = self._head(status, headers, [(b"Content-Length", b"%d" % len(body))])
        self.committed = True
        payload = b"" if self.method == "HEAD" else body
        self.bytes_out += len(payload)
        self._put(head + payload)

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error, in OpenAI's shape, telling SDKs whether to try again."""
        headers = [(b"Content-Type", b"application/json")]
        if not error.retry:
            headers.append((b"x-should-retry", b"false"))
        if error.retry_after is not None:
            headers += [
                (b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after))),
                (b"retry-after-ms", b"%d" % math.ceil(error.retry_after * 1000)),
            ]
        if error.allow:
            headers.append((b"Allow", ", ".join(error.allow).encode()))
        if error.status == 401:
            headers.append((b"WWW-Authenticate", b"Bearer"))
        self.reply(error.status, headers, error.document())

    # Answering piece by piece.

    def begin(self, status: int, headers: Headers, length: int | None, data: bytes) -> None:
        """Commit: send the head and the first bytes. Without a length the body is chunked (HTTP/1.0: until the end)."""
        if length is not None:
            framing = [(b"Content-Length", b"%d" % length)]
        elif self._request.version == (1, 1):
            self._chunked = True
            framing = [(b"Transfer-Encoding", b"chunked")]
        else:
            framing = []
        self.committed = True
        self.bytes_out += len(data)
        self._put(self._head(status, headers, framing) + self._frame(data))

    def write(self, data: bytes) -> None:
        """Push bytes of the body, now."""
        self.bytes_out += len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._transport.is_closing():
            self._transport.write(data)

    def ping(self, data: bytes) -> None:
        """Push bytes that are no part of the answer."""
        self.write(data)

    def finish(self, data: bytes) -> None:
        """Send the last bytes and the end of the message in one write."""
        self.bytes_out += len(data)
        end = self._frame(data)
        self._put(end + b"0\r\n\r\n" if self._chunked else end)

    def abort(self, data: bytes = b"") -> None:
        """Break the answer off, after these last bytes: no terminator, so no client can take it for whole."""
        self._keep_alive = False
        if self._transport.is_closing():
            return
        if not self._chunked:
            # Without chunks, only a reset tells a cut from an end (RFC 9112 8); a length would tell by itself, but one way is enough.
            self._transport.abort()
            return
        self._put(self._frame(data))
        self._transport.close()
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._transport.abort)

    # Flow control.

    def steer(self, steered: Steered | None) -> None:
        """From now on a full write buffer pauses `steered`, and an empty one resumes it."""
        self._connection.steered = steered
        if steered is not None and self._connection.writing_paused:
            steered.pause()

    # For the room itself.

    def last(self) -> None:
        """The connection ends with this answer, and says so if it has not begun."""
        self._keep_alive = False

    def sent(self) -> Sent:
        """What to hand back to aiohttp when the exchange is over."""
        return Sent(keep_alive=self._keep_alive)

    def _frame(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _put(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _head(self, status: int, headers: Headers, framing: list[tuple[bytes, bytes]]) -> bytes:
        if not self._request.content.is_eof():
            self._keep_alive = False  # the rest of the body would be read as the next request
        lines = [
            b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Unknown")),
            b"Date: " + self._connection.listener.date(self._clock.now_us() // 1_000_000),
        ]
        lines.append(b"X-Request-Id: " + self.request_id.encode())
        lines += [b"%b: %b" % header for header in headers]
        lines += [b"%b: %b" % header for header in self.notes()]
        lines += [b"%b: %b" % header for header in framing]
        if not self._keep_alive:
            lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _check_media(kind: str | None) -> None:
    """Refuse what is not JSON before it is read as broken JSON (RFC 9110 15.5.16). A form of another site is also refused so."""
    media = "application/json" if kind is None else kind.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProxyError("unsupported_media_type", "The request body must be JSON: send it with `Content-Type: application/json`.")


def _utf8(piece: bytes, decoder: codecs.IncrementalDecoder, *, final: bool) -> None:
    """Check piece by piece, so that no body stalls the loop (RFC 8259 8.1: JSON is UTF-8)."""
    try:
        decoder.decode(piece, final)
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> ProxyError:
    return ProxyError("invalid_json", "The request body is not valid UTF-8.")


def _too_large(limit: int) -> ProxyError:
    return ProxyError("body_too_large", f"The request body is larger than {limit} bytes.")
