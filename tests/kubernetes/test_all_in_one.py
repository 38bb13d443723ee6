"""One file: what it renders, and that its containers make Nodes ready with nobody at the keyboard."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from controlplane.cli.main import root
from deploy.cli import deploy
from deploy.credentials.authority import Authority
from deploy.credentials.certificates import create_authority
from deploy.kubernetes.all_in_one import render
from deploy.kubernetes.values import Values, checked, read_values
from events.errors import Usage
from tests.kubernetes.apiserver import ApiServer
from tests.kubernetes.manifests import ALL
from tests.waiting import until

ISTHMUS = Path(sys.executable).with_name("isthmus")
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for document in documents:
        if document["kind"] in {"DaemonSet", "Deployment"}:
            yield document, document["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in (*pod.get("initContainers", ()), *pod["containers"])}


def fits(document: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def known(arguments: list[str]) -> None:
    """The command and each of its flags exist."""
    command: click.Command = root
    context, words = click.Context(root, info_name="isthmus"), list(arguments)
    while words and not words[0].startswith("-"):
        assert isinstance(command, click.Group), arguments
        found = command.get_command(context, words.pop(0))
        assert found is not None, arguments
        command = found
    flags = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words} <= flags, arguments


@pytest.mark.parametrize("own", [False, True], ids=["bus", "own bus"])
@pytest.mark.parametrize("said", [{}, ALL], ids=["as shipped", "every value"])
def test_what_is_rendered_follows_the_schema_and_fits_together(
    said: dict[str, Any], own: bool, tmp_path: Path
) -> None:
    (tmp_path / "values.json").write_text(json.dumps(said))
    arguments = ["kubernetes", "--all-in-one", "--values", str(tmp_path / "values.json")]
    if own:
        Authority.create(tmp_path / "store")
        create_authority(tmp_path / "store" / "tls")
        arguments += ["--bus", "tls://bus.example:4222", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(deploy, arguments)
    assert done.exit_code == 0, done.output
    values = checked(said, "test")
    documents = [document for document in yaml.safe_load_all(done.output) if document]
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert len(named) == len(documents)
    assert ("Deployment", "isthmus-controller" if own else "isthmus-control") in named
    plan = next(each for each in documents if each["metadata"]["name"] == "isthmus-plan")
    assert json.loads(plan["data"]["plan.json"])["container_cidr"] == values.pod_cidr
    made = {("ConfigMap", "isthmus-bus"), ("Secret", "isthmus-enrolment")}  # by the first start, without a bus
    for document in documents:
        fits(document)
    for document, pod in pods(documents):
        assert ("ServiceAccount", pod["serviceAccountName"]) in named
        volumes = {each["name"] for each in pod["volumes"]}
        for volume in pod["volumes"]:
            for kind, name in (
                ("ConfigMap", volume.get("configMap", {}).get("name")),
                ("Secret", volume.get("secret", {}).get("secretName")),
            ):
                assert name is None or (kind, name) in (named if own else named | made), volume
        for container in containers(pod).values():
            assert container["image"] == values.image.name
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            if "command" not in container:
                known(container["args"])
        for container in pod["containers"]:
            assert {"livenessProbe", "readinessProbe"} <= container.keys(), container["name"]
        # Before there is any network: on every node, whatever its taints.
        assert pod["hostNetwork"] is True
        if document["kind"] == "Deployment" or not said:
            assert pod["tolerations"] == [{"operator": "Exists"}]
    agents = [pod for document, pod in pods(documents) if document["kind"] == "DaemonSet"]
    assert len(agents) == 2 + len(values.external_sites)
    for pod in agents:
        assert "redeem" not in containers(pod)
        (token,) = next(v for v in pod["volumes"] if v["name"] == "token")["projected"]["sources"]
        assert token["serviceAccountToken"]["audience"] == "isthmus"
        assert pod["automountServiceAccountToken"] is False
        if said:
            given = containers(pod)["agent"]["args"]
            assert {"--mtu=1400", "--underlay=eth1", "--cni-plugin=bridge", "--fastpath=off"} <= set(given)
            assert containers(pod)["agent"]["resources"]["limits"]["memory"] == "1Gi"
            paths = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
            assert {"/usr/lib/cni", "/etc/cni/conf"} <= paths
            assert pod["nodeSelector"]["pool"] == "a"
            assert pod["tolerations"] == ALL["tolerations"]
    if said:
        control = next(pod for document, pod in pods(documents) if document["kind"] == "Deployment")
        assert {
            "--evict-stale-pods", "--apiserver-backends=main", "--service-backends", "--fence-deleted=300"
        } <= set(containers(control)["controller"]["args"])  # fmt: skip
        assert containers(control)["controller"]["resources"]["requests"]["cpu"] == "2"
        rights = next(each for each in documents if each["kind"] == "ClusterRole")
        assert {"pods", "pods/eviction", "services", "endpointslices"} <= {
            r for x in rights["rules"] for r in x["resources"]
        }


def test_the_manifests_of_the_kustomization_take_the_same_values(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(ALL))
    arguments = ["kubernetes", "--values", str(tmp_path / "values.yaml"), "--to", str(tmp_path / "out")]
    done = CliRunner().invoke(deploy, arguments)
    assert done.exit_code == 0, done.output
    names = yaml.safe_load((tmp_path / "out" / "kustomization.yaml").read_text())["resources"]
    assert "agent-external-gz.yaml" in names
    for name in names:
        for document in yaml.safe_load_all((tmp_path / "out" / name).read_text()):
            fits(document)
            if document["kind"] == "DaemonSet":
                assert "--mtu=1400" in document["spec"]["template"]["spec"]["containers"][0]["args"]
            if name == "controller.yaml":
                (made,) = document["spec"]["template"]["spec"]["containers"]
                assert {"--fence-deleted=300", "--service-backends"} <= set(made["args"])
                assert made["resources"]["requests"]["cpu"] == "2"
            if name == "settings.yaml":
                assert document["data"]["ISTHMUS_LOG_LEVEL"] == "debug"


def test_every_fault_of_a_values_file_is_told_at_once(tmp_path: Path) -> None:
    for text, name, words in (
        (
            '{"podCidr": 5, "mtuu": 3, "image": {"x": 1}, "networks": [{"kind": "no", "cidr": "1"}], "bus": 7}',
            "v.json",
            ("podCidr: Expected `str`", "did you mean mtu", "image.x", "networks", "bus is a table"),
        ),
        (
            (
                'podCidr = "10.99.0.1/16"\nmtu = -1\ncniBinDir = "x"\n'
                'externalSites = ["a b"]\n[image]\ntag = "a b"\n'
            ),
            "v.toml",
            ("10.99.0.0/16", "mtu", "cniBinDir", "externalSites", "image.tag"),
        ),
        ("podCidr: [", "v.yaml", ("no YAML",)),
        ("- 1", "v.yml", ("a table of names and values",)),
        ("{", "v.json", ("truncated",)),
        ('bus:\n  urls: ["tls://a:1", "x\\ny: z"]\n  nodeSelector: {"a\\nb": c}',
            "v.yaml", ("urls[1]", "nodeSelector")),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(Usage) as refused:
            read_values(tmp_path / name)
        for word in words:
            assert word in refused.value.message, (text, refused.value.message)
    printed = CliRunner().invoke(deploy, ["values"])
    assert checked(json.loads(printed.output), "printed") == Values()


# --- its containers, run -----------------------------------------------------------------------------

HOST, NODE = "10.88.77.1", "10.88.77.2"
RESTART_S = 0.5


def sh(*words: str) -> None:
    subprocess.run(words, check=True, timeout=30, capture_output=True)


@pytest.fixture
def machine() -> Iterator[str]:
    """A network namespace with a way to the tests' API server, and nowhere else."""
    name = f"kube{os.getpid()}"
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "addr", "add", f"{HOST}/30", "dev", f"{name}h")
        sh("ip", "link", "set", f"{name}h", "up")
        for words in (("addr", "add", f"{NODE}/30", "dev", "eth0"), ("link", "set", "eth0", "up"),
                      ("link", "set", "lo", "up"), ("route", "add", "default", "via", HOST)):  # fmt: skip
            sh("ip", "-n", name, *words)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", f"{name}h"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def empty(log: Path) -> None:
    log.touch()


