"""`isthmus up` for the length of a block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import patient

PROGRAM = str(Path(sys.executable).parent / "isthmus")


@contextmanager
def up(data: Path, *options: str) -> Iterator[dict[str, Any]]:
    """``isthmus up`` until the block ends; it must then stop cleanly."""
    command = [PROGRAM, "up", "--data", str(data), "--port", "0", "--json", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield json.loads(child.stdout.readline())
        child.terminate()
        assert child.wait(timeout=patient(5)) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
