"""Settings for the whole suite. Fixtures live beside the tests that need them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.flakes import pytest_addoption, pytest_terminal_summary

__all__ = ["pytest_addoption", "pytest_terminal_summary"]

COSTS_S = {"slow": 25.0, "netns": 8.0, "bus": 0.5}
"""What a test takes by the first of these marks that it has, roughly; one without takes next to nothing."""

LONG_S = {
    "churn/test_replay.py": 80, "commands/test_every_command.py": 70, "controlplane/test_long_history.py": 15,
    "join/test_join.py": 70, "kubernetes/test_all_in_one.py": 35, "replay/test_on_the_bus.py": 45,
    "events/test_deployments.py": 30, "events/test_live.py": 20, "nodeagent/test_fastpath_events.py": 50,
    "nodeagent/test_messages.py": 20, "nodeagent/test_takeover.py": 80, "nodeagent/test_wireguard.py": 65,
    "nodeagent/test_wireguard_identity.py": 35, "nodeagent/test_wireguard_keys.py": 50,
    "observability/test_dashboards.py": 50,
    "security/test_hostile_agents.py": 60, "security/test_hostile_identity.py": 45,
    "security/test_lifecycle.py": 30, "security/test_rollback.py": 15, "security/test_service_accounts.py": 15,
    "security/test_shared_tokens.py": 15, "service/test_controller_bus.py": 30, "service/test_parking.py": 35,
    "service/test_poison.py": 15, "service/test_readmodel.py": 15, "service/test_several_controllers.py": 25,
    "service/test_terminal.py": 70, "service/test_terms.py": 95,
}  # fmt: skip
"""Files that take over one and a half times what their marks say; measured, five workers on two cores."""


def _cost_s(item: pytest.Item) -> float:
    return next((cost for mark, cost in COSTS_S.items() if item.get_closest_marker(mark)), 0.02)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a file stays on one worker, and one that begins last keeps all others waiting."""
    costs: dict[str, float] = defaultdict(float)
    for item in items:
        costs[str(item.path)] += _cost_s(item)
    costs.update({path: LONG_S.get("/".join(Path(path).parts[-2:]), cost) for path, cost in costs.items()})
    items.sort(key=lambda item: (-costs[str(item.path)], str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: three more than there are cores, because real clusters and kernels often only wait.

    They wait for promised times of the product (a lease, a fencing time), so most cannot be shortened: a test
    in namespaces computes for a third of its time. Those of ``make test-fast`` only compute.
    """
    return len(os.sched_getaffinity(0)) + 3 * (os.environ.get("ISTHMUS_HYPOTHESIS") != "fast")


# Deterministic by default: the same commit gives the same verdict. `ISTHMUS_HYPOTHESIS=explore`
# searches with new seeds and a larger budget (`make soak`), `fast` with a small one (`make test-fast`).
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", derandomize=True, deadline=None, max_examples=10)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("ISTHMUS_HYPOTHESIS", "ci"))

# A job in the background of a shell starts with SIGINT ignored, and its children inherit that; the
# tests that press Ctrl-C need it as it is in a terminal.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tables are as wide as where there is no terminal, whoever runs the tests: pytest-xdist tells its workers 80.
os.environ["COLUMNS"] = "120"

# The nodes of a test are one machine to the operating system: each agent makes a uid of its own.
os.environ["ISTHMUS_MACHINE_ID"] = "none"

# Hundreds of our processes are started: each reads the byte code that the first one wrote, whatever the
# caller's shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
