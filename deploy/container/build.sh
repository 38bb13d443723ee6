#!/usr/bin/env bash
# Builds the image with buildah: no daemon, and no base from a registry when --base is "debian" (then it is
# made here from Debian's packages by mmdebstrap). Root, or a user with subordinate ids.
#
#   deploy/container/build.sh                       image isthmus:VERSION on the base that the Dockerfile names
#   deploy/container/build.sh --base debian         on a base of our own
#   deploy/container/build.sh --base IMAGE --twice  build again and compare: the same input gives the same bytes
#
# STORAGE=DIR keeps everything in one folder (driver vfs: works inside containers); PIP_CERT and PIP_INDEX_URL
# are passed on as secrets, so that nothing of this machine is in the image.
# Needs (Debian package names): buildah, crun or runc; mmdebstrap for --base debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tag="isthmus:$version" base="" twice=no
while [ $# -gt 0 ]; do
  case $1 in
    --tag) tag=${2:?}; shift 2 ;;
    --base) base=${2:?}; shift 2 ;;
    --twice) twice=yes; shift ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] && exit 0 || { echo "build.sh: what is $1?" >&2; exit 2; } ;;
  esac
done
for tool in buildah ${base:+$([ "$base" != debian ] || echo mmdebstrap)}; do
  command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing: apt-get install -y $tool" >&2; exit 2; }
done

# The time of the tree, not of the build. Without git (a tarball): of its youngest file.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y pyproject.toml)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
storage=(${STORAGE:+--root "$STORAGE/root" --runroot "$STORAGE/run" --storage-driver vfs})
buildah=(buildah "${storage[@]}")

if [ "$base" = debian ]; then
  mmdebstrap --quiet --variant=minbase --format=tar --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' bookworm "$scratch/base.tar"
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add -q "$container" "$scratch/base.tar" / >/dev/null
  "${buildah[@]}" commit -q --rm --timestamp "$SOURCE_DATE_EPOCH" "$container" localhost/isthmus-base >/dev/null
  base=localhost/isthmus-base
fi

{
  echo "[global]"
  [ -z "${PIP_CERT:-}" ] || echo "cert = /etc/ca.pem"
  [ -z "${PIP_INDEX_URL:-}" ] || echo "index-url = $PIP_INDEX_URL"
} >"$scratch/pip.conf"
cp "${PIP_CERT:-/dev/null}" "$scratch/ca.pem"

build() {  # build TAG
  "${buildah[@]}" build --quiet --isolation chroot --no-cache --layers=false --timestamp "$SOURCE_DATE_EPOCH" \
    ${base:+--build-arg "BASE=$base"} --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" \
    --secret "id=pip.conf,src=$scratch/pip.conf" --secret "id=ca.pem,src=$scratch/ca.pem" \
    --ignorefile deploy/container/Dockerfile.dockerignore -f deploy/container/Dockerfile -t "$1" . >"$scratch/log" 2>&1 ||
    { tail -40 "$scratch/log" >&2; exit 1; }
}
of() { "${buildah[@]}" inspect --type image --format "$1" "$2"; }

build "$tag"
digest=$(of '{{.FromImageDigest}}' "$tag")
if [ "$twice" = yes ]; then
  build "$tag-again"
  again=$(of '{{.FromImageDigest}}' "$tag-again")
  "${buildah[@]}" rmi "$tag-again" >/dev/null
  [ "$digest" = "$again" ] || { echo "not reproducible: $digest, then $again" >&2; exit 1; }
  echo "built twice, the same bytes"
fi
"${buildah[@]}" push -q "$tag" "oci-archive:$scratch/image.tar" >/dev/null 2>&1
echo "$tag $digest"
echo "$(($(stat -c %s "$scratch/image.tar") / 1000000)) MB compressed, $("${buildah[@]}" images --format '{{.Size}}' "$tag") unpacked"
