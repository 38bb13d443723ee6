"""``python -m deploy.prometheus``: write the rules, the scrape configuration and the runbook."""

from pathlib import Path

from deploy.prometheus.rules import CONFIG, rules_text, runbook_text

here = Path(__file__).parent
(here / "isthmus.rules.yml").write_text(rules_text())
(here / "prometheus.yml").write_text(CONFIG)
(here.parent / "ALERTS.md").write_text(runbook_text())
print("wrote isthmus.rules.yml, prometheus.yml and ALERTS.md")  # noqa: T201  a tool for the maintainer
