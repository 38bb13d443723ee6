"""The configuration text of a nats-server that we start ourselves.

Pure: options in, text out. It must never leave out ``sync_interval: always``: without it the
server acknowledges what it has not yet written to disk (reference: Jepsen on NATS 2.12.1).
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec


class ClusterMember(msgspec.Struct, frozen=True, kw_only=True):
    """One server's place in a cluster. ``routes`` are ``host:port`` of all members' cluster ports."""

    cluster: str
    port: int
    routes: tuple[str, ...]


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a server of ours needs to know.

    ``store_dir`` belongs to this one server. ``port`` 0 lets the kernel choose (see
    ``EmbeddedServer.url``), and the choice is kept over restarts. ``name`` must be unique in a
    cluster. ``domain`` names the JetStream domain (sites with leaf nodes need one each).
    ``leaf_port`` accepts leaf nodes; ``leaf_remotes`` are the hub's ``nats-leaf://`` URLs.
    ``extra`` is appended as it is.
    """

    store_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    name: str = "isthmus"
    domain: str = ""
    member: ClusterMember | None = None
    leaf_port: int = 0
    leaf_remotes: tuple[str, ...] = ()
    extra: str = ""


def render(options: ServerOptions, *, port: int, ports_dir: Path) -> str:
    """The configuration file. ``port`` is the client port (0: any); ``ports_dir`` receives the ports file."""
    text = json.dumps  # NATS configuration strings are JSON strings
    lines = [
        f"server_name: {text(options.name)}",
        f"listen: {text(f'{options.host}:{port or -1}')}",
        f"ports_file_dir: {text(str(ports_dir))}",
        f"log_file: {text(str(options.store_dir / 'nats-server.log'))}",
        "logfile_size_limit: 10MB",
        "logfile_max_num: 3",
        "jetstream {",
        f"  store_dir: {text(str(options.store_dir))}",
        "  # An acknowledgement means: on disk.",
        "  sync_interval: always",
        *([f"  domain: {text(options.domain)}"] if options.domain else []),
        "}",
    ]
    if options.member is not None:
        lines += [
            "cluster {",
            f"  name: {text(options.member.cluster)}",
            f"  listen: {text(f'{options.host}:{options.member.port}')}",
            f"  routes: {json.dumps([f'nats-route://{route}' for route in options.member.routes])}",
            "}",
        ]
    if options.leaf_port:
        lines.append(f"leafnodes {{ listen: {text(f'{options.host}:{options.leaf_port}')} }}")
    elif options.leaf_remotes:
        # One remote that names all: a remote each would be connected to all at the same time.
        urls = json.dumps(list(options.leaf_remotes))
        lines.append(f"leafnodes {{ reconnect: 1s, remotes: [ {{ urls: {urls} }} ] }}")
    if options.extra:
        lines.append(options.extra)
    return "\n".join(lines) + "\n"
