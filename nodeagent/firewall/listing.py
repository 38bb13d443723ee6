"""What `nft list table` prints of our table, as sets and counts of rules. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

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


def elements_in(text: str) -> set[str]:
    """What the sets hold that `nft --json list set` has printed, in the words of our transactions."""
    found: set[str] = set()
    for entry in msgspec.json.decode(text)["nftables"]:
        for element in entry.get("set", {}).get("elem", ()):
            match element:
                case {"concat": [first, where]}:
                    found.add(f"{first} . {_cidr(where)}")
                case {"prefix": prefix}:
                    found.add(f"{prefix['addr']}/{prefix['len']}")
                case {"elem": timed}:
                    found.add(str(timed["val"]))
                case _:
                    found.add(str(element))
    return found


def _cidr(value: Any) -> str:
    match value:
        case {"prefix": prefix}:
            return f"{prefix['addr']}/{prefix['len']}"
        case int():
            return str(value)  # a port
    return f"{value}/32"
