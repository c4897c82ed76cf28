//! FRR's zebra and bgpd in a namespace, with files of their own.

use std::fs::{Permissions, create_dir, read_to_string, remove_file, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::appliance::{unique, wait_for};
use super::host::{Lab, run};

const DAEMONS: &str = "/usr/lib/frr";

/// Daemons, and the folder of their files.
pub struct Frr {
    namespace: String,
    dir: PathBuf,
    processes: Vec<u32>,
}

/// Why FRR cannot be used, if it cannot.
pub fn missing() -> Option<String> {
    let lacking = ["zebra", "bgpd"].iter().find(|daemon| !Path::new(DAEMONS).join(daemon).exists())?;
    Some(format!("FRR is not installed: {DAEMONS}/{lacking}"))
}

impl Frr {
    /// Prepares a configuration; nothing runs yet.
    pub fn new(lab: &Lab, namespace: &str, config: &str) -> Frr {
        let dir = lab.file(&format!("frr{}", unique()));
        create_dir(&dir).expect("a writable folder");
        write(dir.join("frr.conf"), config).expect("a writable folder");
        write(dir.join("vtysh.conf"), "").expect("a writable folder");
        // The daemons run as a user of their own.
        set_permissions(lab.dir.path(), Permissions::from_mode(0o711)).expect("the lab's folder");
        run(&format!("chown -R frr:frr {}", dir.display()));
        Frr { namespace: namespace.to_owned(), dir, processes: Vec::new() }
    }

    /// Starts zebra, with these options, and bgpd, and gives them their configuration as FRR's service does.
    pub fn start(&mut self, lab: &mut Lab, zebra: &str) {
        let dir = self.dir.display().to_string();
        for (daemon, options) in [("zebra", zebra), ("bgpd", "")] {
            let socket = self.dir.join(format!("{daemon}.vty"));
            // One that was killed has left it behind.
            let _ = remove_file(&socket);
            // So is what one that is killed leaves in /var/tmp.
            let command = format!(
                "mount -t tmpfs none /var/tmp && exec {DAEMONS}/{daemon} -f /dev/null -P 0 --vty_socket {dir} \
                 -z {dir}/zserv -i {dir}/{daemon}.pid --log file:{dir}/{daemon}.log {options}"
            );
            self.processes.push(lab.spawn(&self.namespace, &["sh", "-c", &command]));
            wait_for(&format!("{daemon} listens"), || socket.exists());
        }
        self.vtysh(&["-b"]);
    }

    /// Ends both with a signal, bgpd first.
    pub fn stop(&mut self, lab: &mut Lab, signal: &str) {
        for process in self.processes.drain(..).rev() {
            lab.end(process, signal);
        }
    }

    /// Changes the configuration line by line.
    pub fn configure(&self, lines: &[&str]) {
        self.vtysh(
            &[&["-c", "configure terminal"][..], &lines.iter().flat_map(|line| ["-c", line]).collect::<Vec<_>>()]
                .concat(),
        );
    }

    fn vtysh(&self, arguments: &[&str]) {
        let mut command = Command::new("vtysh");
        command.arg("--vty_socket").arg(&self.dir).arg("--config_dir").arg(&self.dir).args(arguments);
        let output = command.output().expect("vtysh");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !said.contains('%'), "vtysh {arguments:?}: {said}");
    }

    fn log(&self) -> String {
        let log = |daemon| read_to_string(self.dir.join(daemon)).unwrap_or_default();
        ["zebra.log", "bgpd.log"].map(log).concat()
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("FRR in {}:\n{}", self.namespace, self.log());
        }
    }
}
