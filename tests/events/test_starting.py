"""What a start does not read."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("aiohttp")

READ = "'aiohttp.client' in sys.modules"


@pytest.mark.parametrize(
    "use",
    [
        "aiohttp.ClientSession",
        "from_import = __import__('aiohttp', fromlist=['ClientError']).ClientError",
        "import aiohttp.hdrs; assert aiohttp.hdrs.HOST",
        "from kubernetes_asyncio.client import ApiClient",
    ],
)
def test_the_bus_client_reads_the_package_for_websockets_only_when_it_is_used(use: str) -> None:
    lines = [
        "import sys",
        "import events.bus.connection, events.bus.client",
        "from nats.aio.transport import aiohttp",
        f"assert aiohttp and not ({READ})",
        use,
        f"assert {READ}",
        "assert aiohttp is sys.modules['aiohttp'] and aiohttp.ClientSession and aiohttp.WSMsgType.BINARY",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
