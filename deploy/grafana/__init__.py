"""Grafana dashboards, generated as code.

The JSON files in ``dashboards/`` are what an operator imports; ``python -m deploy.grafana`` makes them
(it needs the development extra). Nothing at run time imports this package.
"""
