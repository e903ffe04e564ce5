"""What stands between an answer as the road gives it and the wire: nothing, for most; frames of protobuf, for thin links.

The road speaks OpenAI's JSON and SSE. An encoder is fed that and gives what leaves; what its timers let go later it hands to
`emit`, which it is given with `begin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxyd.errors import ProxyError
    from proxyd.wire.wishes import Wishes

Headers = Iterable[tuple[bytes, bytes]]
Emit = Callable[[bytes], None]


class Encoder(Protocol):
    """Writes one answer in the client's form."""

    @property
    def protocol(self) -> str:
        """What the ledger calls it."""

    @property
    def ends(self) -> bool:
        """A stream that breaks says so in its last bytes, and ends as others do."""

    @property
    def lean(self) -> bool:
        """Leave out of the head what the client can do without."""

    def wish(self, wishes: Wishes, *, streamed: bool) -> None:
        """Learn how the client wants it, and whether as a stream."""

    def take_frames(self) -> bool:
        """Whether it writes frames of protobuf; from now on what comes are frames already."""

    def head(self, headers: Headers, *, streamed: bool) -> Headers:
        """Choose the headers of an answer."""

    def document(self, body: bytes) -> bytes:
        """Write an answer that is said at once. Raises ProxyError upstream_bad_response."""

    def refusal(self, error: ProxyError) -> tuple[int, Headers, bytes]:
        """Write an error that is the whole answer: its status, its headers and its body."""

    def begin(self, headers: Headers, data: bytes, emit: Emit) -> bytes:
        """Begin a stream with its first bytes. Raises ProxyError where it cannot be written so."""

    def feed(self, data: bytes) -> bytes:
        """Take more of it."""

    def ping(self) -> bytes:
        """Give what tells that the line is open."""

    def end(self, data: bytes) -> bytes:
        """Take its last bytes."""

    def fail(self, data: bytes) -> bytes:
        """Take the last bytes of a stream that breaks."""

    def stop(self) -> None:
        """Nothing is emitted from now on."""
