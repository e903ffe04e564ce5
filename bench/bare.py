"""The bare aiohttp pass-through: no key, no route, no counting. `python -m bench.bare PORT UPSTREAM` relays to UPSTREAM.

What a first version of a Python proxy looks like, and so what proxyd's push relay has to be compared with.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from bench import loops

PASSED_UP = ("Content-Type", "Accept", "Authorization")
PASSED_DOWN = ("Content-Type", "Content-Length", "X-Request-Id")


async def serve(port: int, upstream: str) -> None:
    """Listen on `port` of loopback until killed."""
    session = ClientSession(
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )

    async def relay(request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in PASSED_UP if name in request.headers}
        body = await request.read()
        async with session.request(request.method, upstream + request.raw_path, data=body, headers=headers) as answer:
            kept = {name: answer.headers[name] for name in PASSED_DOWN if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    loops.run(serve(int(sys.argv[1]), sys.argv[2]))
