#!/usr/bin/env bash
# Makes .venv/ in this checkout ready for the make targets, and sees to it that the system tools the
# lab needs are there; with the argument `test` also what the tests look with (without Chromium and
# Prometheus the tests of console and dashboards are skipped, and say so; other tests need the rest),
# with `bench` also what the benchmarks compare with (without it those rows are left out, and say so),
# with `systemd` also what makes and boots the Debians of `make systemd`.
# Quick when there is nothing to do. Touches nothing outside the checkout except, as root on Debian or
# Ubuntu, by apt-get.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_minimum="3.11"
stamp=".venv/.isthmus-setup"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c "import sys; sys.exit(sys.version_info < (${python_minimum/./, }))" 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

has_cni_plugins() {
  local directory
  for directory in ${CNI_PATH:+${CNI_PATH//:/ }} /opt/cni/bin /usr/lib/cni /usr/libexec/cni; do
    [ -x "$directory/ptp" ] && [ -x "$directory/host-local" ] && [ -x "$directory/portmap" ] && return 0
  done
  return 1
}

has_tool() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

# Debian package names of what is missing, one per word.
missing_packages() {
  has_tool ip && has_tool bridge || echo iproute2
  has_tool nft || echo nftables
  has_tool unshare && has_tool nsenter && has_tool mount || echo "util-linux mount"
  has_tool ping || echo iputils-ping
  # Without it packets take the whole network stack, so who cannot install it is not asked to.
  [ "$(id -u)" != 0 ] || ldconfig -p 2>/dev/null | grep -q 'libbpf\.so\.1' || /sbin/ldconfig -p 2>/dev/null | grep -q 'libbpf\.so\.1' || echo libbpf1
  has_cni_plugins || echo containernetworking-plugins
  "$python" -c "import ensurepip, venv" 2>/dev/null || "$python" -m virtualenv --version >/dev/null 2>&1 ||
    "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

# What only tests need. Ubuntu's chromium is no package but a pointer to a snap: there it is left out.
missing_test_packages() {
  has_tool chromium || [ -n "${ISTHMUS_CHROMIUM:-}" ] || grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null || echo "chromium fonts-dejavu-core"
  # The browser's driver is a node program; minimal systems lack this library of its.
  ldconfig -p 2>/dev/null | grep -q 'libatomic\.so\.1' || /sbin/ldconfig -p 2>/dev/null | grep -q 'libatomic\.so\.1' || echo libatomic1
  has_tool promtool && has_tool prometheus || echo prometheus
  has_tool ethtool || echo ethtool
  has_tool iperf3 || echo iperf3
  has_tool tcpdump || echo tcpdump
  # Kernels that tests run on may have no WireGuard; without it nothing of encryption is tested.
  has_tool wireguard-go || echo wireguard-go
  # For building the eBPF programs anew and comparing them with those that are shipped.
  has_tool clang && [ -e /usr/include/bpf/bpf_helpers.h ] && has_tool llvm-strip || echo "clang llvm libbpf-dev linux-libc-dev"
  # For building the CNI plugin anew, for both processors.
  has_tool ld.lld || echo lld
  has_tool zstd || echo zstd
  [ "${1:-}" != bench ] || has_tool etcd || echo etcd-server
  [ "${1:-}" != systemd ] || { has_tool mmdebstrap && has_tool systemd-nspawn || echo "mmdebstrap systemd-container"; }
}

install_packages() {
  local packages="$*" command
  command="apt-get update && apt-get install -y --no-install-recommends $packages"
  if [ "$(id -u)" != 0 ]; then
    fail "missing: $packages. On Debian or Ubuntu type:  sudo sh -c '$command'"
  fi
  if ! command -v apt-get >/dev/null 2>&1; then
    fail "missing (Debian package names): $packages. Install them with this system's package manager, then try again"
  fi
  say "installing $packages with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  # A stale list of packages is the usual reason for a failed install on a fresh machine.
  apt-get update -qq >/dev/null
  # shellcheck disable=SC2086  # one argument per package
  apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

python=$(find_python) || fail "needs Python $python_minimum or newer; found: $(python3 --version 2>&1 || true). On Debian 12, Ubuntu 24.04 or newer type:  sudo apt-get install -y python3 python3-venv"

missing=$(missing_packages | tr '\n' ' ')
missing=${missing% }
[ -z "$missing" ] || install_packages "$missing"
if [ "${1:-}" = test ] || [ "${1:-}" = bench ] || [ "${1:-}" = systemd ]; then
  missing=$(missing_test_packages "$1" | tr '\n' ' ')
  missing=${missing% }
  if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # They bring services along that nobody asked for; the tests start their own.
    install_packages "$missing" || say "not installed: $missing; what needs them is skipped"
  elif [ -n "$missing" ]; then
    say "not there: $missing; what needs them is skipped (sudo apt-get install -y $missing)"
  fi
fi

# The editable install binds the environment to this place, so a moved or copied checkout is set up anew.
fingerprint=$({ pwd -P; "$python" --version; cat pyproject.toml deploy/constraints.txt deploy/setup.sh; } | sha256sum)
if [ -x .venv/bin/isthmus ] && [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
  exit 0
fi

started=$SECONDS
if ! .venv/bin/python -c "import pip" 2>/dev/null || ! head -n 1 .venv/bin/pip | grep -qF "$(pwd -P)/.venv/"; then
  say "making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv 2>/dev/null || "$python" -m virtualenv -q .venv
fi
rm -f "$stamp"
say "installing the versions pinned in deploy/constraints.txt into .venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The build backend is pinned like everything else, so it is installed first and used from here.
.venv/bin/python -m pip install -q -c deploy/constraints.txt "setuptools>=77"
# The byte code of all packages takes longer to make than that of what is used, when it is used.
.venv/bin/python -m pip install -q --no-compile -c deploy/constraints.txt --no-build-isolation -e '.[dev]'
printf '%s\n' "$fingerprint" >"$stamp"
say "ready after $((SECONDS - started)) s"
