"""Prometheus: scrape configuration and alert rules, generated as code (``python -m deploy.prometheus``)."""
