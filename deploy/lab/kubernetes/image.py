"""The product's image as nothing but folders: its containers see this machine's programs by mounts, read-only.

So the pods of the one file run the code that renders it, its import takes a moment, and nothing is fetched.
The real image is built and tried by its own tests. What holds a pod's namespaces gets no such mounts from the
runtime: its image has `sleep` and the libraries that it needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.lab.machines.shell import SEARCH_PATH

PAUSE = "docker.io/isthmus/lab-pause:1"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives")
_FOLDERS = ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var")
_USER = 65532
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"


def mounts(plugins: Path) -> list[dict[str, Any]]:
    """Where programs are on this machine, and ``plugins`` where the product's image has them."""
    wanted = [Path(place) for place in _SYSTEM if Path(place).is_dir() and not Path(place).is_symlink()]
    wanted += [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[3]]
    outer = [place for place in dict.fromkeys(wanted) if not any(each in place.parents for each in wanted)]
    pairs = [*((place, place) for place in outer), (plugins, Path("/opt/cni/bin"))]
    return [
        {"type": "bind", "source": str(source), "destination": str(target), "options": ["rbind", "ro"]}
        for source, target in pairs
    ]


def runtime_spec(spec: str, plugins: Path) -> str:
    """What every container starts from: the runtime's own specification with those mounts."""
    document = json.loads(spec)
    document["mounts"] += mounts(plugins)
    return json.dumps(document)


def archive(file: Path, product: str) -> None:
    """Write an archive with the product's image under its name, and the one that holds a pod's namespaces."""
    blobs: dict[str, bytes] = {}
    path = f"{Path(sys.prefix) / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    images = {
        PAUSE: (_holder(), {"Entrypoint": ["/sleep", "infinity"], "User": str(_USER)}),
        product: (_layer(), {"Entrypoint": ["isthmus"], "User": f"{_USER}:{_USER}"}),
    }
    index = []
    for name, (layer, configuration) in images.items():
        made = {
            "architecture": _ARCHITECTURE.get(platform.machine(), platform.machine()), "os": "linux",
            "config": {"Env": [f"PATH={path}", "PYTHONDONTWRITEBYTECODE=1"], **configuration},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _kept(blobs, f"{_OCI}.config.v1+json", json.dumps(made).encode()),
            "layers": [_kept(blobs, f"{_OCI}.layer.v1.tar", layer)],
        }  # fmt: skip
        entry = _kept(blobs, f"{_OCI}.manifest.v1+json", json.dumps(manifest).encode())
        index.append({**entry, "annotations": {"io.containerd.image.name": name}})
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": index}).encode()
    with tarfile.open(file, "w") as made_file:
        _put(made_file, files)


def _kept(blobs: dict[str, bytes], kind: str, data: bytes) -> dict[str, Any]:
    blobs[_digest(data)] = data
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer() -> bytes:
    """Folders, the two accounts, and links as this machine has them (``/bin`` to ``usr/bin``)."""
    users = ((0, "root", "/root"), (_USER, "isthmus", "/nonexistent"))
    files = {
        "etc/passwd": "".join(f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n" for uid, name, home in users).encode(),
        "etc/group": "".join(f"{name}:x:{uid}:\n" for uid, name, _ in users).encode(),
    }
    links = {place[1:]: str(Path(place).readlink()) for place in _SYSTEM if Path(place).is_symlink()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        _folders(made, _FOLDERS)
        _put(made, files)
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            made.addfile(link)
    return buffer.getvalue()


def _holder() -> bytes:
    """`sleep` with its libraries, each where the program looks for it."""
    program = shutil.which("sleep", path=SEARCH_PATH) or "sleep"
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    libraries = re.findall(r"(?:^|\s)(/\S+) \(0x", done.stdout)
    files = {"sleep": Path(program).read_bytes(), **{name[1:]: Path(name).read_bytes() for name in libraries}}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        _folders(made, ("dev", "etc", "proc", "sys"))
        _put(made, files, mode=0o755)
    return buffer.getvalue()


def _folders(made: tarfile.TarFile, names: Iterable[str]) -> None:
    for name in names:
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        made.addfile(folder)


def _put(made: tarfile.TarFile, files: Mapping[str, bytes], *, mode: int = 0o644) -> None:
    for name, data in files.items():
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), mode
        made.addfile(entry, io.BytesIO(data))


def copy_plugins(source: str, ours: bytes, folder: Path, names: Sequence[str]) -> None:
    """What the product's image has in its ``/opt/cni/bin``: the standard plugins and ``ours``."""
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(Path(source, name).read_bytes())
    (folder / "isthmus").write_bytes(ours)
    for file in folder.iterdir():
        file.chmod(0o755)
