"""Every answer again, the slow way: plain JSON, one pass, no code of the tool or of the control plane."""

from __future__ import annotations

import ipaddress
import json
from typing import Any


def parse(messages: Any) -> list[dict[str, Any]]:
    """Raw stored messages as plain dictionaries."""
    events = []
    for m in messages:
        kind = m.headers["ce-type"].rsplit(".", 1)[0]
        events.append(
            {
                "seq": m.sequence,
                "kind": kind,
                "ns": m.recorded_ns,
                "actor": m.headers["ce-actor"].replace("%40", "@"),
                "command": m.headers["ce-commandid"],
                **{f"b_{k}": v for k, v in json.loads(m.body).items()},
            }
        )
    return events


def world(events: list[dict[str, Any]], at: int) -> dict[str, Any]:
    """The state behind event ``at``."""
    w: dict[str, Any] = {
        "capacity": 0,
        "cursor": 0,
        "nodes": {},
        "ranges": {},
        "clb": {},
        "networks": {},
        "unreachable": set(),
        "fenced": set(),
        "cidrs": [],
    }
    for e in events:
        if e["seq"] > at:
            break
        kind = e["kind"]
        if kind == "cluster.defined":
            w["capacity"] += e["b_capacity"]
            w["cidrs"].append(e["b_container_cidr"])
            w["size"], w["service"] = e["b_range_size"], e["b_service_cidr"]
        elif kind == "cluster.cidr-appended":
            w["capacity"] += e["b_capacity"]
            w["cidrs"].append(e["b_cidr"])
        elif kind == "cluster.network-declared":
            w["networks"][e["b_network"]["cidr"]] = e["b_network"]
        elif kind == "node.joined":
            w["nodes"][e["b_node"]] = {k: e[f"b_{k}"] for k in ("uid", "kind", "underlay", "announced")}
        elif kind == "node.underlay-changed":
            w["nodes"][e["b_node"]].update(underlay=e["b_underlay"], announced=e["b_announced"])
        elif kind in ("node.left", "node.fenced"):
            del w["nodes"][e["b_node"]]
            w["unreachable"].discard(e["b_node"])
            if kind == "node.fenced":
                w["fenced"].add(e["b_uid"])
        elif kind == "node.unreachable":
            w["unreachable"].add(e["b_node"])
        elif kind == "node.recovered":
            w["unreachable"].discard(e["b_node"])
        elif kind == "range.allocated":
            w["ranges"][e["b_cidr"]] = {
                "phase": "allocated",
                "node": e["b_node"],
                "uid": e["b_uid"],
                "epoch": e["seq"],
            }
            w["cursor"] = e["b_cursor_after"]
        elif kind == "range.draining":
            w["ranges"][e["b_cidr"]]["phase"] = "draining"
        elif kind == "range.quarantined":
            w["ranges"][e["b_cidr"]]["phase"] = "quarantined"
        elif kind == "range.freed":
            del w["ranges"][e["b_cidr"]]
        elif kind == "clb.reserved":
            w["clb"][e["b_name"]] = [a["address"] for a in e["b_addresses"]]
        elif kind == "clb.released":
            del w["clb"][e["b_name"]]
    return w


def phases(w: dict[str, Any]) -> dict[str, int]:
    """How many ranges are in each phase."""
    found = {"allocated": 0, "draining": 0, "quarantined": 0}
    for held in w["ranges"].values():
        found[held["phase"]] += 1
    found["free"] = w["capacity"] - len(w["ranges"])
    return found


def who_pod(events: list[dict[str, Any]], address: str, at: int) -> dict[str, Any] | None:
    """For a pod address: range, its phase, and its latest allocation up to ``at`` with its end."""
    w = world(events, at)
    ip = ipaddress.ip_address(address)
    latest = None
    for e in events:
        if e["kind"] == "range.allocated" and e["seq"] <= at and ip in ipaddress.ip_network(e["b_cidr"]):
            latest = e
    if latest is None:
        return None
    end = None
    for e in events:
        if e["kind"] == "range.draining" and e["b_epoch"] == latest["seq"]:
            end = e["seq"]
    held = w["ranges"].get(latest["b_cidr"])
    return {
        "range": latest["b_cidr"],
        "phase": held["phase"] if held else "free",
        "node": latest["b_node"],
        "uid": latest["b_uid"],
        "epoch": latest["seq"],
        "to": end,
        "actor": latest["actor"],
        "command": latest["command"],
    }


def who_underlay(events: list[dict[str, Any]], address: str, at: int) -> tuple[str, str, bool] | None:
    """For an underlay address: who last had it by ``at`` (node, uid), and whether it still had it then."""
    last = None
    for e in events:
        gives = e["seq"] <= at and e["kind"] in ("node.joined", "node.underlay-changed")
        if gives and address in (e["b_underlay"], e["b_announced"]):
            last = e
    if last is None:
        return None
    still = True
    for e in events:
        ends = e["kind"] in ("node.left", "node.fenced", "node.underlay-changed")
        if (
            last["seq"] < e["seq"] <= at
            and ends
            and e["b_node"] == last["b_node"]
            and e["b_uid"] == last["b_uid"]
        ):
            still = False
    return last["b_node"], last["b_uid"], still


def speaks_of_node(events: list[dict[str, Any]], node: str) -> list[int]:
    """Events that name the node, and what became of its ranges."""
    epochs = {e["seq"] for e in events if e["kind"] == "range.allocated" and e["b_node"] == node}
    return [e["seq"] for e in events if e.get("b_node") == node or e.get("b_epoch") in epochs]


def last_setters(events: list[dict[str, Any]], node: str, at: int) -> dict[str, int]:
    """Attribute → sequence of the event that last set it."""
    found: dict[str, int] = {}
    uid = ""
    for e in events:
        if e["seq"] > at or e.get("b_node") != node:
            continue
        kind, seq = e["kind"], e["seq"]
        if kind == "node.joined":
            uid = e["b_uid"]
            names = ("member", "reachable", "uid", "kind", "site", "underlay", "announced", "vtep_mac")
        elif kind == "node.underlay-changed":
            names = ("underlay", "announced")
        elif kind in ("node.unreachable", "node.recovered"):
            names = ("reachable",)
        elif kind in ("node.left", "node.fenced"):
            names = ("member",)
        elif kind == "range.allocated" or (kind == "range.draining" and e["b_uid"] == uid):
            names = ("range", "epoch")
        elif kind == "allocation.refused":
            names = ("last allocation refused",)
        else:
            names = ()
        found.update(dict.fromkeys(names, seq))
    return found


def lifetimes(events: list[dict[str, Any]]) -> list[float]:
    """Seconds from each uid's joining to its end."""
    born = {e["b_uid"]: e["ns"] for e in events if e["kind"] == "node.joined"}
    return sorted(
        (e["ns"] - born[e["b_uid"]]) / 1e9 for e in events if e["kind"] in ("node.left", "node.fenced")
    )


def reuse(events: list[dict[str, Any]]) -> list[int]:
    """Allocations between two of the same range."""
    order = [e["b_index"] for e in events if e["kind"] == "range.allocated"]
    found = []
    for i, index in enumerate(order):
        earlier = [j for j in range(i) if order[j] == index]
        if earlier:
            found.append(i - earlier[-1] - 1)
    return sorted(found)
