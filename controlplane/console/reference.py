"""The HTTP API's reference for people, rendered from the same OpenAPI document that the console serves.

``python -m controlplane.console.reference`` writes deploy/API.md of a checkout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def reference(document: dict[str, Any]) -> str:
    """An OpenAPI 3.1 document as Markdown: every path with its parameters and answers, every object once."""
    lines = [
        "# The HTTP API",
        "",
        "Made by `python -m controlplane.console.reference` from the console's `/api/openapi.json`.",
        "With a token (`ISTHMUS_HTTP_TOKEN`) every request needs `Authorization: Bearer TOKEN`.",
    ]
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            if isinstance(operation, dict) and "responses" in operation:
                lines += _operation(method, path, operation)
    lines += ["", "## Objects"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return "\n".join(lines) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"## {method.upper()} {path}", "")
    yield _line(operation.get("description") or operation.get("summary") or "")
    parameters = operation.get("parameters", ())
    if parameters:
        yield from ("", "| parameter | in | type | meaning |", "|---|---|---|---|")
        for one in parameters:
            name = f"`{one['name']}`{' (required)' if one.get('required') else ''}"
            kind, meaning = _type(one.get("schema", {})), _line(one.get("description", ""))
            yield f"| {name} | {one['in']} | {kind} | {meaning} |"
    answers = []
    for status, response in sorted(operation["responses"].items()):
        contents: list[dict[str, Any]] = list(response.get("content", {}).values())
        answers.append(f"{status} {_type(contents[0].get('schema', {})) if contents else ''}".strip())
    yield from ("", f"Answers: {'; '.join(answers)}.")


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    if schema.get("description"):
        yield from (_line(schema["description"]), "")
    if "properties" in schema:
        yield from ("| field | type |", "|---|---|")
        yield from (f"| `{field}` | {_type(inner)} |" for field, inner in schema["properties"].items())
    else:
        yield _type(schema)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for way in ("oneOf", "anyOf"):
        if way in schema:
            return " or ".join(_type(one) for one in schema[way])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _line(text: str) -> str:
    return " ".join(str(text).split()).replace("``", "`").replace("|", "\\|")


def document() -> dict[str, Any]:
    """The OpenAPI document of this release."""
    from controlplane.console.server import create_app

    app = create_app(None, None)  # type: ignore[arg-type]  # no route is called
    found: dict[str, Any] = json.loads(json.dumps(app.openapi_schema.to_schema(), default=str))
    return found


if __name__ == "__main__":
    (Path(__file__).parents[2] / "deploy" / "API.md").write_text(reference(document()))
