"""Who is measured: how each proxy is configured, started, checked and stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import children, loops
from bench.load import KEY, Job, Seen

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

COMMIT_LIMIT = 5.0
"""Seconds in which the last rows must be in the ledger; promised are 20 ms."""

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_buffer_size 64k;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream mock {{ server 127.0.0.1:{mock}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""

PROXYD = """
listen: 127.0.0.1:{port}
ops: {{listen: "127.0.0.1:0"}}
storage: {{url: "sqlite:///{directory}/bench.db", durability: {durability}}}
upstreams:
  mock: {{kind: openai, base_url: "http://127.0.0.1:{mock}/v1", max_connections: 10000}}
models:
  "mock-*": mock
auth: {{keys: [{{name: bench, key: {key}}}]}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy is to run."""

    directory: Path
    port: int
    mock: int


@dataclass(frozen=True, slots=True)
class Contestant:
    """A proxy that can be measured."""

    name: str
    kind: str
    """direct, nginx, bare, proxyd or litellm."""
    health: str = "/health"
    env: dict[str, str] = field(default_factory=dict)
    durability: str = "strict"
    program: str = sys.executable
    """The interpreter that has it; for nginx the program itself."""

    @property
    def loose(self) -> bool:
        """Whether it writes its own JSON instead of the upstream's bytes."""
        return self.kind == "litellm"

    def command(self, place: Place) -> list[str]:
        """Write the configuration into the place; how to start the proxy on it."""
        if self.kind == "nginx":
            file = place.directory / "nginx.conf"
            # A master that is root would run its worker as nobody, who may not enter our directory.
            user = "user root;" if os.geteuid() == 0 else ""
            file.write_text(NGINX.format(user=user, directory=place.directory, port=place.port, mock=place.mock), encoding="utf-8")
            return [self.program, "-p", str(place.directory), "-c", str(file), "-e", str(place.directory / "error.log")]
        if self.kind == "bare":
            return [self.program, "-m", "bench.bare", str(place.port), f"http://127.0.0.1:{place.mock}"]
        if self.kind == "litellm":
            return self._litellm(place)
        file = place.directory / "config.yaml"
        text = PROXYD.format(port=place.port, directory=place.directory.as_posix(), durability=self.durability, mock=place.mock, key=KEY)
        file.write_text(text, encoding="utf-8")
        return [self.program, "-m", "proxyd", "serve", "-c", str(file)]

    def _litellm(self, place: Place) -> list[str]:
        file = place.directory / "litellm.json"  # JSON is YAML
        # The plain requests' model by its own name and with a price: a pattern, or a price to look for, costs it a fifth more.
        door = {"api_base": f"http://127.0.0.1:{place.mock}/v1", "api_key": KEY}
        price = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
        settings = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": f"openai/{name}", **door}, "model_info": price}
                for name in ("mock-unary", "*")
            ],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False, "drop_params": False},
        }
        file.write_text(json.dumps(settings), encoding="utf-8")
        program = Path(self.program).with_name("litellm")
        return [str(program), "--config", str(file), "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]


@dataclass(slots=True)
class Running:
    """A proxy at work."""

    contestant: Contestant
    port: int
    process: subprocess.Popen[bytes] | None
    directory: Path
    listening_ms: float = 0.0
    """From exec to the first connection taken."""
    asked: int = 0
    """Requests that it has been sent."""
    errors: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Of its first process; 0 where there is none."""
        return self.process.pid if self.process else 0

    def check_alive(self) -> None:
        """Say so if it has ended by itself."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self.errors.append(f"ended by itself with {code}")

    def check_ledger(self) -> None:
        """Compare proxyd's ledger with what was asked; a difference is an error."""
        if self.contestant.kind != "proxyd" or not self.asked:
            return
        limit = time.monotonic() + COMMIT_LIMIT
        found: dict[str, int] = {}
        while time.monotonic() < limit:
            found = read_ledger(self.directory / "bench.db")
            if found == {"done/upstream": self.asked}:
                return
            time.sleep(0.05)
        self.errors.append(f"ledger says {found}, sent were {self.asked} requests")


def read_ledger(file: Path) -> dict[str, int]:
    """Count the ledger's rows by state and by where their token counts come from."""
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
        rows = database.execute("SELECT state || '/' || tokens_source, count(*) FROM usage_events GROUP BY 1").fetchall()
    return {str(state): int(count) for state, count in rows}


@contextlib.contextmanager
def running(contestant: Contestant, mock: int, directory: Path) -> Iterator[Running]:
    """Start a proxy in front of the mock, in a new directory under `directory`. Raises children.Trouble."""
    if contestant.kind == "direct":
        yield Running(contestant, mock, None, directory)
        return
    home = directory / f"{contestant.kind}-{time.monotonic_ns()}"
    home.mkdir()
    place = Place(home, children.free_port(), mock)
    command, log = contestant.command(place), home / "output.log"
    began = time.monotonic()
    process = children.spawn(command, log, children.environment(**contestant.env))
    try:
        children.wait_listening(process, place.port, log)
        listening = (time.monotonic() - began) * 1e3
        children.wait_healthy(place.port, contestant.health, log)
        yield Running(contestant, place.port, process, home, listening)
    finally:
        children.stop(process)
        shutil.rmtree(home, ignore_errors=True)


def drive(proxy: Running, job: Job) -> Seen:
    """Have the load process do `job`; what it saw. Raises children.Trouble if it fails altogether."""
    job = dataclasses.replace(job, port=proxy.port, pid=proxy.pid, loose=proxy.contestant.loose)
    command = [sys.executable, "-m", "bench.load", json.dumps(dataclasses.asdict(job))]
    done = children.run(command, proxy.directory)
    if done.returncode:
        raise children.Trouble(f"the load on {proxy.contestant.name} failed: {done.stderr[-2000:]}")
    seen = Seen(**json.loads(done.stdout))
    proxy.asked += seen.requests
    if seen.wrong:
        proxy.errors.append(f"{job.kind}: {seen.wrong} of {seen.requests} answers wrong, such as: {seen.errors[0]}")
    return seen


def contestants(*, quick: bool, litellm: str | None) -> list[Contestant]:
    """List who can be measured here: the baseline first, then by weight."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    found = [Contestant("direct", "direct")]
    if nginx:
        found.append(Contestant("nginx", "nginx", program=nginx))
    found.append(Contestant("bare aiohttp", "bare"))
    found.append(Contestant("proxyd strict", "proxyd"))
    if not quick:
        found.append(Contestant("proxyd relaxed", "proxyd", durability="relaxed"))
        if loops.has_uvloop():
            found.append(Contestant("proxyd strict, asyncio", "proxyd", env={"PROXYD_LOOP": "asyncio"}))
    if litellm:
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_MODE": "PRODUCTION"}
        found.append(Contestant("LiteLLM", "litellm", health="/health/liveliness", env=offline, program=litellm))
    return found
