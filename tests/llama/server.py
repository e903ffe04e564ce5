"""A real llama.cpp server as a child process."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.origin import HANG

HERE = Path(__file__).parent


def why_not() -> str | None:
    """The reason why there can be none here, or None."""
    missing = [name for name in ("xllamacpp", "gguf", "numpy") if importlib.util.find_spec(name) is None]
    return f"llama.cpp needs the packages {', '.join(missing)}" if missing else None


class Llama:
    """One server over a model of its own making; `url` is what an upstream is configured with."""

    def __init__(self, folder: Path, *, embedding: bool) -> None:
        self.model = folder / "tiny.gguf"
        self.mode = "embedding" if embedding else "chat"
        self.root = ""
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []

    @property
    def url(self) -> str:
        """The base URL of its OpenAI-compatible API."""
        return self.root + "/v1"

    def start(self) -> Llama:
        """Make the model, start the server, and wait until it answers."""
        subprocess.run([sys.executable, str(HERE / "tiny_model.py"), str(self.model)], check=True, timeout=6 * HANG)
        told, tell = os.pipe()
        with os.fdopen(told, encoding="utf-8") as address:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "serve.py"), str(self.model), self.mode, str(tell)],
                pass_fds=[tell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
            os.close(tell)
            threading.Thread(target=self._collect, daemon=True).start()
            if select.select([address], [], [], 6 * HANG)[0]:
                self.root = address.read().rstrip("/")
        if not self.root:
            self.end()
            raise AssertionError("llama.cpp did not start:\n" + "\n".join(self._lines))
        self._answers()
        return self

    def get(self, path: str) -> object:
        """A JSON document of its own API."""
        with urllib.request.urlopen(self.root + path, timeout=HANG) as answer:
            return json.load(answer)

    def post(self, path: str, body: object) -> dict:
        """Ask it directly, without proxyd."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return json.load(answer)

    def end(self) -> None:
        """Stop it."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(HANG)
            self._process.stdout.close()

    def _collect(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.append(line.rstrip())
        except ValueError:  # closed while reading: it is over
            pass

    def _answers(self) -> None:
        until = time.monotonic() + HANG
        while True:
            try:
                self.get("/health")
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return
