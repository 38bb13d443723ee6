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
    "churn/test_replay.py": 30, "commands/test_every_command.py": 75, "console/test_api.py": 130,
    "controlplane/test_machine.py": 25, "deploy/test_guide.py": 100, "deploy/test_rolling_upgrade.py": 110,
    "e2e/test_lab_bus.py": 210, "e2e/test_lab_clb.py": 50, "e2e/test_lab_mesh.py": 45,
    "events/test_deployments.py": 25, "fuzz/test_fuzz.py": 45, "join/test_join.py": 40,
    "kubernetes/test_all_in_one.py": 50, "mesh/test_mesh_combinations.py": 35,
    "mesh/test_mesh_simulation.py": 25, "nodeagent/test_fastpath_events.py": 35,
    "nodeagent/test_takeover.py": 55, "nodeagent/test_wireguard.py": 45,
    "nodeagent/test_wireguard_keys.py": 45, "replay/test_fast_check.py": 25, "replay/test_files.py": 20,
    "replay/test_on_the_bus.py": 20, "security/test_hostile_agents.py": 55,
    "security/test_hostile_identity.py": 65, "security/test_lifecycle.py": 25,
    "service/test_controller_bus.py": 20, "service/test_parking.py": 40,
    "service/test_several_controllers.py": 20, "service/test_terminal.py": 35, "service/test_terms.py": 80,
    "simulation/test_simulation.py": 90,
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
    """``-n auto``: four more than there are cores, because real clusters and kernels often only wait.

    They wait for promised times of the product (a lease, a fencing time), so most cannot be shortened: a test
    in namespaces computes for a third of its time. Those of ``make test-fast`` only compute.
    """
    return len(os.sched_getaffinity(0)) + 4 * (os.environ.get("ISTHMUS_HYPOTHESIS") != "fast")


# Deterministic by default: the same commit gives the same verdict. `ISTHMUS_HYPOTHESIS=explore`
# searches with new seeds and a larger budget (`make soak`), `fast` with a small one (`make test-fast`).
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", derandomize=True, deadline=None, max_examples=10)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("ISTHMUS_HYPOTHESIS", "ci"))

# A job in the background of a shell starts with SIGINT ignored, one under nohup with SIGHUP, and its children
# inherit that; the tests that press Ctrl-C or close a terminal need them as they are in a terminal.
if threading.current_thread() is threading.main_thread():
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)

# Tables are as wide as where there is no terminal, whoever runs the tests: pytest-xdist tells its workers 80.
os.environ["COLUMNS"] = "120"

# The nodes of a test are one machine to the operating system: each agent makes a uid of its own.
os.environ["ISTHMUS_MACHINE_ID"] = "none"

# Hundreds of our processes are started: each reads the byte code that the first one wrote, whatever the
# caller's shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
