"""Where a listener stands: `host:port`, `[v6]:port` or `unix:/path`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_SUN_PATH = 107
"""Bytes of a socket's path on Linux, without its NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or a Unix socket: then `path` is set. Port 0 lets the system choose."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it. A name other than localhost counts as the world: it may change."""
        if self.path is not None or self.host.lower() == "localhost":
            return True
        ip = _ip(self.host)
        return ip is not None and ip.is_loopback

    @property
    def everywhere(self) -> bool:
        """Whether it takes the port on all interfaces."""
        ip = _ip(self.host) if self.path is None else None
        return ip is not None and ip.is_unspecified

    def collides(self, other: Address) -> bool:
        """Whether both cannot be listened on at once, as far as their text tells."""
        if self.path is not None or other.path is not None:
            return self.path == other.path
        if self.port != other.port or self.port == 0:
            return False
        both_local = self.loopback and other.loopback and "localhost" in (self.host.lower(), other.host.lower())
        return self.host.lower() == other.host.lower() or self.everywhere or other.everywhere or both_local


def parse_address(text: str) -> Address:
    """Read a `listen` value. Raises ValueError with what to write instead; the message fits behind the value."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError("is not the path of a socket; write unix:/run/proxyd.sock")
        if len(path.encode()) > _SUN_PATH:
            raise ValueError(f"is longer than the {_SUN_PATH} bytes that a socket's path may have")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("is not an address; write host:port, as in 127.0.0.1:8080, [::1]:8080 or unix:/run/proxyd.sock")
    if int(port) > 65535:
        raise ValueError("has a port above 65535")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if ":" not in inner or _ip(inner) is None:
            raise ValueError("has no IPv6 address between its brackets")
        return Address(inner, int(port))
    if ":" in host:
        raise ValueError("is not an address; an IPv6 host stands in brackets, as in [::1]:8080")
    if not _HOST.fullmatch(host) or (re.fullmatch(r"[0-9.]+", host) and _ip(host) is None):
        raise ValueError("has no host that can be; write 127.0.0.1, 0.0.0.0 for all interfaces, or a name")
    return Address(host, int(port))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    # ::ffff:127.0.0.1 reaches what 127.0.0.1 does.
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
