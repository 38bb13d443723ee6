"""A file of nodes → join commands: CSV, JSON, or the output of ``kubectl get nodes -o json``.

Pure text in, commands out; nothing is sent from here. Every problem names its line (CSV) or its
position in the list (JSON), and all of them are reported at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from events.errors import BadRequest
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

KIND_LABEL = "isthmus.io/kind"
SITE_LABELS = ("isthmus.io/site", "topology.kubernetes.io/region", "topology.kubernetes.io/zone")
UID_ANNOTATION = "isthmus.io/uid"
SITE_LIMIT = 63


class Line(NamedTuple):
    """One node of the file and where it stands: a line number (CSV) or a position (JSON), from 1."""

    number: int
    command: JoinNode


def parse(text: str, *, kind: str = "") -> list[Line]:
    """Read a file of nodes. ``kind`` is what nodes are of which the file does not say it.

    Raises BadRequest(import_unreadable) with every problem in ``details["problems"]``.
    """
    rows = list(_json_rows(text) if text.lstrip()[:1] in {"{", "["} else _csv_rows(text))
    if not rows:
        raise BadRequest("import_unreadable", "the file holds no node")
    lines: list[Line] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, fields in rows:
        if kind:
            fields.setdefault("kind", kind)
        try:
            command = msgspec.convert(fields, JoinNode)
        except msgspec.ValidationError as error:
            hint = "; say --kind cloud or --kind external" if "`kind`" in str(error) else ""
            problems.append(f"line {number} ({fields.get('node') or 'no name'}): {error}{hint}")
            continue
        first = seen.setdefault(command.node, number)
        if first != number:
            problems.append(f"line {number} ({command.node}): the same node is on line {first}")
        lines.append(Line(number, command))
    if problems:
        shown = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise BadRequest(
            "import_unreadable",
            f"{len(problems)} of {len(rows)} lines cannot be read: {shown}",
            problems=problems,
        )
    return lines


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header; ``#`` begins a comment line; empty cells count as missing."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
                continue
            if header is None:
                header = _header(cells)
                continue
            if len(cells) > len(header):
                raise BadRequest(
                    "import_unreadable",
                    f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}",
                )
            values = zip(header, cells, strict=False)
            yield reader.line_num, {field: cell.strip() for field, cell in values if cell.strip()}
    except csv.Error as error:
        raise BadRequest("import_unreadable", f"line {reader.line_num}: {error}") from error


def _header(cells: list[str]) -> list[str]:
    fields = [COLUMNS.get(cell.strip().lower().replace("-", "_"), "") for cell in cells]
    unknown = [cell.strip() for cell, field in zip(cells, fields, strict=True) if not field]
    missing = [field for field in ("node", "uid", "underlay") if field not in fields]
    if unknown or missing:
        raise BadRequest(
            "import_unreadable",
            f"the first line must name the columns node, uid, underlay and optionally kind, announced, site; "
            f"unknown: {', '.join(unknown)[:200] or 'none'}; missing: {', '.join(missing) or 'none'}",
            unknown=unknown,
            missing=missing,
        )
    return fields


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list of objects, ``{"nodes": […]}``, or a Kubernetes ``List``/``NodeList``."""
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadRequest("import_unreadable", f"the file is not JSON: {error}") from error
    kubernetes = isinstance(document, dict) and "items" in document
    items = document.get("items" if kubernetes else "nodes") if isinstance(document, dict) else document
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadRequest(
            "import_unreadable",
            'the JSON is neither a list of nodes, nor {"nodes": […]}, nor that of `kubectl get nodes -o json`',
        )
    for number, item in enumerate(items, 1):
        yield number, (_kubernetes(item) if kubernetes else dict(item))


def _kubernetes(item: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Kubernetes Node object.

    The uid is the annotation ``isthmus.io/uid``, else the machine id, which names the installation
    (the object's own uid changes whenever the kubelet registers anew). A node with a providerID is
    a cloud's. InternalIP is the underlay address; an ExternalIP is announced only if the annotation
    ``isthmus.io/announced`` says so.
    """
    metadata = _dict(item.get("metadata"))
    status = _dict(item.get("status"))
    labels, annotations = _dict(metadata.get("labels")), _dict(metadata.get("annotations"))
    internal = ""
    for address in status.get("addresses") or ():
        if _dict(address).get("type") == "InternalIP" and "." in str(_dict(address).get("address")):
            internal = internal or str(_dict(address)["address"])
    info = _dict(status.get("nodeInfo"))
    fields: dict[str, Any] = {
        "node": metadata.get("name"),
        "uid": annotations.get(UID_ANNOTATION) or info.get("machineID") or info.get("systemUUID"),
        "underlay": internal,
        "announced": annotations.get("isthmus.io/announced"),
        "site": next((str(labels[label])[:SITE_LIMIT] for label in SITE_LABELS if labels.get(label)), None),
        "kind": labels.get(KIND_LABEL) or ("cloud" if _dict(item.get("spec")).get("providerID") else None),
    }
    return {field: value for field, value in fields.items() if value}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
