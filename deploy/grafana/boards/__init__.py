"""The four dashboards: overview, agents, bus, audit. Built here; the JSON files beside are what this builds.

``python -m deploy.grafana`` writes the files. ``tests/observability/test_dashboards.py`` holds that they
are current, that every expression parses, and that every selector meets a series of a real scrape.
"""

from deploy.grafana.boards.agents import agents
from deploy.grafana.boards.audit import audit
from deploy.grafana.boards.bus import bus
from deploy.grafana.boards.overview import overview

BOARDS = {"overview": overview, "agents": agents, "bus": bus, "audit": audit}
"""File name → builder."""
