"""A dashboard as the text of its file: stable, so that a change of code is a readable change of JSON."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.boards import BOARDS

DIRECTORY = Path(__file__).parent / "dashboards"


def path_of(name: str) -> Path:
    """The file of a dashboard."""
    DIRECTORY.mkdir(exist_ok=True)
    return DIRECTORY / f"{name}.json"


def render(name: str) -> str:
    """The JSON of a dashboard, indented, with sorted keys."""
    encoded = JSONEncoder(sort_keys=True, indent=2).encode(BOARDS[name]().build())
    return encoded + "\n"
