"""Asks a backend of the tests one question. python question.py ADDRESS PORT SOURCE PROTOCOL"""

from __future__ import annotations

import socket
import sys


def ask(address: str, port: int, source: str, protocol: str) -> str:
    """The backend's name and who it thinks asked, or the error's name."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(1)
        s.bind((source, 0))
        try:
            s.connect((address, port))
            s.send(b"?\n")
            return s.recv(100).decode().strip()
        except OSError as error:
            return type(error).__name__


if __name__ == "__main__":
    print(ask(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
