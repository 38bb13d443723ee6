"""Our manifests in an API server, and values for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.real import RealApiServer

ALL: dict[str, Any] = {
    "clusterName": "c1", "podCidr": "10.99.0.0/16", "podsPerNode": 128, "services": 512, "vni": 7,
    "backendPort": 4789, "quarantineSeconds": 5, "mtu": 1400, "underlay": "eth1", "cniBinDir": "/usr/lib/cni",
    "cniConfDir": "/etc/cni/conf", "cniPlugin": "bridge", "fastpath": "off", "logLevel": "debug",
    "networks": [{"kind": "vpc", "cidr": "10.0.0.0/16", "name": "v"}], "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
    "image": {"repository": "images.example:5000/isthmus", "tag": "9", "pullPolicy": "Always"},
    "imagePullSecrets": ["pull"], "externalSites": ["gz"], "evictStalePods": True, "apiserverBackends": "main",
    "serviceBackends": True, "acceptInOthers": True,
    "fenceDeletedSeconds": 300,
    "bus": {"port": 4333, "storagePath": "/data/isthmus", "nodeSelector": {"x": "y"}},
    "resources": {
        "agent": {"limits": {"memory": "1Gi"}}, "controller": {"requests": {"cpu": "2"}},
        "bridge": {"limits": {"memory": "2Gi"}},
        "bus": {"limits": {"memory": "4Gi", "cpu": "3"}}, "issuer": {"requests": {"memory": "64Mi"}},
    },
}  # fmt: skip


MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/isthmus-system/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/isthmus-system/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/isthmus-system/rolebindings",
    "ConfigMap": "/api/v1/namespaces/isthmus-system/configmaps",
    "DaemonSet": "/apis/apps/v1/namespaces/isthmus-system/daemonsets",
    "Deployment": "/apis/apps/v1/namespaces/isthmus-system/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/isthmus-system/networkpolicies",
}


async def apply(server: RealApiServer) -> None:
    """All our manifests, and every field of them known to the API server."""
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((MANIFESTS / name).read_text()):
            path = f"{PATHS[document['kind']]}?fieldValidation=Strict"
            code, said = await server.ask("POST", path, document)
            assert code == 201, (name, document["kind"], said)


async def token_of(server: RealApiServer, account: str) -> str:
    """A token of a ServiceAccount, as a pod gets it."""
    path = f"{PATHS['ServiceAccount']}/{account}/token"
    request: dict[str, Any] = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}
    code, said = await server.ask("POST", path, request)
    assert code == 201, said
    return str(said["status"]["token"])
