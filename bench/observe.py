"""What being observed costs per request: metrics and the access line, in CPU time. `python bench/observe.py`.

The access line's time includes the writing thread's. Target: 15 us together. Measured (CPython 3.11, a busy machine): metrics 3.5, access
line 6.1.
"""

from __future__ import annotations

import os
import time

from proxyd.line_writer import LineWriter
from proxyd.log import Style, configure
from proxyd.metrics import Metrics
from proxyd.model import Ending, Source, State, Usage

ROUNDS, TIMES = 5, 20_000
ENDING = Ending(
    at_us=1_795_268_690_781_498, request_id="req_099df97064a1f20a8d7d7568", endpoint="/v1/chat/completions", status=200, state=State.DONE,
    duration_ms=1234.5, caller="laptop", model="fast", route="fast", upstream="openai", streamed=True, attempts=1,
    usage=Usage(512, 209, 721, 0, 12), tokens_source=Source.UPSTREAM, cost_nano=202_200, currency="USD", ttft_ms=310.25, stream_ms=900.0,
    events=209, overhead_ms=1.1,
)  # fmt: skip


def best(run, after=None) -> float:
    """Microseconds a call, of the best round."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(TIMES):
            run()
        if after is not None:
            after()
        times.append((time.process_time() - begun) / TIMES * 1e6)
    return min(times)


def main() -> None:
    metrics = Metrics("bench")
    metrics.know(["fast"], ["openai"])

    def count() -> None:
        metrics.exchange_begun()
        metrics.exchange_ended(ENDING)

    writer = LineWriter(os.open(os.devnull, os.O_WRONLY), most=TIMES * 2)
    log = configure(Style.JSON, "info", writer)
    counted, logged = best(count), best(lambda: log.access_line(ENDING), lambda: writer.flush(10))
    print(f"metrics {counted:.1f} us, access line {logged:.1f} us, together {counted + logged:.1f} us a request")
    log.close()


if __name__ == "__main__":
    main()
