"""A machine with a container runtime, a kubelet and a kube-proxy of its own, as a host that was just installed.

Everything that they write is in the machine's own folders, in memory; the host's are seen below, read-only.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab.kubernetes.image import PAUSE
from deploy.lab.kubernetes.programs import CGROUPS
from deploy.lab.machines.daemons import Daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.lab.kubernetes.programs import Programs
    from deploy.lab.machines.machine import Machine
    from deploy.lab.topology.layout import Node

SOCKET = "/run/containerd/containerd.sock"
_FOLDERS = """set -e
for each in etc var opt; do
  mkdir -p /run/lab/$each/upper /run/lab/$each/work
  mount -t overlay -o lowerdir=/$each,upperdir=/run/lab/$each/upper,workdir=/run/lab/$each/work lab /$each
done
for each in /var/lib/containerd /var/lib/kubelet; do
  mkdir -p /run/lab/own$each $each
  mount --bind /run/lab/own$each $each
done
rm -rf /etc/cni /etc/isthmus /etc/containerd /opt/cni /var/lib/cni /var/lib/isthmus /var/lib/isthmus-control
mkdir -p /etc/cni/net.d /etc/containerd /opt/cni/bin /var/log
echo "$1" >/etc/machine-id
cat >/etc/containerd/config.toml
echo 0 >/proc/sys/net/ipv4/ip_forward
"""
_RUNTIME = """version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "{spec}"
"""  # noqa: E501 - as its file has it


@dataclass(slots=True)
class KubernetesNode:
    """One of them. ``group`` is the control group of its containers, within the lab's."""

    node: Node
    machine: Machine
    programs: Programs
    folder: Path
    group: str
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    async def prepare(self, spec: Path, archive: Path) -> None:
        """The host's folders, and its runtime with the images. Cancelled, they may be half done."""
        make_groups(self.group.removeprefix("/"))
        text = _RUNTIME.format(pause=PAUSE, spec=spec)
        await self.machine.run("sh", "-c", _FOLDERS, "sh", secrets.token_hex(16), stdin=text)
        await self._start("containerd", [])
        client = [self.programs["ctr"], "--namespace", "k8s.io", "--connect-timeout", "30s"]
        await self.machine.run(*client, "images", "import", str(archive))

    async def join(self, kubelet: Path, proxy: Path, container_cidr: str, pods: int) -> None:
        """Start kubelet and kube-proxy with these kubeconfigs. Cancelled, what was started runs on."""
        configuration = self.folder / "kubelet.json"
        configuration.write_text(json.dumps(kubelet_configuration(self.group, pods)))
        await self._start(
            "kubelet",
            [
                f"--config={configuration}", f"--kubeconfig={kubelet}", f"--hostname-override={self.name}",
                f"--node-ip={self.node.underlay}", "--root-dir=/var/lib/kubelet",
            ],
        )  # fmt: skip
        await self._start(
            "kube-proxy",
            [
                f"--kubeconfig={proxy}", f"--hostname-override={self.name}", "--proxy-mode=nftables",
                f"--cluster-cidr={container_cidr}", "--conntrack-max-per-core=0", "--conntrack-min=0",
                "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
            ],
        )  # fmt: skip

    async def _start(self, name: str, options: list[str]) -> None:
        log = self.folder / f"{name}.log"
        self.daemons[name] = Daemon(name, self.machine, [self.programs[name], *options], log)
        await self.daemons[name].start()

    async def stop(self) -> None:
        """SIGKILL for all three; their containers end with the sandbox. Cancelled, some may run on."""
        for daemon in self.daemons.values():
            await daemon.kill()


def kubelet_configuration(group: str, pods: int) -> Mapping[str, object]:
    """For many kubelets on one machine: no limits of the whole machine, a control group of the lab's."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}", "cgroupDriver": "cgroupfs", "cgroupRoot": group,
        "cgroupsPerQOS": True, "enforceNodeAllocatable": [], "failCgroupV1": False, "failSwapOn": False,
        "maxPods": pods, "registerNode": True, "nodeStatusUpdateFrequency": "5s",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
    }  # fmt: skip


def group(lab: str) -> str:
    """The control group of a lab's containers."""
    return f"isthmus-lab-{lab}"


def groups(name: str) -> list[Path]:
    """The folders of a control group, one in each hierarchy of this machine."""
    if not CGROUPS.is_dir():
        return []
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    return [each / name for each in CGROUPS.iterdir() if each.is_dir() and (each / "cgroup.procs").exists()]


def make_groups(name: str) -> None:
    """Make them where they are not."""
    for folder in groups(name):
        folder.mkdir(exist_ok=True)


def remove_groups(name: str) -> None:
    """Take away what containers that ended with the sandbox left: empty groups, the innermost first."""
    for folder in groups(name):
        for inner in sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True):
            inner.rmdir()
        if folder.exists():
            folder.rmdir()
