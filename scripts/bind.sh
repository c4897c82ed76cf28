#!/usr/bin/env bash
# Shows the PCI network cards, and gives them to DPDK or back to the kernel.
#
#   scripts/bind.sh [--json]                                   lists them
#   scripts/bind.sh [--force] [--noiommu] vfio-pci ADDRESS...  to vfio-pci, for DPDK
#   scripts/bind.sh [--force] kernel ADDRESS...                back to the kernel's driver
#
#   --force    also a card that carries the default route or an ssh session
#   --noiommu  without an IOMMU: the card can then write anywhere in memory
#
# Exit code: 0 good, 1 refused or failed, 2 usage. FLOWGATE_SYSFS names another root than /sys, for tests.
set -uo pipefail

SYS=${FLOWGATE_SYSFS:-/sys}
PCI=$SYS/bus/pci

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | head -n -1 >&2; exit 2; }
refuse() { echo "$1: $2" >&2; status=1; }

force=no noiommu=no json=no words=()
for word in "$@"; do
    case $word in
    --force) force=yes ;;
    --noiommu) noiommu=yes ;;
    --json) json=yes ;;
    -*) usage ;;
    *) words+=("$word") ;;
    esac
done
set -- "${words[@]}"

# link FILE: the last part of where a symbolic link points.
link() { [ -L "$1" ] && basename "$(readlink "$1")"; }
read_file() { cat "$1" 2>/dev/null; }
driver() { link "$PCI/devices/$1/driver"; }

# The network interfaces of a card, those behind a virtio device included.
interfaces() {
    local path
    for path in "$PCI/devices/$1"/net/* "$PCI/devices/$1"/virtio*/net/*; do
        [ -e "$path" ] && basename "$path"
    done
}

# An interface and all that stands on it: bridges, bonds, VLANs.
uppers() {
    local path
    echo "$1"
    for path in "$SYS/class/net/$1"/upper_*; do
        [ -e "$path" ] && uppers "${path##*/upper_}"
    done
}

# Interfaces the machine is reached by, one "NAME WHY" a line.
vital() {
    local address
    { ip -o -4 route show default; ip -o -6 route show default; } 2>/dev/null |
        grep -o 'dev [^ ]*' | sed 's/^dev \(.*\)/\1 the default route/'
    {
        [ -n "${SSH_CONNECTION:-}" ] && echo "$SSH_CONNECTION" | cut -d ' ' -f 3
        ss -Htn state established '( sport = :22 )' 2>/dev/null | awk '{ print $3 }' | sed 's/:[0-9]*$//; s/^\[//; s/\]$//; s/%.*//; s/^::ffff://'
    } | sort -u | while IFS= read -r address; do
        ip -o addr show 2>/dev/null | awk -v address="$address" '{ split($4, part, "/") } part[1] == address { print $2 " an ssh session" }'
    done
}

# What would be lost with a card, or nothing.
carries() {
    local interface upper name why
    for interface in $(interfaces "$1"); do
        for upper in $(uppers "$interface"); do
            while read -r name why; do
                if [ "$name" = "$upper" ]; then
                    echo "$why"
                    return
                fi
            done <<<"$VITAL"
        done
    done
}

