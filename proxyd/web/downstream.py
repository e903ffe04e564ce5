"""The client's side of one exchange: its request, and the answer as it goes out.

Bytes are written straight to the transport, framed here; aiohttp's response classes are not involved. The state of an answer
is `committed`: before it an error can still be said properly, after it a broken answer must look broken.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web

from proxyd.errors import ProxyError
from proxyd.rules.cors import lean, merged
from proxyd.web.compressed import Compressed
from proxyd.web.connection import ClientConnection, Sent
from proxyd.web.paced import Paced
from proxyd.wire import text, wishes
from proxyd.wire.coding import decoder
from proxyd.wire.faults import error_event, kept_refusal, refused
from proxyd.wire.headers import first

if TYPE_CHECKING:
    from proxyd.clock import Clock
    from proxyd.model import Endpoint
    from proxyd.web.connection import Steered
    from proxyd.web.encoder import Encoder
    from proxyd.wire.coding import Decoder
    from proxyd.wire.wishes import Asked, Wishes

SLOW_BYTES = 256 * 1024
"""A larger body that is no JSON is read off the event loop: 32 MiB of text take some 200 ms."""
GZIP_FROM_MS = 200
"""Frames of protobuf that are held for less are too small for gzip to pay."""
FLUSH_SECONDS = 5.0
"""How long a broken answer's last bytes may take to reach a client that does not read."""
RESET = struct.pack("ii", 1, 0)
"""struct linger: on, 0 seconds."""
_MARKS = frozenset({b"Idempotent-Replayed"})
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
        self.address = self._connection.address
        self.kind = request.headers.get("Content-Type")
        self.accept = ", ".join(request.headers.getall("Accept", ())) or None
        self.notes: Callable[[], Headers] = tuple
        """What else goes into the head of whichever answer it comes to; asked when the head goes out."""
        self.shared: list[tuple[bytes, bytes]] = []
        """Which web page may read the answer, whatever it comes to."""
        # What was negotiated
        self.binary = False
        """The body is not JSON."""
        self.reader: Callable[[bytes], Asked] | None = None
        """Reads the body where that is neither JSON nor plain protobuf."""
        self.encoder: Encoder | None = None
        """Writes the answer in the client's form; None for OpenAI's own."""
        # Answer state
        self.committed = False
        self.bytes_out = 0
        self.broken_off = False
        """We ended it, not the client."""
        self._chunked = False
        self._over = False
        """All of it was written."""
        self._ready: bytes | None = None
        """The end of the answer as it leaves, made by `prepare`."""
        self._keep_alive = request.keep_alive and request.version == (1, 1)

    # Reading the request.

    @property
    def query(self) -> Mapping[str, str]:
        """The members of the URL's query."""
        return self._request.rel_url.query

    async def asked(self, endpoint: Endpoint, limit: int, timeout: float) -> Asked:  # noqa: ASYNC109
        """Read the request, as OpenAI's JSON whatever it came as. Raises ProxyError as `body` does, and invalid_request."""
        data = await self.body(limit, timeout)
        if not self.binary:
            return wishes.Asked(data, len(data))
        read = self.reader or partial(wishes.from_protobuf, endpoint)
        return read(data) if len(data) <= SLOW_BYTES else await asyncio.to_thread(read, data)

    async def body(self, limit: int, timeout: float) -> bytes:  # noqa: ASYNC109
        """Read the whole body: at most `limit` bytes, within `timeout` seconds, UTF-8 and not too deep where it is to be JSON.

        Raises ProxyError: unsupported_media_type, body_too_large, request_timeout, invalid_json (see wire.text), client_gone.
        """
        request = self._request
        coded = decoder(request.headers.get("Content-Encoding"))
        length = request.content_length
        if length is not None and length > limit:
            raise _too_large(limit)
        self._continue()
        content = request.content
        if coded is None and content.is_eof() and content.total_bytes <= limit:
            body = content.read_nowait()
            if not self.binary:
                text.check(body)
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
        checker = None if self.binary else text.Checker()
        while piece := await content.readany():
            if coded is not None:
                piece = coded.feed(piece, limit - size)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            if checker is not None:
                checker.feed(piece)
            pieces.append(piece)
        if coded is not None:
            coded.finish()
        if checker is not None:
            checker.finish()
        return b"".join(pieces)

    def _continue(self) -> None:
        """RFC 9110 10.1.1: a client that waits for permission to send its body gets it; other expectations are ignored."""
        if self._request.headers.get("Expect", "").lower() == "100-continue" and not self._request.content.is_eof():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def header(self, name: bytes) -> str | None:
        """The first header of that name, which is in lower case."""
        return first(self.headers, name)

    async def drained(self) -> None:
        """Wait until the client has taken most of what was written, for answers that are made as fast as they are read."""
        await self._connection._drain_helper()  # noqa: SLF001 - aiohttp's own writers wait so

    def take_frames(self) -> bool:
        """Whether its client wants frames; from now on they are what it is given."""
        return self.encoder is not None and self.encoder.take_frames()

    def wish(self, wishes: Wishes, *, streamed: bool, may_compress: bool) -> str:
        """Learn how the answer is wanted; says what the ledger calls its form. Raises ProxyError invalid_request."""
        delivery, inner = wishes.delivery, self.encoder
        if inner is None:
            if delivery.pad_to or delivery.omit_reasoning:
                raise ProxyError("invalid_request", "`pad_to` and `omit_reasoning` need an answer in protobuf.", param="delivery")
            if delivery.compress or (streamed and delivery.max_delay_ms):
                self.encoder = Paced(wishes)
        else:
            inner.wish(wishes, streamed=streamed)
        wants = delivery.compress if inner is None or streamed else True  # protobuf that is whole: whoever takes it wants it small
        pays = inner is None or not streamed or (delivery.max_delay_ms or 0) >= GZIP_FROM_MS
        if self.encoder is not None and wants and pays and may_compress:
            self.encoder = Compressed(self.encoder, self._request.headers.get("Accept-Encoding"))
        return inner.protocol if inner is not None else "sse" if streamed else "json"

    # Answering at once.

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whole. Raises ProxyError upstream_bad_response where the body cannot be written in the client's form."""
        if self.encoder is not None and status >= 400:  # a refusal that is kept under a key
            status, told, body = self.encoder.refusal(kept_refusal(status, body))
            headers = [*told, *(header for header in headers if header[0] in _MARKS)]
        elif self.encoder is not None:
            body = self._take_ready() or self.encoder.document(body)
            headers = self.encoder.head(headers, streamed=False)
        self._say(status, headers, body)

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error, in the client's form, telling SDKs whether to try again."""
        status, headers, body = refused(error) if self.encoder is None else self.encoder.refusal(error)
        self._say(status, [*headers, *_required(error)], body)

    def prepare(self, data: bytes) -> int:
        """Make the end of the answer ready; says how large its body will be. `finish` or `reply` with the same bytes follows.

        Raises ProxyError upstream_bad_response where it cannot be written in the client's form.
        """
        if self.encoder is None:
            return self.bytes_out + len(data)
        self._ready = self.encoder.end(data) if self.committed else self.encoder.document(data)
        return self.bytes_out + len(self._ready)

    # Answering piece by piece.

    def begin(self, status: int, headers: Headers, data: bytes) -> None:
        """Commit: send the head and the first bytes. The body is chunked (HTTP/1.0: until the end).

        Raises ProxyError upstream_bad_response where the stream cannot be written in the client's form; nothing was sent then.
        """
        if self.encoder is not None:
            data = self.encoder.begin(headers, data, self._send)
            headers = self.encoder.head(headers, streamed=True)
        framing = []
        if self._request.version == (1, 1):
            self._chunked = True
            framing = [(b"Transfer-Encoding", b"chunked")]
        self.committed = True
        self.bytes_out += len(data)
        self._put(self._head(status, headers, framing) + self._frame(data))

    def write(self, data: bytes) -> None:
        """Push bytes of the body, now or when the encoder lets them go."""
        if self.encoder is not None:
            data = self.encoder.feed(data)
            if not data:
                return
        self._send(data)

    def ping(self, data: bytes) -> None:
        """Push bytes that are no part of the answer."""
        if self.encoder is not None:
            data = self.encoder.ping()
            if not data:
                return
        self._send(data)

    def finish(self, data: bytes) -> None:
        """Send the last bytes and the end of the message in one write."""
        if self.encoder is not None:
            ready = self._take_ready()
            data = self.encoder.end(data) if ready is None else ready
        self.bytes_out += len(data)
        end = self._frame(data)
        self._over = True
        self._put(end + b"0\r\n\r\n" if self._chunked else end)

    def spoiled(self, error: ProxyError) -> None:
        """We are wrong, and nobody knows how far this came: nothing else is said here. What has begun breaks, what was whole stays so."""
        if self._over:
            self._transport.close()
        elif self.committed:
            self.abort(error_event(error))

    def abort(self, data: bytes = b"") -> None:
        """Break the answer off, after these last bytes: no terminator, so no client can take it for whole. One that was whole stays so."""
        if self._over:
            return
        self._keep_alive = False
        self.broken_off = True
        if self._transport.is_closing():
            return
        if not self._chunked:
            # Without chunks, only a reset tells a cut from an end (RFC 9112 8); a length would tell by itself, but one way is enough.
            # socket(7): a close that lingers no time is a reset; `abort` alone would be a FIN, as at the end of a whole answer.
            if (sock := self._transport.get_extra_info("socket")) is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._transport.abort()
            return
        if self._ready is not None:
            data = b""  # the encoder has written its end already, which does not leave any more
        elif self.encoder is not None:
            data = self.encoder.fail(data)
            if self.encoder.ends:
                self._over = True
                self._put(self._frame(data) + b"0\r\n\r\n")
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

    def on_leaving(self, stop: Callable[[], None] | None) -> None:
        """From now on the client's leaving calls this first, before anything is done about any client that leaves with it."""
        self._connection.on_leaving = stop

    # For the room itself.

    def last(self) -> None:
        """The connection ends with this answer, and says so if it has not begun."""
        self._keep_alive = False

    def sent(self) -> Sent:
        """What to hand back to aiohttp when the exchange is over."""
        return Sent(keep_alive=self._keep_alive)

    def close(self) -> None:
        """Nothing of this answer leaves from now on, and nobody waits for its client to leave."""
        self._connection.on_leaving = None
        if self.encoder is not None:
            self.encoder.stop()

    def _say(self, status: int, headers: Headers, body: bytes) -> None:
        framing = [(b"Content-Length", b"%d" % len(body))] if status != 204 else []  # RFC 9110 8.6
        head = self._head(status, headers, framing)
        self.committed = True
        payload = b"" if self.method == "HEAD" else body
        self.bytes_out += len(payload)
        self._over = True
        self._put(head + payload)

    def _send(self, data: bytes) -> None:
        self.bytes_out += len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._transport.is_closing():
            self._transport.write(data)

    def _take_ready(self) -> bytes | None:
        ready, self._ready = self._ready, None
        return ready

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
        shared = self.shared
        if self.encoder is not None and self.encoder.lean:
            shared = lean(shared, headers)
        else:
            lines.append(b"X-Request-Id: " + self.request_id.encode())
            lines += [b"%b: %b" % header for header in self.notes()]
        lines += [b"%b: %b" % header for header in (merged(headers, shared) if shared else headers)]
        lines += [b"%b: %b" % header for header in framing]
        if not self._keep_alive:
            lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _required(error: ProxyError) -> list[tuple[bytes, bytes]]:
    """What HTTP itself wants to be said of an error."""
    told = []
    if error.retry_after is not None:
        told.append((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.allow:
        told.append((b"Allow", ", ".join(error.allow).encode()))
    if error.status == 401:
        told.append((b"WWW-Authenticate", b"Bearer"))
    return told


def _too_large(limit: int) -> ProxyError:
    return ProxyError("body_too_large", f"The request body is larger than {limit} bytes.")
