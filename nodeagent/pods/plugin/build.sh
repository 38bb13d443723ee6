#!/usr/bin/env bash
# Builds the plugin for each processor beside its source, the same bytes wherever clang 14 and lld 14 (Debian 12)
# run. Static, without a C library: it needs nothing of its host.
#
#   build.sh [FOLDER]
set -euo pipefail
to=$(realpath "${1:-$(dirname "${BASH_SOURCE[0]}")}")
cd "$(dirname "${BASH_SOURCE[0]}")"
for processor in x86_64 aarch64; do
  clang --target=$processor-linux-gnu -O2 -std=c11 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-ident \
    -fno-stack-protector -fno-unwind-tables -fno-asynchronous-unwind-tables -fpie \
    -nostdlib -static-pie -fuse-ld=lld -Wl,--build-id=none -Wl,-z,relro,-z,now,-z,noexecstack,--no-dynamic-linker -Wl,--strip-all \
    isthmus.c -o "$to/isthmus-$processor"
done
