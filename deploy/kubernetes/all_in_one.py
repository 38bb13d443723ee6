"""One file for ``kubectl apply -f``: bus, issuer, controller and agents; or the last two with one's own bus.

Text from the manifests of this folder; nothing here talks to anybody.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploy.kubernetes.values import Values
from deploy.kubernetes.variants import (
    controller_options,
    external,
    replaced,
    resourced,
    valued_agent,
    valued_bridge,
    valued_controller,
    without_bridge,
)

HERE = Path(__file__).parent
NAMESPACE = "isthmus-system"
BUS_CONFIG, ENROLMENT, OPERATOR = "isthmus-bus", "isthmus-enrolment", "isthmus-operator"
"""The ConfigMap that says where the bus is, and the Secrets by which agents ask and operators command."""


class OwnBus(NamedTuple):
    """What agents, controllers and bridges need of a bus of one's own. All but ``ca`` is secret."""

    ca: str
    enrolment: str
    controller: str
    bridge: str = ""


def render(values: Values, own: OwnBus | None = None) -> str:
    """The file. ``own`` belongs to values with ``bus.urls``, and makes the text a secret."""
    parts = [_shipped("namespace.yaml"), _settings(values), _rbac(values, own)]
    if own is None:
        parts.append(_control(values))
    else:
        parts += [_bus_config(values, own), _own_controller(values)]
        if values.bridge == "beside":
            bridge = valued_bridge(_options(_shipped("beside/bridge.yaml"), values), values)
            parts.append(replaced(bridge, "          env:\n", f"          env:\n{_BUS_ENV}"))
    agent = _shipped("agent.yaml")
    agents = [agent, *(external(agent, site) for site in dict.fromkeys(values.external_sites))]
    parts += [_agent(text, values) for text in (*agents, _shipped("gateway.yaml"))]
    parts.append(_shipped("network-policy.yaml"))
    plan = f"isthmus plan --cidr {values.pod_cidr} --pods {values.pods_per_node} --services {values.services}"
    head = (
        "# Isthmus by one file, from `isthmus deploy kubernetes --all-in-one`: kubectl apply -f FILE\n"
        "# Wants Kubernetes 1.30 or later, kube-controller-manager without --allocate-node-cidrs,\n"
        f"# maxPods at most {values.pods_per_node - 3}; --service-cidr is what "
        f"`{plan}` names.\n"
    )
    return head + "---\n".join(part.removeprefix("---\n") for part in parts)


def config_map(name: str, data: Mapping[str, str]) -> dict[str, object]:
    """A ConfigMap of ours as an object of the API."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(name), "data": dict(data)}


def secret(name: str, data: Mapping[str, str]) -> dict[str, object]:
    """A Secret of ours as an object of the API."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _meta(name), "type": "Opaque", "data": encoded}


def _meta(name: str) -> dict[str, object]:
    labels = {"app.kubernetes.io/part-of": "isthmus"}
    return {"name": name, "namespace": NAMESPACE, "labels": labels}


def _shipped(name: str) -> str:
    return (HERE / name).read_text()


def _document(thing: object) -> str:
    """An object of the API as a document: JSON is YAML."""
    return msgspec.json.format(msgspec.json.encode(thing), indent=2).decode() + "\n"


def _settings(values: Values) -> str:
    """The cluster's name and how it is defined when its log is new."""
    plan = msgspec.json.encode(values.definition).decode()
    settings = {"ISTHMUS_CLUSTER": values.cluster_name, "ISTHMUS_LOG_LEVEL": values.log_level}
    return "---\n".join(
        _document(made)
        for made in (config_map("isthmus", settings), config_map("isthmus-plan", {"plan.json": plan}))
    )


def _rbac(values: Values, own: OwnBus | None) -> str:
    text = _options(_shipped("rbac.yaml"), values)
    if own is None:
        return text + _shipped("all_in_one/rbac.yaml")
    return text


def _options(text: str, values: Values) -> str:
    return controller_options(
        text,
        evict=values.evict_stale_pods,
        reservation=values.apiserver_backends,
        services=values.service_backends,
    )


def _control(values: Values) -> str:
    text = valued_controller(_options(_shipped("all_in_one/control.yaml"), values), values)
    text = replaced(text, "/var/lib/isthmus-control", values.bus.storage_path)
    text = replaced(text, "127.0.0.1:4222", f"127.0.0.1:{values.bus.port}")
    host = "            - --host=$(HOST_IP)\n"
    text = replaced(text, host, f"{host}            - --port={values.bus.port}\n")
    selector = "        kubernetes.io/os: linux\n"
    lines = "".join(
        f"        {msgspec.json.encode(key).decode()}: {msgspec.json.encode(value).decode()}\n"
        for key, value in values.bus.node_selector.items()
    )
    text = replaced(text, selector, selector + lines)
    text = resourced(text, "bus", values.resources.bus)
    return resourced(text, "issuer", values.resources.issuer)


def _own_controller(values: Values) -> str:
    """Two controllers, with the plan."""
    text = _shipped("controller.yaml")
    text = without_bridge(text) if values.bridge == "beside" else _options(text, values)
    text = valued_controller(text, values)
    text = replaced(
        text, "            - --replicas=3\n", "            - --define=/etc/isthmus-plan/plan.json\n"
    )
    text = replaced(text, "          env:\n", f"          env:\n{_BUS_ENV}")
    mount = "            - name: data\n              mountPath: /var/lib/isthmus\n"
    text = replaced(
        text, mount, f"{mount}            - name: plan\n              mountPath: /etc/isthmus-plan\n"
    )
    return f"{text.rstrip()}\n        - name: plan\n          configMap:\n            name: isthmus-plan\n"


_BUS_ENV = """\
            - name: ISTHMUS_BUS
              valueFrom:
                configMapKeyRef: {name: isthmus-bus, key: bus}
"""


def _bus_config(values: Values, own: OwnBus) -> str:
    made = (
        config_map(BUS_CONFIG, {"bus": ",".join(values.bus.urls), "ca.pem": own.ca}),
        secret(ENROLMENT, {"pods.creds": own.enrolment}),
        secret("isthmus-controller", {"controller.creds": own.controller, "ca.pem": own.ca}),
        *([secret("isthmus-bridge", {"bridge.creds": own.bridge, "ca.pem": own.ca})] if own.bridge else ()),
    )
    return "---\n".join(_document(each) for each in made)


def _agent(text: str, values: Values) -> str:
    """An agent that asks for its credentials instead of finding a token."""
    before, mark, rest = text.partition("        - name: redeem\n")
    _, _, containers = rest.partition("      containers:\n")
    if not mark or not containers:
        raise AssertionError("the manifest has no container that redeems a token")
    containers = replaced(containers, "          env:\n", f"          env:\n{_BUS_ENV}")
    made = (
        f"{before}{_shipped('all_in_one/enrol.yaml')}      containers:\n{containers.rstrip()}\n"
        f"{_shipped('all_in_one/volumes.yaml')}"
    )
    return valued_agent(made, values)
