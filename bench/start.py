"""From `exec` to ready, and what the first requests wait for: `python -m bench.start [--times 5]`.

Ready is the first 200 of `/ready`. The requests are streams of three events, on connections of their own, one after the other, from
the moment that it is ready, or a second later; the upstream answers at once. What a first one takes longer than the fourth is what was
left for it to do: the list of prices and vocabularies are loaded behind the start, and who comes before them waits for them.

Measured (CPython 3.11, two cores): see bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.children import environment, free_port, mock, spawn, stop

LISTED = "x.openai.azure.com"
"""An address that the list of prices knows; the child is made to find it at the mock."""
FOUND_HERE = f"""
import socket
found = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: found("127.0.0.1" if host == "{LISTED}" else host, *more, **named)
"""
REQUESTS = 4


@dataclass(frozen=True)
class Scene:
    """One configuration."""

    name: str
    models: int = 1
    host: str = "127.0.0.1"
    reports: bool = True
    """The upstream tells the usage of its streams; else it is counted here."""

    def config(self, port: int, upstream: int) -> str:
        target = {"upstream": "mock", "price": {"input": 0.15, "output": 0.6}} if self.host == "127.0.0.1" else {"upstream": "mock"}
        return json.dumps(
            {
                "listen": f"127.0.0.1:{port}",
                "ops": {"listen": "off"},
                "auth": "none",
                "upstreams": {"mock": {"kind": "openai", "base_url": f"http://{self.host}:{upstream}/v1", "include_usage": self.reports}},
                "models": {"mock-3x1000": target, **{f"model-{number}": target for number in range(self.models - 1)}},
            },
            indent=0,
        )


SCENES = (
    Scene("1 model, its price in the file"),
    Scene("1 model, priced by the list", host=LISTED),
    Scene("1 model, tokens counted here", reports=False),
    Scene("1,000 models, prices in the file", models=1000),
    Scene("1,000 models, priced by the list", models=1000, host=LISTED),
)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        text = answer.read()
        assert body is None or b"[DONE]" in text, text
        return answer.status


def once(scene: Scene, upstream: int, pause: float) -> tuple[float, list[float]]:
    """Milliseconds to ready, and of each request after it."""
    with tempfile.TemporaryDirectory(prefix="proxyd-bench-") as folder:
        port, file = free_port(), Path(folder, "config.yaml")
        file.write_text(scene.config(port, upstream))
        Path(folder, "sitecustomize.py").write_text(FOUND_HERE)
        env = environment(PROXYD_LOOP="asyncio" if scene.host == LISTED else "")
        env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
        begun = time.monotonic()
        child = spawn([sys.executable, "-m", "proxyd", "serve", "-c", str(file)], Path(folder, "log"), env)
        try:
            while True:
                assert child.poll() is None, Path(folder, "log").read_text()
                with contextlib.suppress(OSError):
                    if ask(port, "GET", "/ready") == 200:
                        break
                time.sleep(0.002)
            ready = time.monotonic() - begun
            time.sleep(pause)
            body = json.dumps({"model": "mock-3x1000", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}).encode()
            took = []
            for _ in range(REQUESTS):
                begun = time.monotonic()
                assert ask(port, "POST", "/v1/chat/completions", body) == 200
                took.append((time.monotonic() - begun) * 1e3)
        finally:
            stop(child)
    return ready * 1e3, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    print(f"{'ms, the median of ' + str(times):34}{'ready':>8}{'1st, at once':>14}{'a second later':>16}{'4th':>8}")
    with tempfile.TemporaryDirectory(prefix="proxyd-bench-") as folder, mock(sys.executable, Path(folder)) as upstream:
        for scene in SCENES:
            soon, later = ([once(scene, upstream, pause) for _ in range(times)] for pause in (0.0, 1.0))
            figures = [one for one, _ in soon + later], [took[0] for _, took in soon], [took[0] for _, took in later]
            ready, first, second, fourth = map(statistics.median, (*figures, [took[3] for _, took in later]))
            print(f"{scene.name:34}{ready:8.0f}{first:14.1f}{second:16.1f}{fourth:8.1f}")


if __name__ == "__main__":
    main()
