"""Where a program serves something: one spelling for every option, refused before anything is started."""

from __future__ import annotations

from typing import Any

import click

METAVAR = "[HOST:]PORT|off"
LOOPBACK = "127.0.0.1"


class Listen(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """``PORT`` (on loopback), ``HOST:PORT`` or ``off``; the command receives ``HOST:PORT`` or ``off``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        where = str(value).strip()
        if where == "off":
            return where
        host, _, port = where.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            self.fail(f"{where[:80]!r} is not HOST:PORT, PORT or off", param, ctx)
        return f"{host or LOOPBACK}:{port}"
