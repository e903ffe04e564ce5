"""TLS on the clients' port, and certificates that are renewed while connections run."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from proxyd.daemon.boot import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from proxyd.config.schema import Tls

HANDSHAKE_SECONDS = 10.0
"""For the whole handshake; nobody needs so long, and each that hangs holds a descriptor."""


class Certificate:
    """What new connections are greeted with. Hand `context` to the server once; `renew` changes what it presents."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = self._current = context
        context.sni_callback = self._choose

    def renew(self, context: ssl.SSLContext) -> None:
        """From the next handshake on; connections that run keep what they began with."""
        self._current = context

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Runs at each client's hello, whether it names a server or not: the one moment when the context can be exchanged."""
        connection.context = self._current


def load(spec: Tls, folder: Path) -> ssl.SSLContext:
    """Read a certificate with its chain, and its key. Relative paths start at `folder`. Raises RefusedError.

    Blocks: call it in a thread where streams run.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    cert, key = folder / spec.cert, folder / spec.key
    for name, path in (("cert", cert), ("key", key)):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise RefusedError([f"tls.{name}: {path} cannot be read: {error.strerror}"]) from error
    try:
        # An empty password: without one an encrypted key would ask for it on the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        mixed = error.reason == "KEY_VALUES_MISMATCH"
        why = "do not belong together" if mixed else f"are no certificate and its key without a password ({error.reason or 'not PEM'})"
        raise RefusedError([f"tls: {cert} and {key} {why}"]) from error
    return context
