"""Every table that must know a type of event knows it: whoever adds one is told here what is still to do.

A type that a table leaves out on purpose stands here with the reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from controlplane.cluster import invariants
from controlplane.cluster.evolve import HANDLERS
from controlplane.console.event_text import MARKS, mark, sentence
from controlplane.readmodel import cluster_rows, gateway_rows
from events.codec import decode_event
from events.types import EVENT_TYPES, Event

ROOT = Path(__file__).resolve().parents[2]
TYPES = {cls.__name__: cls for cls in EVENT_TYPES}
ALL = set(TYPES)

CLB = {name for name in ALL if name.startswith("Clb")}
REFUSALS = {"AllocationRefused", "ClbRefused", "ConflictRefused"}
GATEWAYS = {"NodeGatewayMarked", "NodeGatewayUnmarked"}
NETWORKS = {"NetworkDeclared", "NetworkWithdrawn", "ConflictOverridden"}
ENTRIES = {"EntryAdded", "EntryRemoved"}
ADOPTIONS = {"AdoptionBegun", "AdoptionEnded"}
BESIDE = {"EventsParked", "JoinTokenUsed", "SharedTokenUsed"}
"""They say something about the log and about credentials, nothing about the cluster."""
PATHS = {"PathLost", "PathRestored"}
"""They say what packets met, and give or take nothing."""

ENCRYPTION = {"ClusterEncryptionChanged", "NodeKeyChanged"}
"""How packets travel; the fold itself holds a key to one member."""
NAT = {"NodeNatChanged"}
"""By which way packets travel; it changes who may have an address, and no row of the tunnel."""

WITHOUT_CHECK = (
    REFUSALS | NETWORKS | BESIDE | ADOPTIONS | PATHS | ENCRYPTION
    | {"NodeUnreachable", "NodeRecovered", "NodeGatewayMarked", "ClusterDeleted"}
    | {"ClbBackendAdded", "ClbBackendRemoved", "ClbBackendHealthChanged", "EntryRemoved"}
)  # fmt: skip
"""They can break none of the invariants: they give, take and move no range and no address."""

WITHOUT_ROWS_OF_PEERS = (
    CLB | ENTRIES | REFUSALS | GATEWAYS | NETWORKS | BESIDE | ADOPTIONS | PATHS | ENCRYPTION | NAT
    | {"NodeBound"}
    | {"ClusterDefined", "ClusterDeleted", "CidrAppended", "NodeLeft", "NodeFenced", "NodeUnreachable"}
    | {"NodeRecovered", "RangeQuarantined", "RangeFreed"}
)  # fmt: skip
"""They change no row of a kernel: a range that drains takes the rows away before what follows it."""

NOT_IMAGINED = (
    (CLB - {"ClbReserved", "ClbReleased"})
    | REFUSALS
    | GATEWAYS
    | BESIDE
    | PATHS
    | ENCRYPTION
    | NAT
    | {"RangeDraining", "NodeBound"}
)
"""What another plan would not change (gateways and their backends, what packets meet), or decides anew
(refusals, drains)."""


def named(path: str, function: str) -> set[str]:
    """The event types that the patterns and isinstance tests of a function name."""
    tree = ast.parse((ROOT / path).read_text())
    body = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    found: set[str] = set()
    for node in ast.walk(body):
        if isinstance(node, ast.MatchClass):
            found.add(ast.unparse(node.cls).rpartition(".")[2])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            found |= {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            found |= {name.attr for name in ast.walk(node.args[1]) if isinstance(name, ast.Attribute)}
    # A pattern and an isinstance test match what is derived from the type, too.
    return {name for name, cls in TYPES.items() if any(base.__name__ in found for base in cls.__mro__)}


def complete(table: set[str], left_out: set[str], what: str) -> None:
    assert not table & left_out, f"{what} knows them after all: {sorted(table & left_out)}"
    missing = sorted(ALL - table - left_out)
    assert not missing, f"{what} does not know {missing}: teach it, or say here why it need not"
    assert left_out <= ALL, f"there are no such types: {sorted(left_out - ALL)}"


def names(types: object) -> set[str]:
    return {cls.__name__ for cls in types} & ALL  # type: ignore[attr-defined]


def test_the_fold() -> None:
    complete(names(HANDLERS), set(), "controlplane/cluster/evolve.py")


def test_the_read_model() -> None:
    table = names(cluster_rows.HANDLERS) | names(gateway_rows.HANDLERS)
    complete(table, set(), "controlplane/readmodel/cluster_rows.py or gateway_rows.py")


def test_the_invariants() -> None:
    complete(names(invariants.CHECKS), WITHOUT_CHECK, "controlplane/cluster/invariants.py")


def test_the_attestation() -> None:
    table = named("controlplane/controller/agents/attestation.py", "fold")
    complete(table, WITHOUT_ROWS_OF_PEERS, "controlplane/controller/agents/attestation.py")


def test_what_if() -> None:
    complete(named("replay/queries/whatif.py", "take"), NOT_IMAGINED, "replay/queries/whatif.py")


def golden(cls: type[Event]) -> Event:
    file = ROOT / "tests" / "replay" / "golden" / f"{cls.type_name()}.json"
    assert file.exists(), f"no golden file {file.name}: python -m tests.replay.make_golden"
    return decode_event(cls.type_name(), file.read_bytes().rstrip(b"\n"), 1)


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.__name__)
def test_golden_files_and_the_sentence_for_the_feed(cls: type[Event]) -> None:
    event = golden(cls)
    assert type(event) is cls
    bare = f"{event.aggregate} {event.entity} {event.verb.replace('-', ' ')}"
    assert sentence(event) not in {"", bare}, "controlplane/console/event_text.py has no sentence for it"
    assert sentence(event).isprintable()
    assert mark(event) != "•", "controlplane/console/event_text.py has no mark for it"
    assert len(mark(event)) == 1


def test_no_mark_outlives_its_event() -> None:
    assert set(MARKS) <= {cls.verb for cls in EVENT_TYPES}


def test_a_type_that_a_table_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(invariants.CHECKS, TYPES["RangeFreed"])
    with pytest.raises(AssertionError, match="RangeFreed"):
        complete(names(invariants.CHECKS), WITHOUT_CHECK, "it")
    with pytest.raises(AssertionError, match="NodeLeft"):
        complete(names(invariants.CHECKS), WITHOUT_CHECK | {"NodeLeft"}, "it")
