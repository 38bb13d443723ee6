"""The manifests follow the schemas of Kubernetes, fit together, and start commands that exist."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from controlplane.cli.main import root
from deploy.cli import deploy
from events.cli.config import options_of
from events.cli.config_command import command_of

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DOCUMENTS: list[dict[str, Any]] = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / name).read_text())
]
WORKLOADS = [document for document in DOCUMENTS if document["kind"] in {"DaemonSet", "Deployment"}]
VERSIONS = ("1.29", "1.32", kubernetes_validate.latest_version())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_each_document_follows_the_schema(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_document_is_noticed() -> None:
    broken = {**WORKLOADS[0], "spec": {**WORKLOADS[0]["spec"], "replicsa": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_file_is_in_the_kustomization() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


def test_the_image_is_the_one_of_this_release() -> None:
    assert [image["newTag"] for image in KUSTOMIZATION["images"]] == [version("isthmus")]


def named(kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in DOCUMENTS if document["kind"] == kind}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda d: d["metadata"]["name"])
def test_references_lead_somewhere(workload: dict[str, Any]) -> None:
    spec = workload["spec"]
    pod = spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["serviceAccountName"] in named("ServiceAccount")
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        for source in container.get("envFrom", ()):
            assert source["configMapRef"]["name"] in named("ConfigMap")
        assert container["image"] in {image["name"] for image in KUSTOMIZATION["images"]}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda d: d["metadata"]["name"])
def test_containers_start_what_exists_with_flags_that_exist(workload: dict[str, Any]) -> None:
    container = workload["spec"]["template"]["spec"]["containers"][0]
    role = container["name"]
    flags = [word for word in container["args"] if word.startswith("--")]
    known = {f"--{key}" for key in options_of(command_of(role))}
    assert {flag.partition("=")[0] for flag in flags} <= known


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda d: d["metadata"]["name"])
def test_no_container_can_gain_more_than_it_is_given(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    # Only the controller speaks to the API server, for its bridge.
    assert pod["automountServiceAccountToken"] is (pod["serviceAccountName"] == "isthmus-controller")
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        context = container["securityContext"]
        if container["name"] == "host":  # sets /proc/sys and ends; nothing of the host's files is mounted there
            assert (context["privileged"], container.get("volumeMounts")) == (True, None)
            assert container in pod["initContainers"]
            continue
        assert "privileged" not in context
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
        added = ["NET_ADMIN", "BPF", "NET_RAW"] if container["name"] == "agent" else []
        assert context["capabilities"].get("add", []) == added
        assert "memory" in container["resources"]["limits"]
    if workload["kind"] == "Deployment":
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_a_gateways_agent_is_the_agent_with_what_a_gateway_needs_and_each_node_has_one_of_them() -> None:
    changes = (
        ("name: isthmus-agent\n  namespace", "name: isthmus-agent-gateway\n  namespace"),
        ("kubernetes.io/name: isthmus-agent\n", "kubernetes.io/name: isthmus-agent-gateway\n"),
        (
            (
                "io/gateway, operator: DoesNotExist}\n"
                "                  - {key: isthmus/gateway, operator: DoesNotExist}"
            ),
            "io/gateway, operator: Exists}",
        ),
        (
            "NotIn, values: [external]}\n",
            (
                "NotIn, values: [external]}\n              - matchExpressions:\n"
                "                  - {key: isthmus/gateway, operator: Exists}\n"
            ),
        ),
        ("- --ca=/etc/isthmus/ca.pem\n", "- --ca=/etc/isthmus/ca.pem\n            - --gateway\n"),
        ("maxUnavailable: 10%", "maxUnavailable: 1"),
    )
    text = (FOLDER / "agent.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    assert yaml.safe_load(text) == yaml.safe_load((FOLDER / "gateway.yaml").read_text())


KUBECTL = shutil.which("kubectl")
KUSTOMIZE = shutil.which("kustomize")


@pytest.mark.skipif(not (KUBECTL or KUSTOMIZE), reason="neither kubectl nor kustomize is installed")
def test_kustomize_renders_what_follows_the_schema(tmp_path: Path) -> None:
    """By the real tool, from what `isthmus deploy kubernetes` writes, and with an overlay on it."""
    written = CliRunner().invoke(deploy, ["kubernetes", "--to", str(tmp_path / "base")])
    assert written.exit_code == 0, written.output
    (tmp_path / "site").mkdir()
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../base"],
        "images": [{"name": "isthmus", "newName": "images.example/net/isthmus", "newTag": "9"}],
    }
    (tmp_path / "site" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    command = [KUSTOMIZE, "build"] if KUSTOMIZE else [str(KUBECTL), "kustomize"]
    for folder, image in (
        ("base", f"isthmus:{version('isthmus')}"),
        ("site", "images.example/net/isthmus:9"),
    ):
        done = subprocess.run(
            [*command, str(tmp_path / folder)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        rendered = list(yaml.safe_load_all(done.stdout))
        assert len(rendered) == len(DOCUMENTS)
        for document in rendered:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
            assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "isthmus"
            if document["kind"] in {"DaemonSet", "Deployment"}:
                pod = document["spec"]["template"]["spec"]
                for container in (*pod["containers"], *pod.get("initContainers", ())):
                    assert container["image"] == image


def test_the_command_writes_them_all(tmp_path: Path) -> None:
    for kind, pattern in (("kubernetes", "*.yaml"), ("systemd", "isthmus-*")):
        result = CliRunner().invoke(deploy, [kind, "--to", str(tmp_path / kind)])
        assert result.exit_code == 0, result.output
        source = FOLDER.parent / kind
        assert {f.name for f in (tmp_path / kind).iterdir()} == {f.name for f in source.glob(pattern)}


def terms(workload: dict[str, Any]) -> list[list[dict[str, Any]]]:
    affinity = workload["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    found = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [term["matchExpressions"] for term in found]


def chosen(workload: dict[str, Any], labels: dict[str, str]) -> bool:
    """As the scheduler does it: terms are alternatives, the expressions of one all hold."""

    def holds(said: dict[str, Any]) -> bool:
        value = labels.get(said["key"])
        match said["operator"]:
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "In":
                return value in said["values"]
            case "NotIn":
                return value not in said["values"]
        raise AssertionError(said)

    return any(all(map(holds, term)) for term in terms(workload))


def test_each_node_has_one_agent_which_knows_its_kind_and_site(tmp_path: Path) -> None:
    restricted = "isthmus.node-restriction.kubernetes.io"
    arguments = ["kubernetes", "--to", str(tmp_path), "--external-site", "gz", "--external-site", "sz-2"]
    written = CliRunner().invoke(deploy, arguments)
    assert written.exit_code == 0, written.output
    names = yaml.safe_load((tmp_path / "kustomization.yaml").read_text())["resources"]
    assert {file.name for file in tmp_path.glob("*.yaml")} == {*names, "kustomization.yaml"}
    agents = {}
    for name in names:
        for document in yaml.safe_load_all((tmp_path / name).read_text()):
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
            if document["kind"] == "DaemonSet":
                agents[document["metadata"]["name"]] = document
                labels = document["spec"]["template"]["metadata"]["labels"]
                assert document["spec"]["selector"]["matchLabels"] == labels
    for labels, expected in (
        ({}, "isthmus-agent"),
        ({"node-role.kubernetes.io/control-plane": ""}, "isthmus-agent"),
        ({f"{restricted}/kind": "cloud"}, "isthmus-agent"),
        ({f"{restricted}/gateway": ""}, "isthmus-agent-gateway"),
        ({"isthmus/gateway": ""}, "isthmus-agent-gateway"),
        ({f"{restricted}/kind": "external", f"{restricted}/site": "gz"}, "isthmus-agent-external-gz"),
        ({f"{restricted}/kind": "external", f"{restricted}/site": "sz-2"}, "isthmus-agent-external-sz-2"),
        ({f"{restricted}/kind": "external"}, None),
    ):
        found = [name for name, agent in agents.items() if chosen(agent, labels)]
        assert found == ([expected] if expected else []), labels
    arguments = agents["isthmus-agent-external-gz"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--kind=external", "--site=gz"} <= set(arguments)
    assert CliRunner().invoke(deploy, ["kubernetes", "--to", str(tmp_path), "--external-site", "a b"]).exit_code
    for agent in agents.values():
        pod = agent["spec"]["template"]["spec"]
        assert pod["hostNetwork"] is True
        assert pod["tolerations"] == [{"operator": "Exists"}]


def test_options_of_the_controller_bring_their_rights_and_nothing_else_does(tmp_path: Path) -> None:
    def rights(folder: Path) -> set[tuple[str, str]]:
        documents = list(yaml.safe_load_all((folder / "rbac.yaml").read_text()))
        for document in documents:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
        (role,) = (document for document in documents if document["kind"] == "ClusterRole")
        return {(name, verb) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}

    asked = ["kubernetes", "--to", str(tmp_path), "--evict-stale-pods", "--apiserver-backends", "main"]
    asked.append("--service-backends")
    written = CliRunner().invoke(deploy, asked)
    assert written.exit_code == 0, written.output
    assert rights(tmp_path) - rights(FOLDER) == {
        ("pods", "list"), ("pods/eviction", "create"), ("endpointslices", "list"), ("services", "list")
    }  # fmt: skip
    workload = yaml.safe_load((tmp_path / "controller.yaml").read_text())
    arguments = workload["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--evict-stale-pods", "--apiserver-backends=main", "--service-backends"} <= set(arguments)
    known = {f"--{key}" for key in options_of(command_of("controller"))}
    assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known


def test_a_bridge_beside_the_controllers_has_their_rights_and_a_lease_and_they_have_none(
    tmp_path: Path,
) -> None:
    asked = ["kubernetes", "--to", str(tmp_path), "--bridge-beside", "--evict-stale-pods"]
    written = CliRunner().invoke(deploy, asked)
    assert written.exit_code == 0, written.output
    listed = yaml.safe_load((tmp_path / "kustomization.yaml").read_text())["resources"]
    assert "bridge.yaml" in listed
    documents = list(yaml.safe_load_all((tmp_path / "bridge.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (role,) = (document for document in documents if document["kind"] == "Role")
    assert role["rules"] == [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
    ]
    pods = {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in (*documents, yaml.safe_load((tmp_path / "controller.yaml").read_text()))
        if document["kind"] == "Deployment"
    }
    bridge, controller = pods["isthmus-bridge"], pods["isthmus-controller"]
    assert (bridge["automountServiceAccountToken"], controller["automountServiceAccountToken"]) == (True, False)
    for pod, command, flag in ((bridge, "kubernetes", True), (controller, "controller", False)):
        arguments = pod["containers"][0]["args"]
        assert arguments[0] == command
        assert ("--evict-stale-pods" in arguments) == flag
        assert "--kubernetes" not in arguments
        found = root.get_command(click.Context(root), command)
        assert found is not None
        known = {option for one in found.params for option in one.opts}
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known
    assert bridge["tolerations"] == [{"operator": "Exists"}]
    refused = CliRunner().invoke(deploy, ["kubernetes", "--all-in-one", "--bridge-beside"])
    assert refused.exit_code
    assert "--bus" in str(refused.exception)


def test_the_image_carries_every_plugin_that_our_file_names() -> None:
    """And the init container keeps what the host has."""
    dockerfile = (FOLDER.parent / "container" / "Dockerfile").read_text()
    moved = next(line for line in dockerfile.splitlines() if "/opt/cni/bin/)" in line)
    assert {"bandwidth", "bridge", "host-local", "loopback", "portmap", "ptp"} <= set(moved.split())
    assert "COPY --from=build /opt/cni-isthmus /opt/cni/bin/isthmus\n" in dockerfile
    agent = next(document for document in WORKLOADS if document["metadata"]["name"] == "isthmus-agent")
    script = next(c for c in agent["spec"]["template"]["spec"]["initContainers"] if c["name"] == "cni-plugins")
    assert script["command"] == ["/bin/sh", "-ec"]


def test_the_init_container_installs_plugins_and_keeps_those_of_the_host(tmp_path: Path) -> None:
    agent = next(document for document in WORKLOADS if document["metadata"]["name"] == "isthmus-agent")
    container = next(
        c for c in agent["spec"]["template"]["spec"]["initContainers"] if c["name"] == "cni-plugins"
    )
    image, host = tmp_path / "image", tmp_path / "host"
    for folder in (image, host):
        folder.mkdir()
    given = ((image, "ptp"), (image, "loopback"), (host, "loopback"), (image, "isthmus"), (host, "isthmus"))
    for folder, name in given:
        (folder / name).write_text(f"#!/bin/sh\n# {folder.name}\n")
        (folder / name).chmod(0o755)
    script = container["args"][0].replace("/opt/cni/bin", str(image)).replace("/host/bin", str(host))
    for _ in range(2):
        subprocess.run(["/bin/sh", "-ec", script], check=True, timeout=30)
    assert sorted(file.name for file in host.iterdir()) == ["isthmus", "loopback", "ptp"]
    assert "host" in (host / "loopback").read_text()
    assert "image" in (host / "isthmus").read_text(), "ours is this release's"
    assert (host / "ptp").stat().st_mode & 0o111
