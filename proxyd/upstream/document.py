"""Small documents that proxyd itself needs from elsewhere: an issuer's keys."""

from __future__ import annotations

import asyncio

import aiohttp


class FetchError(Exception):
    """The document could not be had; the message says why, in a few words."""


async def fetch(url: str, *, limit: int, timeout: float) -> bytes:  # noqa: ASYNC109 - it bounds the whole of it
    """GET a document of at most `limit` bytes within `timeout` seconds. Raises FetchError.

    No redirect is followed, no proxy of the environment is used, no cookie is kept: what is asked is the address that was
    configured, and nobody else (CVE-2026-48522).
    """
    try:
        async with (
            asyncio.timeout(timeout),
            aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session,
            session.get(url, allow_redirects=False, headers={"Accept": "application/json", "Accept-Encoding": "identity"}) as answer,
        ):
            if answer.status != 200:
                raise FetchError(f"it answered {answer.status}")
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise FetchError(f"it is larger than {limit} bytes")
            return bytes(body)
    except TimeoutError:
        raise FetchError(f"it did not answer within {timeout:g} seconds") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from None
