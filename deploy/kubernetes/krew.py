"""The plugin `kubectl isthmus` for Krew: an archive, and the manifest with its hash.

``python -m deploy.kubernetes.krew --to dist --uri https://HOST/isthmus-kubectl-0.3.0.tar.gz``

The plugin is the command line of this release, which the machine has from its package: Krew unpacks files and
resolves no dependencies. Where the archive is served is for whoever serves it to say: without ``--uri`` the
manifest has a placeholder, and `kubectl krew install --manifest FILE --archive FILE` needs none.
The same version gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec

NAME = "isthmus"
PLACEHOLDER = "https://FILL-IN-YOUR-HOST.example"
DESCRIPTION = (
    "The command line of Isthmus: nodes and their ranges, gateways and entries, the mesh, and what the log "
    "says of any moment (kubectl isthmus replay who --ip ADDRESS --at -2h)."
)
CAVEATS = (
    "It needs the package isthmus of the same release on this machine (wheel or .deb), and the bus: "
    "ISTHMUS_BUS, and credentials in ISTHMUS_CREDS."
)
SCRIPT = """\
#!/bin/sh
# kubectl isthmus ...: the command line of this machine's package.
command -v isthmus >/dev/null 2>&1 || {
  echo "kubectl-isthmus: the package isthmus (wheel or .deb) is not installed here" >&2
  exit 127
}
exec isthmus "$@"
"""


def archive() -> bytes:
    """A tar file, compressed, with the plugin and the licence."""
    files = {"kubectl-isthmus": (SCRIPT.encode(), 0o755)}
    licence = Path(__file__).parents[2] / "LICENSE"
    if licence.is_file():
        files["LICENSE"] = (licence.read_bytes(), 0o644)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (content, mode) in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(inner.getvalue(), mtime=0)


def manifest(release: str, content: bytes, uri: str = "") -> dict[str, Any]:
    """The manifest of that archive, as Krew reads it (v1alpha2)."""
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": NAME},
        "spec": {
            "version": f"v{release}",
            "shortDescription": "Ask and operate an Isthmus overlay",
            "description": DESCRIPTION,
            "caveats": CAVEATS,
            "platforms": [
                {
                    "selector": {"matchExpressions": [{"key": "os", "operator": "In", "values": ["linux"]}]},
                    "uri": uri or f"{PLACEHOLDER}/{file_name(release)}",
                    "sha256": sha256(content).hexdigest(),
                    "bin": "kubectl-isthmus",
                    "files": [{"from": "*", "to": "."}],
                }
            ],
        },
    }


def file_name(release: str) -> str:
    """The archive's name."""
    return f"isthmus-kubectl-{release}.tar.gz"


@click.command(help=__doc__)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--uri", default="", help="Where the archive will be served [a placeholder to fill in].")
def krew(to: Path, uri: str) -> None:
    """Write both."""
    release, content = version("isthmus"), archive()
    to.mkdir(parents=True, exist_ok=True)
    (to / file_name(release)).write_bytes(content)
    target = to / f"isthmus-{release}-krew.yaml"
    target.write_bytes(
        msgspec.json.format(msgspec.json.encode(manifest(release, content, uri))) + b"\n"
    )  # which is YAML
    click.echo(f"{target}: sha256 {sha256(content).hexdigest()}")
    if not uri:
        click.echo(f"note: fill in where the archive is served ({PLACEHOLDER}), or use --uri", err=True)


if __name__ == "__main__":
    krew()
