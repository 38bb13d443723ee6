"""A file of nodes → join commands: CSV, JSON, or the output of ``kubectl get nodes -o json``.

Pure text in, commands out; nothing is sent from here. Every problem names its line (CSV) or its
position in the list (JSON), and all of them are reported at once.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from controlplane.cli.node_import.encoding import unreadable
from controlplane.kubernetes.node_objects import Rules, read_node
from events.protocol.commands import JoinNode

COLUMNS = {
    "node": "node",
    "name": "node",
    "hostname": "node",
    "uid": "uid",
    "kind": "kind",
    "underlay": "underlay",
    "ip": "underlay",
    "address": "underlay",
    "announced": "announced",
    "public_ip": "announced",
    "site": "site",
    "region": "site",
}
"""Accepted column names (any case) → the field that they mean."""

NODES_MAX = 100_000
_SHOWN = 5


class Line(NamedTuple):
    """One node of the file and where it stands: a line number (CSV) or a position (JSON), from 1."""

    number: int
    command: JoinNode
    notes: tuple[str, ...] = ()


class Problem(NamedTuple):
    """Why one node of the file cannot join."""

    number: int
    node: str
    text: str

    def __str__(self) -> str:
        return f"line {self.number} ({self.node or 'no name'}): {self.text}"


class NodeFile(NamedTuple):
    """What a file holds. ``kubernetes`` says that it lists what is there and was not written by hand."""

    lines: list[Line]
    problems: list[Problem]
    kubernetes: bool = False


class _Row(NamedTuple):
    number: int
    fields: dict[str, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse(text: str, *, kind: str = "") -> list[Line]:
    """Read a file of nodes in which nothing may be wrong. ``kind`` is what nodes are that do not say it.

    Raises BadRequest(import_unreadable) with every problem in ``details["problems"]``.
    """
    found = read_file(text, Rules(kind=kind))
    if found.problems:
        raise all_unreadable(found)
    return found.lines


def read_file(text: str, rules: Rules) -> NodeFile:
    """Read a file of nodes: those that can join, and what is wrong with the others.

    Raises BadRequest(import_unreadable) when the file as a whole is not what it should be.
    """
    text = text.removeprefix("\ufeff")
    kubernetes = False
    if text.lstrip()[:1] in {"{", "["}:
        items, kubernetes = _json_items(text)
        rows = [_kubernetes_row(*item, rules) for item in items] if kubernetes else _json_rows(items)
    else:
        rows = list(_csv_rows(text))
    if not rows:
        raise unreadable("the file holds no node")
    if len(rows) > NODES_MAX:
        raise unreadable(f"the file holds {len(rows):,} nodes, the limit is {NODES_MAX:,}: import it in parts")
    lines: list[Line] = []
    problems: list[Problem] = []
    for row in rows:
        name = row.fields.get("node")
        name = name if isinstance(name, str) else ""
        problems += [Problem(row.number, name, text) for text in row.problems]
        if row.problems:
            continue
        if rules.kind:
            row.fields.setdefault("kind", rules.kind)
        try:
            lines.append(Line(row.number, msgspec.convert(row.fields, JoinNode), row.notes))
        except msgspec.ValidationError as error:
            hint = "; say --kind cloud or --kind external" if "`kind`" in str(error) else ""
            problems.append(Problem(row.number, name, f"{error}{hint}"))
    repeated = _repeated(lines)
    bad = {problem.number for problem in repeated}
    lines = [line for line in lines if line.number not in bad]
    return NodeFile(lines, sorted([*problems, *repeated], key=lambda p: p.number), kubernetes)


def all_unreadable(found: NodeFile) -> Exception:
    """The error that names what is wrong with a file of which nothing is to be imported."""
    bad = len({problem.number for problem in found.problems})
    shown = "; ".join(map(str, found.problems[:_SHOWN])) + ("; …" if len(found.problems) > _SHOWN else "")
    return unreadable(
        f"{bad} of {bad + len(found.lines)} lines cannot be read: {shown}",
        problems=[str(problem) for problem in found.problems],
    )


def _repeated(lines: Sequence[Line]) -> list[Problem]:
    """Lines that claim what another line has: a name again; a uid or an address, of which neither is sure."""
    problems: list[Problem] = []
    names: dict[str, int] = {}
    uids: dict[str, list[Line]] = {}
    addresses: dict[str, list[Line]] = {}
    for line in lines:
        command = line.command
        first = names.setdefault(command.node, line.number)
        if first != line.number:
            problems.append(Problem(line.number, command.node, f"the same node is on line {first}"))
            continue
        uids.setdefault(command.uid, []).append(line)
        addresses.setdefault(command.announced or command.underlay, []).append(line)
    for what, groups, way_out in (
        ("uid", uids, "cloned machines need a uid each"),
        ("address", addresses, "behind one NAT each needs an announced address of its own"),
    ):
        for value, group in groups.items():
            for line in group if len(group) > 1 else ():
                other = next(o for o in group if o is not line)
                text = f"{what} {value} is also that of line {other.number} ({other.command.node}): {way_out}"
                problems.append(Problem(line.number, line.command.node, text))
    return problems


# --- CSV -------------------------------------------------------------------------------------------------


def _csv_rows(text: str) -> Iterator[_Row]:
    """Rows of a CSV file with a header; ``#`` begins a comment line; empty cells count as missing."""
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
                continue
            if header is None:
                header = _header(cells)
                continue
            if len(cells) > len(header):
                raise unreadable(f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}")
            values = zip(header, cells, strict=False)
            yield _Row(reader.line_num, {field: cell.strip() for field, cell in values if cell.strip()})
    except csv.Error as error:
        raise unreadable(f"line {reader.line_num}: {error}") from error


