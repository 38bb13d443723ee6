"""The second device: for peers that are reached through a NAT, and made only where there are some.

Its packets have one source port, which the tunnel's have not (they need many, for queues and links that are
chosen by it). So the tunnel's own device stays as it is for everybody else. It has the tunnel's MAC, address
and MTU, another VNI, and rows of its own kind: an FDB row names the port at which the peer was seen.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from events.errors import IsthmusError
from nodeagent.conditions import Conditions
from nodeagent.config import DEVICE_NAME_LIMIT
from nodeagent.dataplane import host_settings
from nodeagent.dataplane.desired import difference
from nodeagent.dataplane.merging import Merging
from nodeagent.dataplane.reconcile import Outcome, reconcile
from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceSpec
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Rows
from nodeagent.netlink.socket import Engine, KernelRefusal

log = logging.getLogger("isthmus.agent.device")

PROBE_VNI = 0xFFFFFE
"""Of datagrams that look like the tunnel's and are for no device: :mod:`nodeagent.nat.packets`."""
CONDITION = "second device"
KEY = b"second device "
"""Before the keys of its rows and properties where they are counted beside the tunnel's."""


def second_vni(vni: int) -> int:
    """The VNI of the second device of a cluster."""
    return vni + 1 if vni + 1 < PROBE_VNI else vni - 1


def second_name(tunnel: str) -> str:
    """The second device that belongs to a tunnel device."""
    return f"{tunnel[: DEVICE_NAME_LIMIT - 4]}-nat"


class SecondDevice:
    """``rows`` are the neighbours and FDB rows to have on it (no routes); ``ifindex`` is 0 while there is
    none."""

    def __init__(self, tunnel: str, conditions: Conditions, *, gro: bool | None = None) -> None:
        """``gro``: receive offload, as for the tunnel; None finds out whether it is worth it."""
        self.name = second_name(tunnel)
        self._conditions = conditions
        self._merging = Merging(gro)
        self.wanted = False
        self.rows = Rows.empty()
        self.ifindex = 0
        self.spec: DeviceSpec | None = None

    def prepare(self, tunnel: DeviceSpec, allow: Callable[[str], bool]) -> tuple[str, ...]:
        """Bring it into its state beside the tunnel's device, or take it away; what was done, in words.

        What is in the way is a condition. Raises OSError.
        """
        if not self.wanted:
            gone = links.remove_device(self.name)
            self.ifindex, self.spec = 0, None
            return (f"removed {self.name}",) if gone else ()
        spec = msgspec.structs.replace(tunnel, name=self.name, vni=second_vni(tunnel.vni), fixed_source=True)
        on_purpose = spec != self.spec
        try:
            outcome = links.ensure_device(spec, (lambda _: True) if on_purpose else allow)
        except IsthmusError as error:
            self._conditions.set(CONDITION, f"peers behind NAT are not reached: {error.message}")
            self.ifindex, self.spec = 0, None
            return ()
        if outcome.index != self.ifindex or outcome.actions:
            _, failed = host_settings.prepare_host(self.name, behind_nat=False, gro=self._merging.on)
            self._conditions.set(CONDITION, "; ".join(failed))
        with contextlib.suppress(OSError):  # receive offload only makes it faster
            self._merging.look(self.name, spec.mtu)
        self.ifindex, self.spec = outcome.index, spec
        return outcome.actions

    def compare(self, engine: Engine, allow: Callable[[Operation], bool] | None) -> Outcome | None:
        """Make its rows agree; None without the device. Raises AnswersLost, OSError."""
        if not self.ifindex:
            return None
        guarded = (
            None if allow is None else lambda operation: allow(operation._replace(key=KEY + operation.key))
        )
        return reconcile(engine, self.ifindex, self.rows, allow=guarded, routes=False)

    def change(self, rows: Rows) -> tuple[list[Operation], list[Operation]]:
        """The rows to have from now on: what to write before routes to them, what to remove behind these."""
        changes = difference(rows, self.rows)
        self.rows = rows
        puts = [operation for operation in changes if operation.action is Action.PUT]
        return puts, changes[len(puts) :]

    def apply(self, engine: Engine, operations: list[Operation]) -> list[KernelRefusal]:
        """Write some of them now. Raises AnswersLost, OSError."""
        return engine.execute(operations, self.ifindex) if self.ifindex and operations else []
