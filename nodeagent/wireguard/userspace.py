"""A WireGuard device of a program in userspace (`wireguard-go`): for kernels without the module.

The program makes the device over ``/dev/net/tun`` and takes its settings on a socket in ``/run/wireguard`` (the
WireGuard site's "Cross-platform interface"). It goes on when the agent ends, and a new agent finds it by its
socket. When it dies the device is gone, and nothing is sent in its place.
"""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from nodeagent.membership.node_key import public_of
from nodeagent.wireguard.device import DeviceState, PeerSettings, PeerState

PROGRAM = "wireguard-go"
SOCKETS = Path("/run/wireguard")
START_S, TIMEOUT_S = 10.0, 10.0
ANSWER_MAX_BYTES = 64 * 1024 * 1024
PEERS_AT_ONCE = 500


def missing() -> str:
    """Why no such device can be made here; empty when one can."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed: apt-get install wireguard-go"
    return "" if Path("/dev/net/tun").exists() else "/dev/net/tun is missing: modprobe tun"


class UserspaceDevice:
    """See :class:`~nodeagent.wireguard.device.WireGuardDevice`."""

    kind = "userspace"

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = SOCKETS / f"{name}.sock"

    def create(self) -> None:
        """Start the program, and wait until it listens. It is nobody's child, and outlives the agent.

        Raises OSError.
        """
        self._socket.unlink(missing_ok=True)  # of one that was killed
        # With a large limit of open files it tries them all before it begins.
        script = 'ulimit -n 1024; "$0" -f "$1" </dev/null >/dev/null 2>&1 &'
        subprocess.run(
            ["/bin/sh", "-c", script, PROGRAM, self.name], start_new_session=True, check=True, timeout=TIMEOUT_S
        )
        until = time.monotonic() + START_S
        while not self._socket.exists():
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, f"{PROGRAM} does not listen after {START_S:g} s")
            time.sleep(0.02)

    def read(self) -> DeviceState:
        """What it has now."""
        own, port, key = "", 0, ""
        peers: dict[str, dict[str, str]] = {}
        allowed: dict[str, list[str]] = {}
        for line in self._ask("get=1\n\n"):
            name, _, value = line.partition("=")
            if name == "public_key":
                key = _text(value)
                peers[key], allowed[key] = {}, []
            elif name == "allowed_ip":
                allowed[key].append(value)
            elif key:
                peers[key][name] = value
            elif name == "private_key" and value.strip("0"):
                own = public_of(bytes.fromhex(value))
            elif name == "listen_port":
                port = int(value)
        return DeviceState(
            own,
            port,
            {
                key: PeerState(
                    PeerSettings(
                        _endpoint(found.get("endpoint", "")),
                        tuple(sorted(allowed[key])),
                        int(found.get("persistent_keepalive_interval", 0)),
                    ),
                    float(found.get("last_handshake_time_sec", 0)),
                    int(found.get("rx_bytes", 0)),
                    int(found.get("tx_bytes", 0)),
                )
                for key, found in peers.items()
            },
        )

    def configure(self, private_key: bytes, port: int) -> None:
        """Give it its own key and port."""
        self._ask(f"set=1\nprivate_key={private_key.hex()}\nlisten_port={port}\n\n")

    def change(
        self, put: Mapping[str, PeerSettings], drop: Iterable[str], *, losing: Collection[str] | None = None
    ) -> None:
        """Make these peers be so, and those be gone."""
        parts = [f"public_key={b64decode(key).hex()}\nremove=true\n" for key in drop]
        parts += [
            f"public_key={b64decode(key).hex()}\n"
            + _endpoint_line(settings.endpoint)
            + f"persistent_keepalive_interval={settings.keepalive_s}\n"
            + ("replace_allowed_ips=true\n" if losing is None or key in losing else "")
            + "".join(f"allowed_ip={cidr}\n" for cidr in settings.allowed)
            for key, settings in put.items()
        ]
        for start in range(0, len(parts), PEERS_AT_ONCE):
            self._ask("set=1\n" + "".join(parts[start : start + PEERS_AT_ONCE]) + "\n")

    def nudge(self, peers: Mapping[str, int]) -> None:
        """Switched on again, a keepalive is sent at once; the ranges stay untouched."""
        for often_s in (dict.fromkeys(peers, 0), peers):
            parts = [
                f"public_key={b64decode(key).hex()}\nupdate_only=true\npersistent_keepalive_interval={seconds}\n"
                for key, seconds in often_s.items()
            ]
            for start in range(0, len(parts), PEERS_AT_ONCE):
                self._ask("set=1\n" + "".join(parts[start : start + PEERS_AT_ONCE]) + "\n")

    def leave_address(self) -> None:
        """The program goes on sending from the address at which it got a packet, and finds out after 15 s
        that it is gone: a peer that is put where it is has none.
        """
        there = {key: peer.settings.endpoint for key, peer in self.read().peers.items()}
        parts = [
            f"public_key={b64decode(key).hex()}\nupdate_only=true\n{_endpoint_line(endpoint)}"
            for key, endpoint in there.items()
            if endpoint[1]
        ]
        for start in range(0, len(parts), PEERS_AT_ONCE):
            self._ask("set=1\n" + "".join(parts[start : start + PEERS_AT_ONCE]) + "\n")

    def remove(self) -> None:
        """End the program: it does when its socket is taken away."""
        self._socket.unlink(missing_ok=True)

    def _ask(self, request: str) -> list[str]:
        """One exchange; the lines of the answer. Raises OSError as the program answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(TIMEOUT_S)
            try:
                stream.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise OSError(errno.ENODEV, f"{PROGRAM} does not run for {self.name}") from error
            stream.sendall(request.encode())
            answer = bytearray()
            while not answer.endswith(b"\n\n"):
                data = stream.recv(65536)
                if not data or len(answer) > ANSWER_MAX_BYTES:
                    raise OSError(errno.EIO, f"{PROGRAM} gave no whole answer")
                answer += data
        lines = answer.decode("ascii", "replace").split()
        number = int(lines.pop().partition("=")[2] or 0) if lines else errno.EIO
        if number:
            raise OSError(abs(number), f"{PROGRAM} refused: {errno.errorcode.get(abs(number), number)}")
        return lines


def _text(raw: str) -> str:
    return b64encode(bytes.fromhex(raw)).decode()


def _endpoint_line(endpoint: tuple[str, int]) -> str:
    address, port = endpoint
    host = f"[{address}]" if ":" in address else address
    return f"endpoint={host}:{port}\n" if port else ""


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port or 0)
