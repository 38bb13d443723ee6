"""``python -m deploy.grafana``: write the dashboards' JSON files beside this module."""

from deploy.grafana import render
from deploy.grafana.boards import BOARDS

for name in BOARDS:
    render.path_of(name).write_text(render.render(name))
    print(f"wrote {render.path_of(name).name}")  # noqa: T201  a tool for the maintainer
