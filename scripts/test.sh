#!/usr/bin/env bash
# Installs, builds and runs every test, or the stages named:
#   scripts/test.sh [STAGE ...]
#
#   setup    packages, toolchain, hugepages
#   lint     format, clippy with warnings denied, shell scripts
#   unit     unit, property and differential tests; the datapath in memory; documentation examples
#   cli      the command line: check, describe, replay
#   dpdk     safe handles on DPDK over virtual devices
#   vdev     the real binary over net_pcap, net_null and net_memif, with testpmd at the other end
#   netns    the real binary between network namespaces, with real clients
#   fuzz     each fuzz target for a short while
#   miri     what unsafe code the flow tables and frames rest on, under Miri, where the toolchain has it
#   demo     scripts/demo.sh
#   bench    the bench harness, for a moment: that it works, not how fast
#
# What cannot run says "skipped: NAME: why" and counts as skipped. With FLOWGATE_REQUIRE=all, as in CI, a skip is a failure
# unless tests/allowed-skips.txt names it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

ALL=(setup lint unit cli dpdk vdev netns fuzz miri demo bench)
stages=("$@")
[ $# -gt 0 ] || stages=("${ALL[@]}")
for stage in "${stages[@]}"; do
    case " ${ALL[*]} " in
    *" $stage "*) ;;
    *)
        echo "scripts/test.sh: there is no stage \"$stage\"; there are: ${ALL[*]}" >&2
        exit 2
        ;;
    esac
done

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' red='' green='' plain=''; fi
log=$(mktemp -d /tmp/flowgate-test.XXXXXX)
trap 'rm -rf "$log"' EXIT
passed=0 failed=0 skipped=0

skip() { echo "skipped: $1: $2"; }

cargo_test() { cargo test --locked --no-fail-fast "$@" -- --nocapture --test-threads="${THREADS:-2}"; }

stage_setup() { scripts/setup.sh; }

stage_lint() {
    cargo fmt --all --check &&
        cargo clippy --locked --workspace --all-targets -- -D warnings || return 1
    if command -v shellcheck >/dev/null; then
        shellcheck -x scripts/*.sh .ci/run
    else
        skip shellcheck "shellcheck is not installed"
    fi
}

stage_unit() { cargo_test --workspace --lib --bins && cargo_test --test 'decode_differential' --test 'reply_differential' --test 'laws' && cargo test --locked --doc; }
stage_cli() { cargo_test --test 'check' --test 'explain' --test 'replay'; }
stage_dpdk() { THREADS=1 cargo_test --test 'dpdk' --test 'dpdk_hugepages' --test 'scripts'; }
stage_vdev() { THREADS=1 cargo_test --test 'vdev' --test 'capture' --test 'monitoring' --test 'apply' --test 'api'; }
stage_netns() { THREADS=1 cargo_test --test 'netns' --test 'kernel' --test 'stateful' --test 'router' --test 'linux_conntrack' --test 'linux_router' --test 'bond'; }

stage_fuzz() {
    local target
    if ! cargo fuzz --version >/dev/null 2>&1; then
        cargo install --locked --quiet cargo-fuzz || { skip fuzz "cargo-fuzz could not be installed"; return 0; }
    fi
    # cargo-fuzz wants the sanitizer switch of a nightly compiler; the stable one has it too, behind this variable.
    export RUSTC_BOOTSTRAP=1
    for target in $(cargo fuzz list); do
        echo "fuzz target $target"
        cargo fuzz run --release "$target" -- -max_total_time="${FUZZ_SECONDS:-15}" -rss_limit_mb=4096 2>&1 | tail -5
        [ "${PIPESTATUS[0]}" = 0 ] || return 1
    done
}

stage_miri() {
    if ! cargo miri --version >/dev/null 2>&1; then
        skip miri "the toolchain has no Miri (a nightly one has: rustup +nightly component add miri)"
        return 0
    fi
    MIRIFLAGS=-Zmiri-disable-isolation cargo miri test --lib -- flow::table packet::frame
}

stage_demo() { scripts/demo.sh; }
# The program that makes flows may be slow here: it is not measured, and another link of everything takes minutes.
stage_bench() {
    cargo build --release --locked && cargo build --locked --example bench-flows &&
        scripts/bench.sh --smoke --generator target/debug/examples/bench-flows cross stateful route router nat
}

for stage in "${stages[@]}"; do
    printf '\n%s== %s%s\n' "$bold" "$stage" "$plain"
    began=$SECONDS
    "stage_$stage" 2>&1 | tee "$log/$stage"
    status=${PIPESTATUS[0]}
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        printf '%s== %s: passed in %s s%s\n' "$green" "$stage" $((SECONDS - began)) "$plain"
    else
        failed=$((failed + 1))
        printf '%s== %s: FAILED after %s s%s\n' "$red" "$stage" $((SECONDS - began)) "$plain"
    fi
    while IFS= read -r line; do
        name=$(printf '%s' "$line" | cut -d: -f2 | tr -d ' ')
        skipped=$((skipped + 1))
        if [ "${FLOWGATE_REQUIRE:-}" = all ] && ! grep -q "^$name:" tests/allowed-skips.txt; then
            echo "$line: not allowed here (tests/allowed-skips.txt)"
            failed=$((failed + 1))
        fi
    done < <(grep -ho 'skipped: [a-z0-9-]*: .*' "$log/$stage")
done

printf '\nstages: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
