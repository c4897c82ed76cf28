//! `scripts/bind.sh` on a PCI bus of files, whose kernel is a thread of the test, and `scripts/setup.sh --check`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

const LAN: &str = "0000:01:00.0";
const WAN: &str = "0000:01:00.1";
const DISK: &str = "0000:02:00.0";

/// A sysfs of files. Writes to its named pipes reach `kernel`.
struct Sysfs {
    root: tempfile::TempDir,
    kernels: Vec<JoinHandle<()>>,
    pipes: Vec<PathBuf>,
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().expect("inside")).and_then(|()| fs::write(&path, text)).expect("written");
}

fn program(path: PathBuf, text: &str) {
    write(path.clone(), &format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

/// Serves a named pipe until it reads `end`.
fn serve(pipe: PathBuf, act: impl Fn(&str) + Send + 'static) -> JoinHandle<()> {
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    thread::spawn(move || {
        loop {
            let text = fs::read_to_string(&pipe).expect("read");
            for line in text.lines() {
                if line == "end" {
                    return;
                }
                act(line);
            }
        }
    })
}

impl Sysfs {
    /// Two network cards of one IOMMU group with the driver `ixgbe`, and a disk.
    fn new(iommu: bool) -> Sysfs {
        let root = tempfile::tempdir().expect("a directory");
        let mut sysfs = Sysfs { root, kernels: Vec::new(), pipes: Vec::new() };
        for (address, class, interface) in
            [(LAN, "0x020000", "lan0"), (WAN, "0x020000", "wan0"), (DISK, "0x010802", "")]
        {
            let device = sysfs.device(address);
            write(device.join("class"), class);
            write(device.join("vendor"), "0x8086\n");
            write(device.join("device"), "0x10fb\n");
            write(device.join("numa_node"), "1\n");
            write(device.join("driver_override"), "(null)\n");
            if !interface.is_empty() {
                fs::create_dir_all(device.join("net").join(interface)).expect("made");
                fs::create_dir_all(sysfs.path("class/net").join(interface)).expect("made");
            }
            if iommu {
                let group = sysfs.path("kernel/iommu_groups/7");
                fs::create_dir_all(group.join("devices").join(address)).expect("made");
                symlink(group, device.join("iommu_group")).expect("linked");
            }
        }
        for driver in ["ixgbe", "vfio-pci"] {
            fs::create_dir_all(sysfs.path("bus/pci/drivers").join(driver)).expect("made");
            let bus = sysfs.path("bus/pci");
            sysfs.pipe(&format!("bus/pci/drivers/{driver}/unbind"), move |address| {
                fs::remove_file(bus.join("devices").join(address).join("driver")).expect("was bound");
            });
        }
        let bus = sysfs.path("bus/pci");
        sysfs.pipe("bus/pci/drivers_probe", move |address| {
            let device = bus.join("devices").join(address);
            let wanted = fs::read_to_string(device.join("driver_override")).expect("there");
            let driver = if wanted.trim().is_empty() { "ixgbe" } else { wanted.trim() };
            symlink(bus.join("drivers").join(driver), device.join("driver")).expect("was free");
        });
        for address in [LAN, WAN] {
            symlink(sysfs.path("bus/pci/drivers/ixgbe"), sysfs.device(address).join("driver")).expect("linked");
        }
        write(sysfs.path("module/vfio/parameters/enable_unsafe_noiommu_mode"), "N\n");
        // A bridge on wan0 carries the default route; an ssh session comes in over lan0 if the variable says so.
        fs::create_dir_all(sysfs.path("class/net/wan0/upper_br0")).expect("made");
        program(
            sysfs.path("bin/ip"),
            "case \"$*\" in *'-4 route'*) echo 'default via 192.0.2.1 dev br0 proto static';; \
             *addr*) echo '2: lan0    inet 10.0.0.1/24 scope global lan0';; esac",
        );
        program(sysfs.path("bin/ss"), "exit 0");
        program(sysfs.path("bin/modprobe"), "exit 1");
        sysfs
    }

    fn path(&self, under: &str) -> PathBuf {
        self.root.path().join(under)
    }

    fn device(&self, address: &str) -> PathBuf {
        self.path("bus/pci/devices").join(address)
    }

    fn pipe(&mut self, under: &str, act: impl Fn(&str) + Send + 'static) {
        self.pipes.push(self.path(under));
        self.kernels.push(serve(self.path(under), act));
    }

    fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.device(address).join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bind.sh"));
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.args(arguments).env("FLOWGATE_SYSFS", self.root.path()).env("PATH", path).env_remove("SSH_CONNECTION");
        command
    }

    /// Exit code, and what was printed on either stream.
    fn bind(&self, arguments: &[&str]) -> (i32, String) {
        outcome(self.command(arguments).output().expect("runs"))
    }
}

impl Drop for Sysfs {
    fn drop(&mut self) {
        for (pipe, kernel) in self.pipes.iter().zip(self.kernels.drain(..)) {
            // A kernel that panicked reads no more, and a write would wait for it.
            if !kernel.is_finished() {
                let _ = fs::write(pipe, "end\n");
                let _ = kernel.join();
            }
        }
    }
}

fn outcome(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn cards_are_listed() {
    let sysfs = Sysfs::new(true);
    let (code, text) = sysfs.bind(&["--json"]);
    let cards: Value = serde_json::from_str(&text).expect("JSON");
    let card = |address, interface, carries| {
        json!({"address": address, "id": "8086:10fb", "driver": "ixgbe", "node": 1, "iommu_group": 7,
            "interfaces": [interface], "carries": carries})
    };
    assert_eq!(code, 0);
    assert_eq!(cards, json!([card(LAN, "lan0", Value::Null), card(WAN, "wan0", json!("the default route"))]));
    let (code, text) = sysfs.bind(&[]);
    assert_eq!((code, text.lines().count()), (0, 3), "{text}");
    assert!(text.lines().any(|line| line.starts_with(WAN) && line.ends_with("wan0 (carries the default route)")));
}

#[test]
fn a_card_goes_to_vfio_and_back() {
    let sysfs = Sysfs::new(true);
    let (code, text) = sysfs.bind(&["vfio-pci", "01:00.0"]);
    assert_eq!((code, sysfs.driver(LAN).as_deref()), (0, Some("vfio-pci")), "{text}");
    assert!(text.starts_with(&format!("{LAN}: ixgbe -> vfio-pci\n")), "{text}");
    assert!(text.contains(&format!("IOMMU group 7 also holds {WAN} (ixgbe)")), "{text}");
    assert!(sysfs.bind(&["vfio-pci", LAN]).1.starts_with(&format!("{LAN}: vfio-pci already")));
    assert_eq!(sysfs.bind(&["kernel", LAN]), (0, format!("{LAN}: vfio-pci -> ixgbe\n")));
    assert_eq!(sysfs.bind(&["kernel", LAN]), (0, format!("{LAN}: ixgbe already\n")));
    assert_eq!(fs::read_to_string(sysfs.device(LAN).join("driver_override")).expect("there"), "\n");
}

#[test]
fn what_would_cut_the_machine_off_is_refused() {
    let sysfs = Sysfs::new(true);
    let (code, text) = sysfs.bind(&["vfio-pci", WAN]);
    assert_eq!((code, sysfs.driver(WAN).as_deref()), (1, Some("ixgbe")));
    assert_eq!(text, format!("{WAN}: carries the default route: --force takes it all the same\n"));
    let ssh = sysfs.command(&["vfio-pci", LAN]).env("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.1 22").output();
    assert_eq!(
        outcome(ssh.expect("runs")).1,
        format!("{LAN}: carries an ssh session: --force takes it all the same\n")
    );
    assert_eq!(sysfs.driver(LAN).as_deref(), Some("ixgbe"));
    assert_eq!(sysfs.bind(&["--force", "vfio-pci", WAN]).0, 0);
    assert_eq!(sysfs.driver(WAN).as_deref(), Some("vfio-pci"));
}

#[test]
fn without_an_iommu_only_on_request() {
    let sysfs = Sysfs::new(false);
    let (code, text) = sysfs.bind(&["vfio-pci", LAN]);
    assert_eq!((code, sysfs.driver(LAN).as_deref()), (1, Some("ixgbe")));
    assert!(text.contains("no IOMMU") && text.contains("--noiommu"), "{text}");
    assert_eq!(sysfs.bind(&["--noiommu", "vfio-pci", LAN]).0, 0);
    assert_eq!(sysfs.driver(LAN).as_deref(), Some("vfio-pci"));
    let mode = sysfs.path("module/vfio/parameters/enable_unsafe_noiommu_mode");
    assert_eq!(fs::read_to_string(mode).expect("there"), "1\n");
}

#[test]
fn what_is_no_card_is_refused() {
    let sysfs = Sysfs::new(true);
    assert_eq!(sysfs.bind(&["vfio-pci", "0000:ff:1f.7"]), (1, "0000:ff:1f.7: there is no such PCI device\n".into()));
    assert_eq!(sysfs.bind(&["vfio-pci", DISK]), (1, format!("{DISK}: is not a network card\n")));
    for wrong in [&["vfio-pci"][..], &["--nonsense"], &["elsewhere", LAN]] {
        let (code, text) = sysfs.bind(wrong);
        assert!(code == 2 && text.contains("scripts/bind.sh [--json]"), "{wrong:?}: {text}");
    }
}

#[test]
fn setup_reports_without_changing_anything() {
    let setup = |arguments: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup.sh");
        outcome(Command::new(script).args(arguments).output().expect("runs"))
    };
    // What builds this test has a toolchain and libdpdk.
    let (code, text) = setup(&["--check", "--build"]);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    assert!(line("rust:").is_some_and(|line| line.contains("is needed)")), "{text}");
    assert!(line("dpdk:").is_some() && line("packages:").is_some() && line("hugepages:").is_some(), "{text}");
    assert_eq!(
        line("result:").is_some_and(|line| line.ends_with(" ready") && !line.contains("not")),
        code == 0,
        "{text}"
    );
    assert_eq!(setup(&["--hugepages", "many"]).0, 2);
}
