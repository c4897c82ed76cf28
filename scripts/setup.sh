#!/usr/bin/env bash
# Installs what flowgate needs on Debian 12, Debian 13 and Ubuntu 24.04, sets up hugepages, and says what it did.
# What is there already is left alone: a second run changes nothing.
#
#   scripts/setup.sh [--build] [--test] [--hugepages N] [--check]
#
#   --build        what it takes to build and run flowgate
#   --test         what the tests and the demo need besides; without either, both
#   --hugepages N  pages of 2 MB to set aside (1024; 0 for none); fewer if memory is short
#   --check        only say what is missing
#
# Exit code: 0 good (flowgate runs without hugepages), 1 a package or the Rust toolchain is missing, 2 usage.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

BUILD=(dpdk dpdk-dev libdpdk-dev libpcap-dev libelf-dev clang libclang-dev llvm pkg-config build-essential)
TEST=(shellcheck tshark tcpdump iperf3 ethtool nftables iproute2 iputils-ping iputils-tracepath traceroute dnsmasq-base udhcpc curl openssl python3-venv socat jq python3-scapy python3-matplotlib netcat-openbsd prometheus chromium python3-prometheus-client)
PAGES=/sys/kernel/mm/hugepages/hugepages-2048kB

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | head -n -1 >&2; exit 2; }

build=no test=no check=no hugepages=1024
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=yes ;;
    --test) test=yes ;;
    --check) check=yes ;;
    --hugepages)
        [[ ${2:-} =~ ^[0-9]+$ ]] || usage
        hugepages=$2
        shift
        ;;
    *) usage ;;
    esac
    shift
done
if [ "$build$test" = nono ]; then build=yes test=yes; fi

root=no
[ "$(id -u)" = 0 ] && root=yes
status=0 changed=no

say() { printf '%-10s %s\n' "$1:" "$2"; }
lacks() { say "$1" "$2"; status=1; }

has_libclang() { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null; }

# Installs packages. FRR's service is not to run, now or after a reboot: tests start its daemons in namespaces of their own.
install() (
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null || exit
    [[ " $* " != *" frr "* ]] || update-rc.d frr disable >/dev/null
)

packages() {
    local package wanted=() missing=()
    if ! command -v dpkg-query >/dev/null; then
        lacks packages "this is not Debian or Ubuntu: install by hand what ${BUILD[*]} are called here"
        return
    fi
    [ "$build" = yes ] && wanted+=("${BUILD[@]}")
    [ "$test" = yes ] && wanted+=("${TEST[@]}")
    for package in "${wanted[@]}"; do
        # bindgen wants the library alone, which other packages hold too.
        if [ "$package" = libclang-dev ] && has_libclang; then continue; fi
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    if [ ${#missing[@]} = 0 ]; then
        say packages "all present"
    elif [ "$check" = yes ] || [ "$root" = no ]; then
        lacks packages "missing; as root: apt-get install ${missing[*]}"
    else
        say packages "installing ${missing[*]}"
        if install "${missing[@]}"; then
            say packages "installed"
            changed=yes
        else
            lacks packages "apt-get could not install them (see above)"
        fi
    fi
    if [ "$build" = yes ] && command -v pkg-config >/dev/null; then
        local version
        if version=$(pkg-config --modversion libdpdk 2>/dev/null); then
            say dpdk "$version"
        elif [ "$status" = 0 ]; then
            lacks dpdk "pkg-config does not find libdpdk, although its packages are installed: is PKG_CONFIG_PATH set?"
        fi
    fi
}

# at_least HAVE WANT: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

toolchain() {
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
    if [ -z "$have" ] && [ -x "$HOME/.cargo/bin/cargo" ]; then
        have=$("$HOME/.cargo/bin/cargo" --version 2>/dev/null | cut -d ' ' -f 2)
        [ -n "$have" ] && say rust "cargo is in ~/.cargo/bin, which is not in PATH: run \`. ~/.cargo/env\`"
    fi
    if [ -n "$have" ] && at_least "$have" "$want"; then
        say rust "$have (at least $want is needed)"
    elif [ "$check" = no ] && command -v rustup >/dev/null; then
        say rust "${have:-none} is installed, $want is needed: rustup installs the stable toolchain"
        if rustup toolchain install stable --profile minimal --component clippy,rustfmt >/dev/null && rustup default stable >/dev/null; then
            have=$(cargo --version | cut -d ' ' -f 2)
            say rust "$have installed"
            changed=yes
        else
            lacks rust "rustup could not install it (see above)"
        fi
    else
        lacks rust "${have:-none} is installed, at least $want is needed: curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt && . ~/.cargo/env"
    fi
}

pages() {
    local have available most want=$hugepages got
    [ "$hugepages" = 0 ] && return
    if ! have=$(cat "$PAGES/nr_hugepages" 2>/dev/null); then
        say hugepages "this kernel has no 2 MB pages; flowgate runs without"
        return
    fi
    # At most half of what is available now, besides the pages there are.
    available=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
    most=$((have + available / 2 / 2048))
    if [ "$have" -lt "$want" ] && [ "$most" -lt "$want" ]; then
        say hugepages "memory is short: $most pages instead of $want"
        want=$most
    fi
    if [ "$have" -ge "$want" ]; then
        say hugepages "$have of 2 MB set aside ($(cat "$PAGES/free_hugepages") free)"
    elif [ "$check" = yes ] || [ ! -w "$PAGES/nr_hugepages" ]; then
        say hugepages "$have of 2 MB; as root: echo $want > $PAGES/nr_hugepages; flowgate runs without, slower"
    elif echo "$want" 2>/dev/null >"$PAGES/nr_hugepages"; then
        got=$(cat "$PAGES/nr_hugepages")
        [ "$got" = "$have" ] || changed=yes
        say hugepages "$got of 2 MB set aside (were $have, asked for $want)"
    else
        say hugepages "the kernel does not let this machine set any aside; flowgate runs without, slower"
    fi
    if awk '$3 == "hugetlbfs" { found = 1 } END { exit !found }' /proc/mounts; then
        say hugetlbfs "mounted on $(awk '$3 == "hugetlbfs" { print $2; exit }' /proc/mounts)"
    elif [ "$check" = yes ] || [ "$root" = no ]; then
        say hugetlbfs "not mounted; as root: mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages"
    elif mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages; then
        say hugetlbfs "mounted on /dev/hugepages"
        changed=yes
    else
        say hugetlbfs "cannot be mounted here; flowgate runs without hugepages"
    fi
}

packages
[ "$build" = yes ] && toolchain
[ "$build" = yes ] && pages
if [ "$status" != 0 ]; then
    say result "not ready"
elif [ "$check" = yes ]; then
    say result "ready"
elif [ "$changed" = yes ]; then
    say result "ready, set up now"
else
    say result "ready, nothing changed"
fi
exit $status
