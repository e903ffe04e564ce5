"""`proxyd demo`: a first look, with nothing set up. The daemon as it always is, over the embedded upstream."""

from __future__ import annotations

import errno
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from proxyd.cli.output import BOLD, DIM, paint

if TYPE_CHECKING:
    import argparse

    from proxyd.daemon.run import Daemon

HELP = "Run proxyd at once: no file, no key, no network. An embedded model says your words back at 50 tokens a second."
EXAMPLES = """
proxyd demo
proxyd demo --port 9000
proxyd demo --once        # one chat, then exit: does it work here?
"""
PORT = 8080
GREETING = (
    "Hello! I am proxyd's embedded echo model. These words came through the real road: a key was checked, a route was found, "
    "tokens were counted as they passed, and one true row now stands in SQLite."
)
CURL = """curl -N {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"model": "echo", "stream": true, "messages": [{{"role": "user", "content": "Say this back to me."}}]}}'"""
OPENAI = """OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}"""
YAML = """upstreams:
  ollama: {kind: ollama, base_url: http://127.0.0.1:11434}
models:
  llama3.2: ollama"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own options."""
    parser.add_argument("--port", type=port, help=f"the clients' port ({PORT}, or any free one if that is taken)")
    parser.add_argument("--once", action="store_true", help="stop after the first chat")


def port(text: str) -> int:
    """Read the number of a TCP port; 0 is any. Raises ValueError."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return number


def run(args: argparse.Namespace) -> int:
    """Serve, chat once, and go on serving until Ctrl-C."""
    from proxyd.clock import Clock  # noqa: PLC0415 - `proxyd --help` imports no server
    from proxyd.config.schema import Config, Kind, Model, Ops, Storage, Target, Upstream  # noqa: PLC0415
    from proxyd.daemon import run as process  # noqa: PLC0415
    from proxyd.line_writer import LineWriter  # noqa: PLC0415
    from proxyd.log import Style, configure  # noqa: PLC0415

    log = configure(Style.TEXT, "warning", LineWriter(sys.stderr.fileno()))
    with tempfile.TemporaryDirectory(prefix="proxyd-demo-") as folder:
        config = Config(
            upstreams={"echo": Upstream(kind=Kind.ECHO)},
            models={"echo": Model(upstreams=(Target(upstream="echo"),))},
            listen=f"127.0.0.1:{args.port if args.port is not None else _free(PORT)}",
            ops=Ops(listen=f"127.0.0.1:{_free(9464)}"),
            storage=Storage(url=f"sqlite:///{folder}/demo.db"),
        )

        async def main() -> None:
            daemon = process.Daemon(config, Path(folder), process.environment(), Clock())
            await daemon.start(None)
            daemon.handle_signals()
            print(f"{paint('proxyd', BOLD, sys.stdout)} listening on {daemon.url}   (ops on {daemon.ops_url})\n", flush=True)
            try:
                await _chat(daemon)
                if args.once:
                    daemon.stop()
                else:
                    _explain(daemon)
            except BaseException:
                daemon.stop()
                await daemon.serve()
                raise
            await daemon.serve()

        try:
            process.run(main, process.environment())
        finally:
            log.close()
    return 0


async def _chat(daemon: Daemon) -> None:
    """One streamed chat over the real socket, shown as it comes."""
    import aiohttp  # noqa: PLC0415
    import orjson  # noqa: PLC0415

    question = {
        "model": "echo",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": GREETING}],
    }
    usage = None
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {daemon.key}"}, trust_env=False) as session,
        session.post(f"{daemon.url}/v1/chat/completions", json=question) as answer,
    ):
        answer.raise_for_status()
        print("  ", end="")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    print("\n")
    if usage is not None:
        counts = f"{usage['prompt_tokens']} prompt tokens, {usage['completion_tokens']} completion tokens, one row in the ledger"
        print(paint(f"  {counts}\n", DIM, sys.stdout), flush=True)


def _explain(daemon: Daemon) -> None:
    """What to try next."""
    words = {"url": daemon.url, "key": daemon.key}
    for title, text in (
        ("Try it yourself:", CURL.format(**words)),
        ("Or any OpenAI client:", OPENAI.format(**words)),
        ("Your own models are four lines of config.yaml, then `proxyd serve`:", YAML),
    ):
        print(f"{paint(title, BOLD, sys.stdout)}\n\n{text}\n")
    print(f"key: {daemon.key}\nCtrl-C stops it; the demo's database goes with it.", flush=True)


def _free(port: int) -> int:
    """The port, or 0 (any) if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return 0
            raise
    return port
