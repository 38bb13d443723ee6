"""What `nft list table` prints of our table, as sets and counts of rules. Pure."""

from __future__ import annotations

import re
from typing import Any

_SET = re.compile(r"^\tset (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)


def elements_by_set(text: str) -> dict[str, set[str]]:
    """What each set of a listing holds, as the program prints it."""
    return {
        name: set(body.partition("elements = {")[2].partition("}")[0].replace(",", " ").split())
        for name, body in _SET.findall(text)
    }


def rules_by_chain(text: str) -> dict[str, int]:
    """How many rules stand in each chain: one a line, here and in what the program prints."""
    counts: dict[str, int] = {}
    chain = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain "):
            chain = line.split()[1]
            counts[chain] = 0
        elif line == "}":
            chain = ""
        elif chain and line and not line.startswith("type "):
            counts[chain] += 1
    return counts


def cidr_of(value: Any) -> str:
    """An address, a range or a port of an element, as `nft --json` prints it, in words."""
    match value:
        case {"prefix": prefix}:
            return f"{prefix['addr']}/{prefix['len']}"
        case int():
            return str(value)
    return f"{value}/32"
