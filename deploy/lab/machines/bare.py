"""A machine with only Python: a root of its own with the system's programs, and nothing of this installation.

What is in /etc, /opt, /root, /usr/local and /var begins empty but for accounts and the linker's cache; the
checkout, its environment and this program are not there. Cancelled, what was mounted stays until it ends.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.lab.machines.machine import Machine

PYTHON = "/usr/bin/python3"
ROOT = "/mnt"
"""Where that root is in the machine's own mount namespace."""
PYTHONS = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
"""What would lead another Python to where this one is."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SET_UP = """
set -e
root=$1 node=$2 archive=$3
mount -t tmpfs -o mode=755 bare $root
cd $root
mkdir -p dev etc opt proc root run srv sys tmp usr var/lib "./$node"
chmod 1777 tmp
for each in bin lib lib32 lib64 libx32 sbin; do
  if [ -L /$each ]; then cp -P /$each .; elif [ -d /$each ]; then mkdir $each && mount --bind /$each $each; fi
done
for each in dev proc run sys usr; do mount --rbind /$each $each; done
mount --bind "$node" "./$node"
mount -t tmpfs -o mode=755 bare usr/local
mkdir usr/local/bin
cp -a /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache etc/
[ ! -d /etc/alternatives ] || cp -a /etc/alternatives etc/
[ ! -d /opt/cni ] || { mkdir opt/cni && mount --rbind /opt/cni opt/cni; }
cp "$archive" root/
"""


@dataclass(slots=True)
class Bare:
    """How a machine is made a node by ``archive`` (`make node`) alone."""

    archive: Path

    async def line(self, machine: Machine, directory: Path, arguments: Sequence[str]) -> list[str]:
        """Give the machine that root, with its ``directory`` in it; what one types there instead of a join.

        ``arguments``: those of `isthmus join`. Raises what `Machine.run` raises.
        """
        await machine.run("sh", "-c", _SET_UP, "sh", ROOT, str(directory), str(self.archive))
        return self.inside(PYTHON, f"/root/{self.archive.name}", *arguments)

    @staticmethod
    def inside(*arguments: str) -> list[str]:
        """The command line that runs ``arguments`` in that root."""
        clean = (
            "env",
            "-u",
            "VIRTUAL_ENV",
            "-u",
            "PYTHONPATH",
            "-u",
            "PYTHONHOME",
            "HOME=/root",
            f"PATH={PATH}",
        )
        return ["chroot", ROOT, *clean, *arguments]


def require_python() -> None:
    """Raises Refused(prerequisite_missing) when this system's own Python cannot run Isthmus."""
    asked = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
    try:
        fits = subprocess.run([PYTHON, "-c", asked], check=False, capture_output=True).returncode == 0
    except OSError:
        fits = False
    if not fits:
        raise Refused(
            "prerequisite_missing", f"the machine with only Python would run {PYTHON}: Python 3.11 or newer"
        )
