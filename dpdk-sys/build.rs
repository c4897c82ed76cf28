//! Finds libdpdk, checks its release, compiles the shim and generates the bindings.
//!
//! What differs between DPDK releases is decided here and nowhere else: `SUPPORTED` lists the releases, and each
//! difference becomes a `cfg` or a C macro below.

use std::env;
use std::path::PathBuf;

/// DPDK long-term releases this crate builds against: (year, month).
const SUPPORTED: &[(u32, u32)] = &[(22, 11), (23, 11), (24, 11), (25, 11)];

const PACKAGES: &str = "libdpdk is not installed: run scripts/setup.sh, or apt-get install libdpdk-dev dpdk-dev dpdk \
                        libpcap-dev libelf-dev clang libclang-dev pkg-config";

const FUNCTIONS: &[&str] = &[
    "fg_.*",
    "rte_eal_(init|cleanup|process_type|remote_launch|wait_lcore|get_lcore_state|has_hugepages|iova_mode|get_runtime_dir)",
    "rte_version",
    "rte_strerror",
    "rte_log_(set_global_level|set_level_regexp|set_level_pattern|register)",
    "rte_openlog_stream",
    "rte_log_get_stream",
    "rte_free",
    "rte_dev_(probe|remove|name|event_callback_register|event_monitor_start)",
    "rte_lcore_(count|index|to_socket_id|is_enabled)",
    "rte_get_(main_lcore|next_lcore|tsc_hz|timer_hz)",
    "rte_socket_id(_by_idx)?",
    "rte_socket_count",
    "rte_eth_dev_(info_get|configure|start|stop|close|count_avail|is_valid_port|get_port_by_name|get_name_by_port|set_mtu|get_mtu|rss_hash_update|rss_reta_update|rss_reta_query|set_vlan_offload|get_vlan_offload|socket_id|adjust_nb_rx_tx_desc|callback_register|set_link_up|set_link_down|get_supported_ptypes|set_ptypes|mac_addr_add|default_mac_addr_set)",
    "rte_eth_(rx_queue_setup|tx_queue_setup|promiscuous_enable|promiscuous_disable|promiscuous_get|allmulticast_enable|macaddr_get|link_get_nowait|link_speed_to_str|stats_get|stats_reset|xstats_get|xstats_get_names|find_next|iterator_init|iterator_next|iterator_cleanup)",
    "rte_eth_dev_.*offload_name",
    "rte_eth_bond_(mode_get|primary_get)",
    "rte_pktmbuf_pool_create(_by_ops)?",
    "rte_mempool_(free|avail_count|in_use_count|lookup|create)",
    "rte_ring_(create_elem|free|init|get_memsize_elem|lookup)",
    "rte_acl_(create|free|add_rules|build|classify|classify_alg|set_ctx_classify|reset|reset_rules|dump|find_existing)",
    "rte_bpf_(load|elf_load|exec|exec_burst|destroy|get_jit|convert)",
    "rte_meter_srtcm_(config|profile_config)",
    "rte_vect_(get_max_simd_bitwidth|set_max_simd_bitwidth)",
    "rte_thash_.*",
    "rte_malloc_(get_socket_stats|heap_get_socket)",
    "rte_delay_us_block",
    "rte_memzone_dump",
];

const TYPES: &[&str] = &[
    "rte_eth_.*",
    "rte_ether_addr",
    "rte_mempool",
    "rte_ring",
    "rte_acl_.*",
    "rte_bpf.*",
    "ebpf_insn",
    "rte_meter_srtcm.*",
    "rte_malloc_socket_stats",
    "rte_proc_type_t",
    "fg_.*",
];

const CONSTANTS: &[&str] = &[
    "RTE_ETH_.*",
    "RTE_ACL_.*",
    "RTE_MBUF_.*",
    "RTE_PKTMBUF_.*",
    "RTE_MAX_LCORE",
    "RTE_MAX_ETHPORTS",
    "RTE_BPF_.*",
    "RTE_VECT_SIMD_.*",
    "RTE_CACHE_LINE_SIZE",
    "RTE_RING_.*",
    "RING_F_.*",
    "RTE_VER_.*",
    "RTE_ETHER_.*",
    "FG_.*",
    "BONDING_MODE_.*",
    "EBPF_.*",
    "BPF_.*",
];

fn main() {
    for file in ["build.rs", "wrapper.h", "shim.h", "shim.c"] {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");

    let dpdk = match pkg_config::Config::new().cargo_metadata(false).probe("libdpdk") {
        Ok(dpdk) => dpdk,
        Err(_) => fail(PACKAGES),
    };
    let release = check_release(&dpdk.version);
    println!("cargo:rustc-env=DPDK_BUILD_VERSION={}", dpdk.version);
    println!("cargo:version={}", dpdk.version);

    for path in &dpdk.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    let cflags = cflags();
    println!("cargo:rustc-check-cfg=cfg(dpdk_23_11, dpdk_24_11, dpdk_25_11)");
    for (year, month) in SUPPORTED.iter().filter(|at| **at > (22, 11) && **at <= release) {
        println!("cargo:rustc-cfg=dpdk_{year}_{month}");
    }

    let mut shim = cc::Build::new();
    shim.file("shim.c").warnings(true).extra_warnings(false).opt_level(3).debug(false);
    for flag in &cflags {
        shim.flag(flag);
    }
    // The inline functions of some releases are marked experimental (rte_pktmbuf_free_bulk once was).
    shim.define("ALLOW_EXPERIMENTAL_API", None);
    shim.compile("flowgate_shim");

    // After the shim, so that the linker resolves its references. Drivers are loaded at run time from DPDK's folder.
    for lib in &dpdk.libs {
        println!("cargo:rustc-link-lib=dylib={lib}");
    }
    // The one driver with functions of its own that are called.
    println!("cargo:rustc-link-lib=dylib=rte_net_bond");

    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(&cflags)
        .clang_arg("-DALLOW_EXPERIMENTAL_API")
        .layout_tests(true)
        .derive_debug(false)
        .derive_default(true)
        .generate_comments(false)
        .prepend_enum_name(false)
        .blocklist_type("rte_mbuf")
        .raw_line("/// A packet buffer: opaque here, its layout is the shim's business.\n#[repr(C)]\npub struct rte_mbuf { _private: [u8; 0] }")
        .opaque_type("rte_mempool")
        .opaque_type("rte_ring")
        .opaque_type("rte_bpf_xsym.*");
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    let bindings = match builder.generate() {
        Ok(bindings) => bindings,
        Err(error) => fail(&format!("bindgen could not read DPDK's headers: {error}")),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        fail(&format!("cannot write {}: {error}", out.display()));
    }
}

/// The release as (year, month), or the build ends naming the ones that work.
fn check_release(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if !SUPPORTED.contains(&release) {
        let list: Vec<String> = SUPPORTED.iter().map(|(year, month)| format!("{year}.{month:02}")).collect();
        fail(&format!("libdpdk {version} is installed; flowgate builds against {}", list.join(", ")));
    }
    release
}

/// All of pkg-config's flags: DPDK needs `-include rte_config.h` and its `-march`, which the pkg-config crate drops.
fn cflags() -> Vec<String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let out = std::process::Command::new(&program).args(["--cflags", "libdpdk"]).output();
    match out {
        Ok(out) if out.status.success() => {
            String::from_utf8_lossy(&out.stdout).split_whitespace().map(str::to_owned).collect()
        }
        _ => fail(PACKAGES),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("{message}");
    std::process::exit(1);
}
