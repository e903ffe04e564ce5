"""One exchange: what the four verbs know together. State only; whoever sets a field stands beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyd.config.schema import OnDisconnect
from proxyd.model import LedgerRow, State
from proxyd.rules.price import written_cost
from proxyd.wire.wishes import NO_WISHES, Wishes

if TYPE_CHECKING:
    import asyncio

    from proxyd.config.schema import Model, Upstream
    from proxyd.errors import ProxyError
    from proxyd.flow.allowances import Reservation
    from proxyd.flow.answer import Answer
    from proxyd.flow.broadcast import Broadcast
    from proxyd.flow.health import Health
    from proxyd.flow.memory import Recalled
    from proxyd.flow.runtime import Snapshot
    from proxyd.model import Ask, Caller, Endpoint
    from proxyd.rules.idempotency import Request
    from proxyd.rules.routes import Route


@dataclass(slots=True)
class Exchange:
    """A request on its way. It keeps the snapshot that it began with, whatever a reload does meanwhile."""

    request_id: str
    endpoint: Endpoint
    snapshot: Snapshot
    began: float
    """Monotonic seconds."""
    began_us: int
    """Wall time."""

    # set by admit
    asked_at: float | None = None
    """When the whole request had arrived; monotonic seconds."""
    caller: Caller | None = None
    ask: Ask | None = None
    route: Route | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What is forwarded of the client's own headers."""
    raw: bytes = b""
    """The request's body, as OpenAI's JSON whatever it came as."""
    bytes_in: int = 0
    """Bytes of the body as it came, decompressed."""
    wishes: Wishes = NO_WISHES
    """What the request said to proxyd alone."""
    framed: bool = False
    """Its stream leaves as frames of protobuf, which end with the usage, though the request does not say so."""
    protocol: str = "json"
    """What the answer leaves in, as the ledger calls it."""
    recalled: Recalled | None = None
    """The conversation that this is a turn of, once it has been looked up."""
    key: str | None = None
    """The Idempotency-Key that this exchange has claimed."""
    request: Request | None = None
    """What the claim is for."""
    broadcast: Broadcast | None = None
    """The answer that outlives its client: this exchange's own, or another's that it listens to."""
    task: asyncio.Future[None] | None = None
    """Serves the exchange, where it outlives its client."""
    replayed: bool = False
    """Answered from a tape: nothing called, nothing billed."""

    reservation: Reservation | None = None
    """What it holds under its limits."""
    counting: int = 0
    """Attempts that are over, and whose tokens are still being counted."""

    # set by dispatch
    attempt: int = 0
    target: str | None = None
    """The upstream that the running or last attempt went to, by its name in the file."""
    upstream: Upstream | None = None
    """Its settings."""
    asked_usage: bool = False
    """The running attempt asks for the stream's usage, though the client does not."""
    ticket: tuple[Health, int] | None = None
    """The running attempt's place at its upstream, until its end is reported there."""
    row: LedgerRow | None = None
    """The ledger row of the running attempt, from its `open` until it is settled."""
    answer: Answer | None = None
    earlier: list[asyncio.Future[None]] = field(default_factory=list)
    """The rows of attempts that failed, on their way to the disk."""

    # set by relay and handler
    held: bytes = b""
    """The end of the answer, which leaves when the row is on disk."""
    error: ProxyError | None = None
    client_left: bool = False
    committed: bool = False
    """A byte of the answer went out."""
    settled: bool = False
    cost: tuple[int, str] | None = None
    """What it cost, in 10⁻⁹ of a currency, and the currency; None until it is settled, and where no price is known."""
    unwritten: bool = False
    """Its claim is not on disk yet."""
    span: object | None = None
    """What the tracer has begun for it, and not ended."""
    released: bool = False
    """Its claim is finished, its key somebody else's to take."""
    bytes_out: int = 0

    @property
    def label(self) -> str:
        """The route's name, for metrics: never what a client made up."""
        return self.route.label if self.route is not None else ""

    @property
    def model(self) -> Model:
        """The route's settings. Only after admit."""
        assert self.route is not None  # noqa: S101 - admit has set it, or the exchange ended there
        return self.route.model

    @property
    def reads_on(self) -> bool:
        """Whether its answer is read to the end though nobody listens. Only one that was asked for comes."""
        return self.answer is not None and self.answer.call is not None and self.model.on_disconnect is OnDisconnect.DRAIN

    @property
    def tells_usage(self) -> bool:
        """Whether the client is to be given the event of the stream's usage."""
        return self.framed or (self.ask is not None and self.ask.wants_usage)

    def told(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of a whole answer: the upstream's, and what it cost (a stream's head has left before anybody knows)."""
        assert self.answer is not None  # noqa: S101 - dispatch has run
        told = self.answer.told()
        return told if self.cost is None else (*told, (b"X-Proxyd-Cost", f"{written_cost(self.cost[0])} {self.cost[1]}".encode()))

    def outcome(self) -> tuple[State, str | None]:
        """What the running attempt has come to: its ledger state, and the error code if there is one."""
        answer = self.answer
        if self.error is not None:
            return State.FAILED, self.error.code
        if answer is not None and answer.finished_whole:
            return State.DONE, None
        if answer is not None and answer.had_error:
            return State.FAILED, "upstream_error"
        if self.client_left:
            return State.CANCELLED, "client_gone"
        return State.FAILED, "internal"
