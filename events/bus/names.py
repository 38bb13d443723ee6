"""The names that a join token for several machines gives: a pattern, and what fits it. Pure."""

from __future__ import annotations

import re

from events.errors import BadRequest
from events.subjects import check_node_name

NUMBER = "{}"
HOSTNAME = "{hostname}"


def check_names(pattern: str) -> str:
    """The pattern, if it makes names of nodes. Raises BadRequest(node_name_invalid)."""
    if pattern.count(NUMBER) + pattern.count(HOSTNAME) != 1:
        raise BadRequest(
            "node_name_invalid",
            f"a pattern of names has one {NUMBER} (a number) or one {HOSTNAME} (the machine's own), and "
            f"{pattern[:80]!r} has not",
        )
    check_node_name(pattern.replace(HOSTNAME, "x").replace(NUMBER, "1000"))
    return pattern


def numbered(pattern: str) -> bool:
    """Whether the names have numbers, which the issuer gives; else each machine has its own."""
    return NUMBER in pattern


def name_of(pattern: str, part: str) -> str:
    """The name with that number or hostname. Raises BadRequest(node_name_invalid)."""
    return check_node_name(pattern.replace(HOSTNAME, part).replace(NUMBER, part))


def fits(pattern: str, name: str) -> bool:
    """Whether the pattern may have made that name."""
    head, _, tail = pattern.partition(NUMBER if numbered(pattern) else HOSTNAME)
    part = r"[1-9][0-9]*" if numbered(pattern) else r".+"
    return re.fullmatch(re.escape(head) + part + re.escape(tail), name) is not None
