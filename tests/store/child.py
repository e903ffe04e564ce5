"""A process that writes the ledger and says so: `o ID` when a row's open is done, `s ID` when its settling is. It never ends by itself."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from proxyd.clock import Clock
from proxyd.config.schema import Durability
from proxyd.store.db import Database
from proxyd.store.ledger import Ledger
from tests.store.rows import opened, settled


async def main(path: Path, durability: Durability) -> None:
    db = Database(path, durability=durability)
    await db.open()
    ledger = Ledger(db)
    os.write(1, b"recovered %d\n" % await ledger.recover(Clock().now_us()))

    async def caller() -> None:
        while True:
            row = opened(ledger.next_id())
            await ledger.open(row)
            os.write(1, b"o %d\n" % row.id)
            await asyncio.sleep(0.001)
            ledger.checkpoint([row])
            await ledger.settle(settled(row))
            os.write(1, b"s %d\n" % row.id)

    await asyncio.gather(*(caller() for _ in range(16)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Durability(sys.argv[2])))
