"""A small client for thin links: protobuf out and in, streams that go on by themselves after a cut.

    from proxyd.client import Client

    chat = Client("http://127.0.0.1:8080", key="pxd_…", model="llama3.2").chat()
    for text in chat.send("How long do I boil water at 3000 m?"):
        print(text, end="", flush=True)

`Client` stands on http.client; `AsyncClient` is the same with `await`, on aiohttp:

    async with AsyncClient("http://127.0.0.1:8080", key="pxd_…", model="llama3.2") as client:
        async for text in client.chat().send("Hello"):
            print(text, end="")

`stream` gives one answer as it comes, `ask` one answer whole, `chat` a conversation that the server remembers, so that a
turn sends one sentence. Every request has a random handle: repeated after a cut, it is answered once and billed once.

turn      one turn without its transport: what to send, what has come, when to try again
blocking  the transport on http.client
aio       the transport on aiohttp
"""

from proxyd.client.aio import AsyncClient
from proxyd.client.blocking import Client
from proxyd.client.turn import Answer, Failure, Settings

__all__ = ["Answer", "AsyncClient", "Client", "Failure", "Settings"]
