"""The spelling of bus addresses: read once, for flags, environment and files alike."""

from __future__ import annotations

from urllib.parse import urlsplit

from events.errors import Usage

SCHEMES = ("nats", "tls", "ws", "wss")


def bus_servers(text: str) -> tuple[str, ...]:
    """``URL[,URL…]`` → the servers, each with its scheme in lower case.

    ``HOST`` and ``HOST:PORT`` mean ``nats://``. Raises Usage(usage) for what names no server.
    """
    found = tuple(_server(part.strip()) for part in text.split(",") if part.strip())
    if not found:
        raise Usage("usage", f"the bus {text[:80]!r} names no server; for example nats://127.0.0.1:4222")
    return found


def _server(url: str) -> str:
    fault = bad_url(url)
    if fault:
        raise Usage("usage", f"bus {fault}; write it as nats://HOST:PORT or tls://HOST:PORT")
    scheme, found, rest = url.partition("://")
    return f"{scheme.lower()}://{rest}" if found else f"nats://{url}"


def bad_url(url: str) -> str:
    """What is wrong with one address; empty when nothing is."""
    shown = url.rpartition("@")[2][:80]
    if not url.isascii() or not url.isprintable() or " " in url:
        return f"{shown!r} contains characters that no address has"
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = parts.port
    except ValueError as error:
        return f"{shown!r}: {error}"
    if parts.scheme.lower() not in SCHEMES:
        return f"{shown!r}: the scheme is one of {', '.join(SCHEMES)}"
    if not parts.hostname or port == 0:
        return f"{shown!r} names no server"
    if parts.path.strip("/") and parts.scheme in {"nats", "tls"}:
        return f"{shown!r} has a path, {parts.path[:40]!r}"
    return ""
