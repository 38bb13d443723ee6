"""Opens a connection every 20 ms and writes what came of it: one JSON line each, until SIGTERM.

python client.py ADDRESS PORT [SOURCE]
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time


async def once(address: str, port: int, source: str) -> None:
    started, word = time.time(), ""
    try:
        async with asyncio.timeout(0.5):
            local = (source, 0) if source else None
            reader, writer = await asyncio.open_connection(address, port, local_addr=local)
            writer.write(b"?\n")
            word = (await reader.readline()).decode().strip()
            writer.transport.abort()
    except (OSError, TimeoutError):
        pass
    sys.stdout.write(json.dumps([started, word]) + "\n")


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    address, port, source = sys.argv[1], int(sys.argv[2]), (sys.argv[3:] or [""])[0]
    tries: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        task = asyncio.create_task(once(address, port, source))
        tries.add(task)
        task.add_done_callback(tries.discard)
        await asyncio.sleep(0.02)
    await asyncio.gather(*tries)


if __name__ == "__main__":
    asyncio.run(main())