# Network cards: PCI class 02.
cards() {
    local path
    for path in "$PCI/devices"/*; do
        [[ $(read_file "$path/class") == 0x02* ]] && basename "$path"
    done
}

show() {
    local card separator='' id node group names
    [ "$json" = yes ] && printf '['
    [ "$json" = yes ] || printf '%-13s %-10s %-14s %4s %5s  %s\n' ADDRESS ID DRIVER NODE IOMMU INTERFACE
    for card in $(cards); do
        id=$(read_file "$PCI/devices/$card/vendor"):$(read_file "$PCI/devices/$card/device")
        id=${id//0x/}
        node=$(read_file "$PCI/devices/$card/numa_node")
        group=$(link "$PCI/devices/$card/iommu_group")
        names=$(interfaces "$card" | paste -sd ' ')
        if [ "$json" = yes ]; then
            printf '%s{"address":"%s","id":"%s","driver":%s,"node":%s,"iommu_group":%s,"interfaces":[%s],"carries":%s}' \
                "$separator" "$card" "$id" "$(quoted "$(driver "$card")")" "${node:--1}" "${group:-null}" \
                "$(for name in $names; do quoted "$name"; done | sed 's/""/","/g')" "$(quoted "$(carries "$card")")"
            separator=,
        else
            local why
            why=$(carries "$card")
            printf '%-13s %-10s %-14s %4s %5s  %s\n' "$card" "$id" "$(driver "$card" || echo -)" "${node:--1}" "${group:--}" \
                "${names:--}${why:+ (carries $why)}"
        fi
    done
    [ "$json" = yes ] && echo ']'
    return 0
}

quoted() { if [ -n "$1" ]; then printf '"%s"' "$1"; else printf 'null'; fi; }

# write VALUE FILE: true if the kernel took it.
write() { printf '%s\n' "$1" 2>/dev/null >"$2"; }

# The kernel binds before the write returns; a hot-plugged bus may take a moment.
becomes() {
    local try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        case $2 in
        kernel) [ -n "$(driver "$1")" ] && [ "$(driver "$1")" != vfio-pci ] && return ;;
        none) [ -z "$(driver "$1")" ] && return ;;
        *) [ "$(driver "$1")" = "$2" ] && return ;;
        esac
        [ "$try" = 10 ] || sleep 0.1
    done
    return 1
}

rebind() {
    local card=$1 override=$2 target=$3
    if ! write "$override" "$PCI/devices/$card/driver_override"; then
        refuse "$card" "no permission to change its driver: run as root"
        return 1
    fi
    if [ -n "$(driver "$card")" ] && ! { write "$card" "$PCI/devices/$card/driver/unbind" && becomes "$card" none; }; then
        refuse "$card" "its driver $(driver "$card") does not let it go"
        return 1
    fi
    write "$card" "$PCI/drivers_probe"
    becomes "$card" "$target"
}

to_vfio() {
    local card=$1 before group other
    before=$(driver "$card")
    case $before in
    vfio-pci)
        echo "$card: vfio-pci already"
        return
        ;;
    mlx4_core | mlx5_core)
        echo "$card: stays with $before, beside which DPDK works"
        return
        ;;
    esac
    if ! group=$(link "$PCI/devices/$card/iommu_group"); then
        if [ "$noiommu" = no ]; then
            refuse "$card" "there is no IOMMU for it: switch it on in the firmware and boot with intel_iommu=on iommu=pt (AMD: iommu=pt); or give --noiommu, and the card can write anywhere in memory"
            return
        fi
        [ -e "$SYS/module/vfio" ] || modprobe vfio 2>/dev/null
        if ! write 1 "$SYS/module/vfio/parameters/enable_unsafe_noiommu_mode"; then
            refuse "$card" "this kernel's vfio has no mode without IOMMU (CONFIG_VFIO_NOIOMMU)"
            return
        fi
        echo "$card: no IOMMU: unsafe mode switched on"
    fi
    [ -e "$PCI/drivers/vfio-pci" ] || modprobe vfio-pci 2>/dev/null
    if [ ! -e "$PCI/drivers/vfio-pci" ]; then
        refuse "$card" "the kernel module vfio-pci cannot be loaded"
        return
    fi
    if rebind "$card" vfio-pci vfio-pci; then
        echo "$card: ${before:-no driver} -> vfio-pci"
    elif [ "$(driver "$card")" != vfio-pci ] && [ -z "$(driver "$card")" ]; then
        refuse "$card" "vfio-pci did not take it (see dmesg)"
    fi
    # VFIO opens a group only if all of it is in its hands.
    [ -n "$group" ] || return
    for other in "$SYS/kernel/iommu_groups/$group/devices"/*; do
        other=${other##*/}
        case $(driver "$other") in
        '' | vfio-pci | pcieport) ;;
        *) [ "$other" = "$card" ] || echo "$card: its IOMMU group $group also holds $other ($(driver "$other")): bind that one too" ;;
        esac
    done
}

to_kernel() {
    local card=$1 before
    before=$(driver "$card")
    case $before in
    '' | vfio-pci | uio_pci_generic | igb_uio) ;;
    *)
        echo "$card: $before already"
        return
        ;;
    esac
    if rebind "$card" '' kernel; then
        echo "$card: ${before:-no driver} -> $(driver "$card")"
    elif [ -z "$(driver "$card")" ]; then
        refuse "$card" "no kernel driver took it (see dmesg)"
    fi
}

status=0
VITAL=$(vital)
case ${1:-show} in
show)
    [ $# -le 1 ] || usage
    show
    ;;
vfio-pci | kernel)
    action=$1
    shift
    [ $# -gt 0 ] || usage
    for card in "$@"; do
        [[ $card == *:*:* ]] || card=0000:$card
        card=${card,,}
        if [ ! -e "$PCI/devices/$card" ]; then
            refuse "$card" "there is no such PCI device"
        elif [[ $(read_file "$PCI/devices/$card/class") != 0x02* ]]; then
            refuse "$card" "is not a network card"
        elif [ "$action" = vfio-pci ] && [ "$force" = no ] && why=$(carries "$card") && [ -n "$why" ]; then
            refuse "$card" "carries $why: --force takes it all the same"
        elif [ "$action" = vfio-pci ]; then
            to_vfio "$card"
        else
            to_kernel "$card"
        fi
    done
    ;;
*) usage ;;
esac
exit $status