def _header(cells: list[str]) -> list[str]:
    fields = [COLUMNS.get(cell.strip().lower().replace("-", "_").replace(" ", "_"), "") for cell in cells]
    unknown = [cell.strip() for cell, field in zip(cells, fields, strict=True) if not field]
    missing = [field for field in ("node", "uid", "underlay") if field not in fields]
    for field in dict.fromkeys(field for field in fields if field and fields.count(field) > 1):
        same = [cell.strip() for cell, its in zip(cells, fields, strict=True) if its == field]
        raise unreadable(f"the columns {' and '.join(same)} both mean {field}: leave one of them", columns=same)
    if unknown or missing:
        raise unreadable(
            f"the first line must name the columns node, uid, underlay and optionally kind, announced, site; "
            f"unknown: {', '.join(unknown)[:200] or 'none'}; missing: {', '.join(missing) or 'none'}"
            f"{_instead(cells)}",
            unknown=unknown,
            missing=missing,
        )
    return fields


def _instead(cells: Sequence[str]) -> str:
    """What the file seems to be when its first line names no column."""
    first = ",".join(cells)
    if re.match(r"(---|apiVersion|kind|items|-)(\s|:|$)", first):
        return ". It looks like YAML: kubectl get nodes -o json"
    if re.match(r"NAME\s+STATUS\s", first):
        return ". It is a table for people: kubectl get nodes -o json"
    if len(cells) == 1 and re.search(r"[;\t|]", first):
        return ". Cells are separated by commas"
    return ""


# --- JSON ------------------------------------------------------------------------------------------------


def _json_items(text: str) -> tuple[list[tuple[int, bytes]], bool]:
    """The objects of a list, of ``{"nodes": […]}``, of a Kubernetes list, or one Node; and whether it is those.

    Each is kept as it stands until it is read: the whole of a large cluster is hundreds of megabytes.
    """
    try:
        if text.lstrip().startswith("["):
            items, kubernetes = msgspec.json.decode(text, type=list[msgspec.Raw]), False
        else:
            document = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            kind = bytes(document.get("kind", b"")).strip()
            if kind == b'"Node"':
                return [(1, text.encode())], True
            kubernetes = "items" in document
            listed = document.get("items" if kubernetes else "nodes", msgspec.Raw(b"null"))
            items = msgspec.json.decode(listed, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise _no_list() from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise unreadable(f"the file is not JSON: {_place(str(error), text)}") from error
    pieces = [(number, bytes(item).strip()) for number, item in enumerate(items, 1)]
    if not all(piece.startswith(b"{") for _, piece in pieces):
        raise _no_list()
    return pieces, kubernetes


def _no_list() -> Exception:
    return unreadable(
        'the JSON is neither a list of nodes, nor {"nodes": […]}, nor that of `kubectl get nodes -o json`'
    )


def _place(error: str, text: str) -> str:
    """The decoder counts bytes; a person looks for a line."""
    found = re.search(r"\(byte (\d+)\)", error)
    if found is None:
        return error
    before = text.encode()[: int(found[1])].decode("utf-8", "ignore")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return error.replace(found[0], f"(line {line}, column {column})")


def _decoded(piece: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One object, and what is wrong with it; of a key that stands twice neither is taken in silence."""
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        once = dict(found)
        twice.extend(key for key in once if sum(key == other for other, _ in found) > 1)
        return once

    try:
        value = json.loads(piece, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        return {}, (f"it cannot be read: {error}",)
    return value, tuple(f"{key!r} is given twice" for key in dict.fromkeys(twice))


def _json_rows(items: Sequence[tuple[int, bytes]]) -> list[_Row]:
    rows = []
    for number, piece in items:
        fields, problems = _decoded(piece)
        rows.append(_Row(number, fields, problems))
    return rows


def _kubernetes_row(number: int, piece: bytes, rules: Rules) -> _Row:
    try:
        item = msgspec.json.decode(piece)
    except (msgspec.DecodeError, RecursionError) as error:
        return _Row(number, {}, (f"it cannot be read: {error}",))
    found = read_node(item, rules)
    return _Row(number, found.fields, found.problems, found.notes)
