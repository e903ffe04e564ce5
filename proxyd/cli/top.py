"""`proxyd top`: a live view of the running daemon."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections import deque
from typing import TYPE_CHECKING, Any

from proxyd.cli import DONE, Failed, WrongUsage, config_path, ops
from proxyd.cli.output import BOLD, DIM, GREEN, RED, YELLOW, paint, plain
from proxyd.clock import Clock
from proxyd.config.load import look_into

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

HELP = """Watch the running daemon: requests and tokens a second, the upstreams, and what runs now. q or Ctrl-C ends it.

Where standard output is no terminal, or with --once, one frame is printed."""
EXAMPLES = """proxyd top
proxyd top --interval 0.5
proxyd top --once
proxyd top --once --format json | jq .totals"""
HISTORY = 60
"""Readings that the curve shows."""
_BARS = "▁▂▃▄▅▆▇█"
_STATES = {"closed": GREEN, "half_open": YELLOW, "open": RED}
# The other screen, without a cursor, and lines that are too long are cut; and back (xterm's, tmux's too).
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"

State = dict[str, Any]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take how often, whether once, and a format."""
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="between two readings, 0.1 to 60 (default: 1)")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json, with --once: all that is known, as it came")


def run(args: argparse.Namespace) -> int:
    """Show. Raises Failed where no daemon answers at first; later it is waited for."""
    config = look_into(config_path(args, os.environ), os.environ)
    if args.format == "json" and not args.once:
        raise WrongUsage("--format json needs --once: a live view is for people")
    first = ops.ask(config, "GET", "/state")
    if args.once or not sys.stdout.isatty() or os.environ.get("TERM") in {None, "", "dumb"}:
        if args.format == "json":
            print(json.dumps(first, indent=2))
            return DONE
        time.sleep(args.interval)
        size = shutil.get_terminal_size((100, 40)) if sys.stdout.isatty() else os.terminal_size((100, 1000))
        print("\n".join(frame(ops.ask(config, "GET", "/state"), first, (), size)))
        return DONE
    with _screen():
        before, curve = first, deque([0.0], maxlen=HISTORY)
        while not _quits(args.interval):
            size = shutil.get_terminal_size()
            try:
                now = ops.ask(config, "GET", "/state")
            except Failed as error:
                _draw([paint("no daemon answers; waiting for it", YELLOW, sys.stdout), plain(error)], size)
                continue
            curve.append(rate(now, before, "completion_tokens"))
            _draw(frame(now, before, curve, size), size)
            before = now
    return DONE


def frame(now: State, before: State, curve: Sequence[float], size: os.terminal_size) -> list[str]:
    """Draw one frame from two readings of /state, and the rates before: lines of at most `size.columns` cells."""
    out, width = sys.stdout, max(40, size.columns)
    ready = paint("ready", GREEN, out) if now["ready"] else paint("not ready: " + plain(", ".join(now["reasons"])), RED, out)
    up = _age((now["now"] - now["started_at"]) / 1e6)
    numbers = {
        "running": f"{now['active']:,}",
        "requests/s": f"{rate(now, before, 'requests'):,.1f}",
        "failed/s": f"{rate(now, before, 'failed'):,.1f}",
        "tokens/s": f"{rate(now, before, 'completion_tokens'):,.0f}",
        "requests": f"{now['totals']['requests']:,}",
    }
    if now["ledger_queue"]:
        numbers["rows waiting"] = f"{now['ledger_queue']:,}"
    lines = [
        f"{paint('proxyd', BOLD, out)} {plain(now['version'])}   {ready}   up {up}   pid {now['pid']}",
        "   ".join(f"{paint(value, BOLD, out)} {name}" for name, value in numbers.items()),
    ]
    if curve:
        lines.append(f"{_curve(curve, width - 20)}  {paint(f'tokens/s, most {max(curve):,.0f}', DIM, out)}")
    lines += ["", *_upstreams(now, before, width), ""]
    room = max(3, size.lines - len(lines) - 1)
    return lines + _running(now, width, room)


def rate(now: State, before: State, name: str, upstream: str | None = None) -> float:
    """How much a sum has grown a second between two readings; 0 across a restart."""
    elapsed: float = (now["now"] - before["now"]) / 1e6
    if elapsed <= 0 or now["started_at"] != before["started_at"]:
        return 0.0
    new, old = (_sum(one, name, upstream) for one in (now, before))
    return max(0.0, (new - old) / elapsed)


