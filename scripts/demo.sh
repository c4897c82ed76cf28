#!/usr/bin/env bash
# Shows flowgate at its main job, on real traffic, unattended: two hosts (network namespaces) talk through a transparent
# firewall that config/demo.toml describes. Installs and builds what is needed, exits 0 only if everything that should pass
# passed and everything that should not did not, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

CLIENT=fgd-client SERVER=fgd-server SOCKET=/run/flowgate-demo.sock
work=$(mktemp -d /tmp/flowgate-demo.XXXXXX)
pids=() failures=0

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

cleanup() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    ip netns del "$CLIENT" 2>/dev/null || true
    ip netns del "$SERVER" 2>/dev/null || true
    ip link del fgd-lan 2>/dev/null || true
    ip link del fgd-wan 2>/dev/null || true
    rm -rf "$work"
}

# check NAME pass|refuse COMMAND...: runs it, shows its last line, and says whether it ended as it should.
check() {
    local name=$1 want=$2 got=pass
    shift 2
    "$@" >"$work/out" 2>&1 || got=refuse
    if [ "$got" = "$want" ]; then
        printf '  %sas it should%s  %-46s %s\n' "$green" "$plain" "$name" "$([ "$got" = pass ] && echo 'got through' || echo 'was stopped')"
    else
        printf '  %sWRONG%s         %-46s %s\n' "$red" "$plain" "$name" "$([ "$got" = pass ] && echo 'got through' || echo 'was stopped')"
        sed 's/^/      /' "$work/out" | tail -5
        failures=$((failures + 1))
    fi
}

# A veth pair: one end for DPDK, the other inside a namespace as eth0. DPDK's end must be left alone by the kernel, and the
# host's end must fill in checksums and not send super-frames, since no kernel will see to that on the way.
host() {
    local namespace=$1 port=$2 v4=$3 v6=$4
    ip netns add "$namespace"
    ip link add "$port" type veth peer name eth0 netns "$namespace"
    sysctl -qw "net.ipv6.conf.$port.disable_ipv6=1"
    ip link set "$port" arp off up
    ip -n "$namespace" link set lo up
    ip netns exec "$namespace" sysctl -qw net.ipv6.conf.eth0.accept_dad=0
    ip -n "$namespace" addr add "$v4" dev eth0
    ip -n "$namespace" addr add "$v6" dev eth0 nodad
    ip -n "$namespace" link set eth0 up
    local end
    for end in "" "$namespace"; do
        ${end:+ip netns exec "$end"} ethtool -K "$([ -n "$end" ] && echo eth0 || echo "$port")" \
            tx off rx off gso off tso off gro off >/dev/null 2>&1 || true
    done
}

[ "$(id -u)" = 0 ] || { echo "scripts/demo.sh makes network namespaces: run it as root (sudo scripts/demo.sh)" >&2; exit 3; }
for leftover in fgd-lan fgd-wan; do
    if ip link show "$leftover" >/dev/null 2>&1; then
        echo "an interface $leftover exists already: is another demo running? (ip link del $leftover)" >&2
        exit 3
    fi
done
trap cleanup EXIT
trap 'exit 130' INT TERM

say "1. Install and build"
scripts/setup.sh
cargo build --release --locked
flowgate=target/release/flowgate

say "2. The configuration: config/demo.toml"
"$flowgate" check config/demo.toml

say "3. Two hosts, a veth pair each, flowgate between the other two ends"
host "$CLIENT" fgd-lan 10.77.0.1/24 2001:db8:77::1/64
host "$SERVER" fgd-wan 10.77.0.2/24 2001:db8:77::2/64
ip -n "$CLIENT" addr add 10.77.0.66/24 dev eth0
mkdir "$work/www"
echo "Hello through flowgate." >"$work/www/index.html"
for port in 80 9999; do
    ip netns exec "$SERVER" python3 -m http.server --bind :: --directory "$work/www" "$port" >/dev/null 2>&1 &
    pids+=($!)
done
echo "  client 10.77.0.1, 2001:db8:77::1    server 10.77.0.2, 2001:db8:77::2 (HTTP on 80 and on 9999)"

"$flowgate" run config/demo.toml >"$work/flowgate.log" 2>&1 &
flowgate_pid=$!
pids+=("$flowgate_pid")
for _ in $(seq 100); do
    "$flowgate" show ports --socket "$SOCKET" >/dev/null 2>&1 && break
    if ! kill -0 "$flowgate_pid" 2>/dev/null; then
        echo "flowgate did not start:" >&2
        cat "$work/flowgate.log" >&2
        exit 1
    fi
    sleep 0.2
done
"$flowgate" show pipeline --socket "$SOCKET"

in_client() { ip netns exec "$CLIENT" "$@"; }

say "4. What the file allows"
check "ping" pass in_client ping -c 3 -i 0.2 -W 2 10.77.0.2
check "ping, IPv6" pass in_client ping -6 -c 3 -i 0.2 -W 2 2001:db8:77::2
check "ping of 1400 bytes" pass in_client ping -c 1 -W 2 -s 1400 10.77.0.2
check "HTTP" pass in_client curl -fsS -m 5 http://10.77.0.2/
check "HTTP, IPv6" pass in_client curl -fsS -m 5 'http://[2001:db8:77::2]/'

say "5. What it does not"
check "HTTP on port 9999 (no rule)" refuse in_client curl -fsS -m 2 http://10.77.0.2:9999/
check "HTTP on port 9999, IPv6 (no rule)" refuse in_client curl -fsS -m 2 'http://[2001:db8:77::2]:9999/'
check "ping from the blocklisted 10.77.0.66" refuse in_client ping -c 1 -W 1 -I 10.77.0.66 10.77.0.2
check "ping from the server's side (no rule)" refuse ip netns exec "$SERVER" ping -c 1 -W 1 10.77.0.1

say "6. What flowgate counted"
for what in ports rules drops talkers workers; do
    echo "--- flowgate show $what"
    "$flowgate" show "$what" --socket "$SOCKET"
done

say "7. Stop"
kill -INT "$flowgate_pid"
wait "$flowgate_pid" && stopped=0 || stopped=$?
cat "$work/flowgate.log"
if [ "$stopped" != 0 ] || [ -e "$SOCKET" ]; then
    printf '%sWRONG%s flowgate ended with status %s or left its socket behind\n' "$red" "$plain" "$stopped"
    failures=$((failures + 1))
fi

if [ "$failures" = 0 ]; then
    say "The demonstration went as it should."
else
    say "$failures thing(s) went wrong."
    exit 1
fi
