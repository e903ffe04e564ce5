"""An issuer of signed tokens: its keys, its key set, and tokens as good or as forged as a test wants them."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

_MAKERS = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ES384": (lambda: ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


@dataclass
class Key:
    """A key pair, and the public half as a key set has it."""

    kid: str | None
    algorithm: str = "ES256"
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make, self._shape = _MAKERS[self.algorithm]
        self.private = make()

    @property
    def jwk(self) -> dict[str, Any]:
        found = self._shape.to_jwk(self.private.public_key(), as_dict=True)
        found = {name: value for name, value in found.items() if name not in ("key_ops", "use", "alg")}
        kid = {} if self.kid is None else {"kid": self.kid}
        return {**found, "alg": self.algorithm, "use": "sig", **kid, **self.more}

    @property
    def leaked(self) -> dict[str, Any]:
        """Both halves, as no key set should have them."""
        return {**self._shape.to_jwk(self.private, as_dict=True), **self.jwk}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A token, properly signed; `header` adds to its head."""
        kid = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(claims, self.private, self.algorithm, {**kid, **header})


def key_set(*keys: Key | dict[str, Any]) -> bytes:
    """A key set as its address serves it."""
    return json.dumps({"keys": [key.jwk if isinstance(key, Key) else key for key in keys]}).encode()


def claims(issuer: str, **more: Any) -> dict[str, Any]:
    """What a good token says; None takes a claim out."""
    now = int(time.time())
    said = {"iss": issuer, "aud": "proxyd", "sub": "user_1", "iat": now, "nbf": now - 1, "exp": now + 300, **more}
    return {name: value for name, value in said.items() if value is not None}


def forged(head: object, body: object, signature: bytes = b"") -> str:
    """Three parts, whatever they are."""
    return ".".join(_part(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (head, body, signature))


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