def _sum(state: State, name: str, upstream: str | None) -> int:
    sums = state["totals"] if upstream is None else state["upstreams"].get(upstream, {})
    return int(sums.get(name, 0))


def _upstreams(now: State, before: State, width: int) -> list[str]:
    rows = []
    for name, facts in now["upstreams"].items():
        first = facts["first_byte_seconds"]
        wait = facts["ready_in_seconds"]
        state = facts["state"] + (f" {wait:g} s" if wait else "")
        numbers = (
            *(str(facts["busy"]), f"{rate(now, before, 'requests', name):,.1f}", f"{rate(now, before, 'failed', name):,.1f}"),
            "-" if first is None else f"{first * 1000:,.0f} ms",
        )
        rows.append((plain(name), state, *numbers))
    return _table(("UPSTREAM", "STATE", "RUNNING", "REQ/S", "FAILED/S", "FIRST BYTE"), rows, width, colour=_state_colour)


def _running(now: State, width: int, room: int) -> list[str]:
    rows = []
    for one in now["running"][: room - 1]:
        phase = "answering" if one["begun"] else "waiting"
        if not one["client"]:
            phase += ", nobody listens"
        rows.append(
            (
                *(plain(one[name]) for name in ("caller", "model", "upstream")),
                *(phase, _age(one["seconds"]), f"{one['events']:,}", plain(one["request_id"])),
            )
        )
    lines = _table(("CALLER", "MODEL", "UPSTREAM", "PHASE", "FOR", "EVENTS", "REQUEST"), rows, width)
    more = now["active"] - len(rows)
    if more > 0:
        lines[-1:] = [*lines[-1:], paint(f"and {more:,} more", DIM, sys.stdout)]
    return lines if rows else [paint("nothing runs", DIM, sys.stdout)]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, colour: Any = None) -> list[str]:
    """Lay out columns that are as wide as what is in them; a line that is too long is cut."""
    widths = [max(len(title), *(len(row[i]) for row in rows)) if rows else len(title) for i, title in enumerate(titles)]
    widths = [min(w, 32) for w in widths]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{_cut(cell, w):{w}}" for cell, w in zip(cells, widths, strict=True)).rstrip()[:width]

    drawn = [paint(line(titles), DIM, sys.stdout)]
    for row in rows:
        text = line(row)
        drawn.append(paint(text, colour(row), sys.stdout) if colour is not None and colour(row) else text)
    return drawn


def _state_colour(row: Sequence[str]) -> str | None:
    state = row[1].split(" ")[0]
    return None if state == "closed" else _STATES.get(state, YELLOW)


def _curve(values: Sequence[float], width: int) -> str:
    shown = list(values)[-max(1, width) :]
    most = max(shown) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(value / most * len(_BARS)))] for value in shown)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _age(since: float) -> str:
    if since < 60:
        return f"{since:.0f} s"
    minutes, hours, days = int(since // 60), int(since // 3600), int(since // 86_400)
    if minutes < 60:
        return f"{minutes} m {int(since % 60)} s"
    return f"{hours} h {minutes % 60} m" if hours < 24 else f"{days} d {hours % 24} h"


def _draw(lines: Sequence[str], size: os.terminal_size) -> None:
    """Draw over the frame before, line by line, so that nothing flickers."""
    shown = list(lines)[: max(1, size.lines)]
    sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K\x1b[J")
    sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The other screen, keys as they are pressed, and all as it was at the end, however it comes."""
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(wait: float) -> bool:
    """Wait so long for a key; whether it was one that ends the view."""
    if not sys.stdin.isatty():
        time.sleep(wait)
        return False
    clock = Clock()
    until = clock.monotonic() + wait
    while (left := until - clock.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and os.read(sys.stdin.fileno(), 64)[:1] in {b"q", b"Q", b"\x04", b""}:
            return True
    return False


def seconds(text: str) -> float:
    """Read an interval: 0.1 to 60. Raises ValueError."""
    value = float(text)
    if not 0.1 <= value <= 60:
        raise ValueError(text)
    return value
