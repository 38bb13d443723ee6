#!/usr/bin/env bash
# Builds fastpath.bpf.o beside its source, the same bytes wherever clang 14 (Debian 12) runs. Debug information is
# left out but for the types (BTF) by which libbpf makes the maps.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out=${1:-fastpath.bpf.o}
clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -Wno-address-of-packed-member -fdebug-compilation-dir=. \
  -I"/usr/include/$(uname -m)-linux-gnu" -c fastpath.bpf.c -o "$out"
llvm-strip -g "$out"
llvm-objcopy --remove-section=.BTF.ext --remove-section=.rel.BTF.ext "$out"
