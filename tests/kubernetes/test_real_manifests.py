"""All that is rendered, with each value alone and all together, taken by a real API server: strictly, dry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from deploy.cli import deploy
from deploy.kubernetes.all_in_one import OwnBus, render
from deploy.kubernetes.values import checked
from tests.kubernetes.manifests import ALL
from tests.kubernetes.real import ASSETS, RealApiServer, serving

pytestmark = pytest.mark.skipif(
    not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"
)
OWN = OwnBus("ca", "enrolment", "controller", "bridge")


def combinations() -> Iterator[dict[str, Any]]:
    """As shipped, each value alone, all of them."""
    yield {}
    for name, value in ALL.items():
        yield {name: value}
    yield ALL


async def kinds(server: RealApiServer) -> dict[tuple[str, str], str]:
    """(apiVersion, kind) → its path below the group's, as the API server itself says."""
    found: dict[tuple[str, str], str] = {}
    for version in ("v1", "apps/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1"):
        root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        _, said = await server.ask("GET", root)
        for each in said["resources"]:
            if "/" not in each["name"]:
                inside = "/namespaces/isthmus-system" if each["namespaced"] else ""
                found[version, each["kind"]] = f"{root}{inside}/{each['name']}"
    return found


async def test_every_combination_is_taken_strictly(tmp_path: Path) -> None:
    documents: dict[str, dict[str, Any]] = {}

    def gather(text: str) -> None:
        for document in yaml.safe_load_all(text):
            if document and document["kind"] != "Kustomization":
                documents.setdefault(json.dumps(document, sort_keys=True), document)

    for number, said in enumerate(combinations()):
        values = checked(said, "test")
        gather(render(values))
        file = tmp_path / f"{number}.json"
        for bridge in ("controller", "beside"):
            there = {**said, "bridge": bridge}
            gather(render(checked({**there, "bus": {"urls": ["tls://a.example:4222"]}}, "test"), OWN))
            file.write_text(json.dumps(there))
            to = tmp_path / f"{number}-{bridge}"
            done = CliRunner().invoke(deploy, ["kubernetes", "--values", str(file), "--to", str(to)])
            assert done.exit_code == 0, done.output
            for name in yaml.safe_load((to / "kustomization.yaml").read_text())["resources"]:
                gather((to / name).read_text())
    async with serving(tmp_path) as server:
        paths = await kinds(server)
        code, made = await server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "isthmus-system"}})
        assert code == 201, made
        taken = 0
        for document in documents.values():
            path = paths[document["apiVersion"], document["kind"]]
            code, said = await server.ask("POST", f"{path}?dryRun=All&fieldValidation=Strict", document)
            known = document["kind"] == "Namespace" and code == 409
            assert code == 201 or known, (document["kind"], document["metadata"]["name"], said)
            taken += code == 201
        assert taken > 60