def tell(name: str, log: Path) -> None:
    print(f"--- {name}\n{log.read_text()[-3000:]}")


def probed(machine: str, pod: dict[str, Any], name: str, kind: str) -> int:
    """The status of what the kubelet asks for."""
    at = containers(pod)[name][kind]["httpGet"]
    words = f"import http.client as h; c = h.HTTPConnection('{at['host']}', {at['port']}, timeout=60)"
    code = f"{words}; c.request('GET', '{at['path']}'); print(c.getresponse().status)"
    done = subprocess.run(
        ["ip", "netns", "exec", machine, sys.executable, "-c", code],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return int(done.stdout)


class Pod:
    """The containers of a pod, run on a machine with their folders put elsewhere."""

    def __init__(self, machine: str, pod: dict[str, Any], places: dict[str, str], said: dict[str, str]) -> None:
        self.machine, self.containers, self.places, self.said = machine, containers(pod), places, said

    def words(self, name: str, *more: str) -> list[str]:
        container = self.containers[name]
        words = [*container["command"], *container["args"]] if "command" in container else [
            str(ISTHMUS), *container["args"]
        ]  # fmt: skip
        for old, new in (*self.places.items(), *((f"$({key})", value) for key, value in self.said.items())):
            words = [word.replace(old, new) for word in words]
        return ["ip", "netns", "exec", self.machine, *words, *more]

    def environment(self) -> dict[str, str]:
        path = f"{ISTHMUS.parent}:{os.environ['PATH']}"  # as in the image
        return {**os.environ, "PATH": path, **self.said}

    async def run(self, name: str, *more: str) -> tuple[int, str]:
        """To its end."""
        process = await asyncio.create_subprocess_exec(
            *self.words(name, *more), env=self.environment(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode or 0, out.decode()

    @asynccontextmanager
    async def running(self, name: str, log: Path, *more: str) -> AsyncIterator[None]:
        """Started, and started anew when it ends, as the kubelet does it."""
        empty(log)
        processes: list[asyncio.subprocess.Process] = []

        async def keep() -> None:
            with log.open("wb") as file:
                while True:
                    processes.append(
                        await asyncio.create_subprocess_exec(
                            *self.words(name, *more), env=self.environment(), stdout=file, stderr=file
                        )
                    )
                    await processes[-1].wait()
                    await asyncio.sleep(RESTART_S)

        keeping = asyncio.create_task(keep())
        try:
            yield
        except BaseException:
            tell(name, log)
            raise
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            for process in processes:
                if process.returncode is None:
                    process.terminate()
                await asyncio.wait_for(process.wait(), 30)


@pytest.mark.bus
@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
async def test_one_file_makes_a_node_ready(machine: str, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(render(Values())))
    control = next(
        pod for document, pod in pods(documents) if document["metadata"]["name"] == "isthmus-control"
    )
    agent = next(pod for document, pod in pods(documents) if document["metadata"]["name"] == "isthmus-agent")
    plan = next(each for each in documents if each["metadata"]["name"] == "isthmus-plan")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text(plan["data"]["plan.json"])
    folder, etc = tmp_path / "control", tmp_path / "etc"
    api = ApiServer()
    for name in ("cp-1", "w-1"):
        api.add(name)
    async with api.serving(tmp_path, HOST) as kubeconfig:
        access = ("--kubeconfig", str(kubeconfig))
        places = {
            "--folder=/var/lib/isthmus": f"--folder={folder}", "/var/lib/isthmus/": f"{folder}/",
            "/etc/isthmus-plan": str(tmp_path / "plan"),
        }  # fmt: skip
        first = Pod(machine, control, places, {"HOST_IP": NODE, "NODE_NAME": "cp-1", "ISTHMUS_CLUSTER": "prod"})
        setting = ("--owner", str(os.getuid()), "--at", str(folder / "nats"), *access)
        code, said = await first.run("bootstrap", *setting)
        assert code == 0, said
        config = api.objects["/api/v1/namespaces/isthmus-system/configmaps/isthmus-bus"]["data"]
        assert config["bus"] == f"tls://{NODE}:4222"
        assert api.nodes["cp-1"]["metadata"]["labels"]["isthmus.node-restriction.kubernetes.io/bus"] == ""

        # Again on the same node all stays; on another one there is no second log.
        elsewhere = {**places, "--folder=/var/lib/isthmus": f"--folder={tmp_path / 'other'}"}
        second = Pod(
            machine, control, elsewhere, {"HOST_IP": NODE, "NODE_NAME": "cp-2", "ISTHMUS_CLUSTER": "prod"}
        )
        again, (code, said) = await asyncio.gather(
            first.run("bootstrap", *setting), second.run("bootstrap", *setting)
        )
        assert again[0] == 0, again
        assert (code, "bus_elsewhere" in said, "cp-1" in said) == (1, True, True), said
        assert not (tmp_path / "other").exists()

        # What the kubelet mounts for an agent.
        for path, text in (
            ("bus/ca.pem", config["ca.pem"]),
            ("token/token", api.project("w-1")),
            ("enrolment/pods.creds", base64.b64decode(
                api.objects["/api/v1/namespaces/isthmus-system/secrets/isthmus-enrolment"]["data"]["pods.creds"]
            ).decode()),
        ):  # fmt: skip
            (tmp_path / path).parent.mkdir()
            (tmp_path / path).write_text(text)
        node = Pod(
            machine, agent,
            {
                "/etc/isthmus-bus": str(tmp_path / "bus"),
                "/etc/isthmus-enrolment": str(tmp_path / "enrolment"),
                "/var/run/isthmus": str(tmp_path / "token"), "/etc/isthmus": str(etc),
            },
            {"NODE_NAME": "w-1", "ISTHMUS_CLUSTER": "prod", "ISTHMUS_BUS": config["bus"]},
        )  # fmt: skip
        async with first.running("bus", tmp_path / "bus.log"):
            await until(lambda: "Server is ready" in (tmp_path / "bus.log").read_text())
            async with (
                first.running("controller", tmp_path / "controller.log", "--http", "off", *access),
                first.running("issuer", tmp_path / "issuer.log", *access),
            ):
                assert (await node.run("host"))[0] == 0
                code, said = await node.run("enrol", "--wait", "60")
                assert code == 0, said
                for kind in ("livenessProbe", "readinessProbe"):
                    assert probed(machine, control, "issuer", kind) == 200
                own = ("--state-dir", str(tmp_path / "state"), "--cni-dir", str(tmp_path / "cni"))
                async with node.running("agent", tmp_path / "agent.log", *own, "--metrics", "off"):
                    await until(lambda: api.network("w-1") == ("False", "IsthmusIsUp"))
        assert api.nodes["w-1"]["spec"]["podCIDR"] == "10.200.0.0/26"
        assert api.network("cp-1") == ("True", "IsthmusNoRange")


def test_kubectl_isthmus_is_the_same_command_line() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-isthmus"] == scripts["isthmus"]
