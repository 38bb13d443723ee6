"""`isthmus lab --kubernetes`: with the binaries of others a real cluster, without them one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from deploy.lab.kubernetes import image, programs
from events.errors import Usage
from tests.e2e.labs import isthmus
from tests.kubernetes.real import ASSETS

KUBELET = bool(ASSETS) and Path(ASSETS, "kubelet").exists() and os.geteuid() == 0


def control_groups() -> set[Path]:
    """Those of labs and of containers' runtimes."""
    return {*programs.CGROUPS.glob("**/isthmus-lab-*"), *programs.CGROUPS.glob("**/k8s.io/*")}


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SEARCH_PATH", str(tmp_path / "path"))
    for name in ("etcd", "kubelet"):
        (tmp_path / name).touch(mode=0o755)
    with pytest.raises(Usage) as refused:
        programs.require(None, str(tmp_path), {programs.ASSETS: str(tmp_path)})
    missing = refused.value.details["missing"]
    assert {"kube-apiserver", "containerd", "runc", "the CNI plugin loopback"} <= set(missing)
    assert not {"etcd", "kubelet"} & set(missing)
    assert (refused.value.exit_code, refused.value.message.count("\n")) == (2, 0)
    with pytest.raises(Usage, match="--binaries or KUBEBUILDER_ASSETS"):
        programs.require(None, str(tmp_path), {})


def test_the_command_says_it_and_ends_with_2(tmp_path: Path) -> None:
    """PATH as it is, without the folder: no machine has a kube-controller-manager there by chance."""
    env = {key: value for key, value in os.environ.items() if key != "KUBEBUILDER_ASSETS"}
    env |= {"TMPDIR": str(tmp_path)}
    done = isthmus("lab", "--kubernetes", env=env)
    assert done.returncode == 2, done.stderr
    assert "kube-controller-manager" in done.stderr
    for options in (("--kubernetes", "--clb"), ("--binaries", str(tmp_path))):
        done = isthmus("lab", *options, env=env)
        assert (done.returncode, "--kubernetes" in done.stderr) == (2, True), done.stderr


def test_the_image_is_what_it_says(tmp_path: Path) -> None:
    image.archive(tmp_path / "image.tar", "docker.io/library/isthmus:1")
    with tarfile.open(tmp_path / "image.tar") as made:
        content = {name: made.extractfile(name).read() for name in made.getnames()}  # type: ignore[union-attr]
    blobs = {name: data for name, data in content.items() if name.startswith("blobs/")}
    for name, data in blobs.items():
        assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    named = {}
    for entry in json.loads(content["index.json"])["manifests"]:
        manifest = json.loads(blobs[f"blobs/sha256/{entry['digest'][7:]}"])
        named[entry["annotations"]["io.containerd.image.name"]] = manifest
        for part in (manifest["config"], *manifest["layers"]):
            assert len(blobs[f"blobs/sha256/{part['digest'][7:]}"]) == part["size"]
    assert set(named) == {image.PAUSE, "docker.io/library/isthmus:1"}


def test_its_containers_see_this_machines_programs(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    made = json.loads(image.runtime_spec('{"mounts": [{"destination": "/proc"}]}', tmp_path / "plugins"))
    first, *more = made["mounts"]
    assert first == {"destination": "/proc"}
    assert all("ro" in each["options"] for each in more)
    targets = {Path(each["destination"]) for each in more}
    for needed in (Path(sys.executable), Path(sys.base_prefix), Path(image.__file__), Path("/opt/cni/bin")):
        assert any(target == needed or target in needed.parents for target in targets), needed
    assert not any(one in other.parents for one in targets for other in targets)


@pytest.mark.netns
@pytest.mark.bus
@pytest.mark.skipif(
    not KUBELET, reason="KUBEBUILDER_ASSETS names no folder with a kubelet, or this is not root"
)
def test_pods_of_a_real_kubernetes_reach_each_other_and_their_service(tmp_path: Path) -> None:
    name = f"k{os.getpid()}"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    options = ("--name", name, "--cloud", "2", "--external", "2", "--pods", "1", "--json")
    before = control_groups()
    done = isthmus("lab", "--kubernetes", *options, env=env, timeout_s=480)
    report = json.loads(done.stdout)
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    assert done.returncode == 0
    measured = {check["name"]: check["measured"] for check in report["checks"]}
    assert measured["Every pod reaches every other pod"]["packets"] >= 12 * 20
    assert control_groups() <= before
