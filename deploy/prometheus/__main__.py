"""``python -m deploy.prometheus``: write the rule file and the scrape configuration beside this module."""

from pathlib import Path

from deploy.prometheus.rules import CONFIG, rules_text

here = Path(__file__).parent
(here / "isthmus.rules.yml").write_text(rules_text())
(here / "prometheus.yml").write_text(CONFIG)
print("wrote isthmus.rules.yml and prometheus.yml")  # noqa: T201  a tool for the maintainer
