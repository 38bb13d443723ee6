"""The agent's Unix socket for its CNI plugin: one request and one answer a connection, each within a deadline.

Only root (the container runtime) and the agent's own account may ask, by the socket's mode and by what the
kernel says of who is there. At most :data:`TOGETHER` are served at a time; who waits longer goes on without an
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from events.errors import BadRequest
from nodeagent.pods.chain import SOCKET_PATH_MAX
from nodeagent.pods.plugin.requests import REQUEST_MAX_BYTES, PluginRequest, parse

log = logging.getLogger("isthmus.agent.cni")

TOGETHER = 16
READ_S = 2.0
ANSWER_S = 2.5
"""Less than the plugin waits."""
AGAIN_S = 15.0

Answerer = Callable[[PluginRequest], Awaitable[tuple[int, bytes]]]
"""A request → the plugin's exit code and what it prints."""


class PluginSocket:
    """:meth:`run` listens at ``path``."""

    def __init__(self, path: Path, answer: Answerer) -> None:
        self._path, self._answer = path, answer
        self._served = asyncio.Semaphore(TOGETHER)
        self.answered = 0
        """Requests that got an answer in this life."""

    async def run(self) -> None:
        """Until cancelled; then the socket is gone. Where it cannot be made it is tried again."""
        if len(os.fsencode(self._path)) > SOCKET_PATH_MAX:
            log.warning("no CNI plugin of ours: %s is longer than a socket's path may be", self._path)
            return
        while True:
            try:
                server = await asyncio.start_unix_server(self._serve, sock=self._listening())
            except OSError as error:
                log.warning("the CNI plugin cannot ask this agent: %s: %s", self._path, error.strerror)
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                async with server:
                    while self._path.is_socket():  # noqa: ASYNC110  nobody says that a file was removed
                        await asyncio.sleep(AGAIN_S)
                log.warning("%s was removed and is made anew", self._path)
            finally:
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def _listening(self) -> socket.socket:
        """A socket that is there for its owner alone from its first moment. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            made.bind(str(self._path))
            made.listen(128)
        except OSError:
            made.close()
            raise
        finally:
            os.umask(before)
        return made

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._served, asyncio.timeout(READ_S + ANSWER_S):
                if _peer(writer) not in {0, os.geteuid()}:
                    return
                code, text = await self._answered(await _whole(reader))
                writer.write(b"%d\n" % code + text)
                await writer.drain()
                self.answered += 1
        except (TimeoutError, OSError) as error:
            log.warning("a request of the CNI plugin was given up: %s", str(error) or "too slow")
        except BadRequest as error:  # an old or a strange plugin: the pod starts all the same
            log.warning("a request of the CNI plugin makes no sense: %s", error.message)
        finally:
            writer.close()

    async def _answered(self, frame: bytes) -> tuple[int, bytes]:
        """Raises BadRequest. What fails here is not the pod's fault: then the plugin goes on."""
        request = parse(frame)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answer(request)
        except TimeoutError:
            log.warning("%s of container %s took too long", request.command, request.container)
        except Exception:
            log.exception("%s of container %s failed", request.command, request.container)
        return 0, b""


async def _whole(reader: asyncio.StreamReader) -> bytes:
    """To the end of the stream. Raises TimeoutError, BadRequest."""
    async with asyncio.timeout(READ_S):
        parts, size = [], 0
        while part := await reader.read(65_536):
            size += len(part)
            if size > REQUEST_MAX_BYTES:
                raise BadRequest("payload_too_large", f"it has more than {REQUEST_MAX_BYTES:,} bytes")
            parts.append(part)
        return b"".join(parts)


def _peer(writer: asyncio.StreamWriter) -> int:
    """The user id of the process at the other end."""
    peer = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
