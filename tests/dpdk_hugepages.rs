//! The EAL's life on hugepages: they are taken at start, and given back at the end with all runtime files. A process of its
//! own, since an EAL starts once.

use std::sync::Arc;

use flowgate::dpdk::eal::{Eal, EalConfig, Hugepages};
use flowgate::dpdk::error::Error;
use flowgate::dpdk::pool::Pool;
use flowgate::io::Io;
use flowgate::io::dpdk::DpdkIo;

#[test]
fn memory_and_files_come_and_go() {
    let prefix = format!("flowgate-life-{}", std::process::id());
    let config = EalConfig {
        hugepages: Hugepages::Auto,
        memory: 32,
        spare: 0,
        cores: Vec::new(),
        oversubscribe: false,
        prefix: prefix.clone(),
        pci: Vec::new(),
        secondary: false,
        telemetry: false,
        verbose: false,
        log_level: Vec::new(),
        extra: Vec::new(),
    };
    // What is refused before the EAL leaves it to be started.
    let error =
        Eal::start(&EalConfig { hugepages: Hugepages::Require, memory: u32::MAX, ..config.clone() }).unwrap_err();
    assert!(matches!(error, Error::Hugepages { asked: 0xffff_ffff, .. } | Error::NoHugetlbfs), "{error:?}");
    let error = Eal::start(&EalConfig { pci: vec!["0000:ff:1f.7".into()], ..config.clone() }).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error:?}");

    let eal = Eal::start(&config).expect("with hugepages or without");
    assert_eq!(eal.hugepages(), eal.notes().is_empty(), "doing without is said: {:?}", eal.notes());
    let directory = std::fs::read_dir("/var/run/dpdk")
        .map(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy() == prefix));
    if !eal.hugepages() {
        println!("skipped: hugepages: {:?}", eal.notes());
    } else {
        assert_eq!(directory.ok(), Some(true));
        let files = std::fs::read_dir("/dev/hugepages").expect("mounted").flatten();
        let ours = files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix)).count();
        assert_eq!(ours, 0, "pages are unlinked, so that a crash leaves none");
    }
    let pool = Arc::new(Pool::new(eal, "life", 0, 1024, 1500).expect("memory"));
    let mut frame = pool.take().expect("a buffer");
    assert!(frame.set_len(60) && pool.in_use() == 1);
    let mut io = DpdkIo::new(Vec::new(), pool.clone());
    io.free(std::slice::from_mut(&mut frame));
    assert_eq!(pool.in_use(), 0);
    drop((io, pool));
    eal.close();
    eal.close();
    assert!(!std::path::Path::new("/var/run/dpdk").join(&prefix).exists());
    assert_eq!(eal.lease().unwrap_err(), Error::Closed);
    assert_eq!(eal.launch(0, || ()).err().map(|error| error.to_string().contains("0 workers")), Some(true));
}
