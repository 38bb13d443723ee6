"""The five dashboards: overview, agents, mesh, bus, audit. Built here, into the JSON files beside.

``python -m deploy.grafana`` writes the files. ``tests/observability/test_dashboards.py`` holds that they
are current, that every expression parses, and that every selector meets a series of a real scrape.
"""

from deploy.grafana.boards.agents import agents
from deploy.grafana.boards.audit import audit
from deploy.grafana.boards.bus import bus
from deploy.grafana.boards.mesh import mesh
from deploy.grafana.boards.overview import overview

BOARDS = {"overview": overview, "agents": agents, "mesh": mesh, "bus": bus, "audit": audit}
"""File name → builder."""
