//! Versions of the config: what runs, what ran before, and the file that the next start reads.
//!
//! A version is a file of its own, written whole beside its place and put there by a rename, so that a process that dies at any
//! moment leaves the old one or the new one. Without a folder to keep them in, versions live as long as the process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Versions that are kept.
const KEPT: usize = 100;

/// One version.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Version {
    /// Its number, counting from 1; later ones are larger.
    pub number: u64,
    /// When it began to run, Unix seconds.
    pub since: u64,
    /// Where it came from: a path, or `rollback to 3`.
    pub origin: String,
    /// The file's text.
    #[serde(skip)]
    pub text: String,
}

/// All versions, the last of which runs.
#[derive(Debug)]
pub struct History {
    folder: Option<PathBuf>,
    versions: Vec<Version>,
}

impl History {
    /// Versions that live as long as the process.
    pub fn in_memory() -> History {
        History { folder: None, versions: Vec::new() }
    }

    /// What a folder holds. The error says what is wrong with it; versions are then kept in memory alone.
    pub fn open(folder: &Path) -> (History, Option<String>) {
        let read = || -> io::Result<Vec<Version>> {
            fs::create_dir_all(folder)?;
            let mut versions = Vec::new();
            for file in fs::read_dir(folder)? {
                let path = file?.path();
                let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                if let (Some(number), Some("toml")) =
                    (number, path.extension().and_then(|extension| extension.to_str()))
                {
                    versions.extend(read_version(&path, number)?);
                }
            }
            versions.sort_by_key(|version: &Version| version.number);
            // Whether it can be written, too.
            put(&folder.join("probe"), "")?;
            fs::remove_file(folder.join("probe"))?;
            Ok(versions)
        };
        match read() {
            Ok(versions) => (History { folder: Some(folder.to_owned()), versions }, None),
            Err(error) => {
                let note = format!("{}: cannot keep versions of the config there: {error}", folder.display());
                (History::in_memory(), Some(note))
            }
        }
    }

    /// The versions, oldest first.
    pub fn all(&self) -> &[Version] {
        &self.versions
    }

    /// The version with a number.
    pub fn get(&self, number: u64) -> Option<&Version> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// Adds the version that runs from now on, unless it is the last one again; its number is returned, and what went wrong in
    /// writing it down.
    pub fn push(&mut self, text: &str, origin: &str) -> (u64, Option<String>) {
        if let Some(last) = self.versions.last().filter(|last| last.text == text) {
            return (last.number, None);
        }
        let number = self.versions.last().map_or(1, |last| last.number + 1);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let version = Version { number, since, origin: origin.to_owned(), text: text.to_owned() };
        let written = self.write(&version).err();
        self.versions.push(version);
        while self.versions.len() > KEPT {
            let oldest = self.versions.remove(0);
            if let Some(folder) = &self.folder {
                let _ = fs::remove_file(file_of(folder, oldest.number));
            }
        }
        (number, written.map(|error| format!("version {number} could not be written down: {error}")))
    }

    fn write(&self, version: &Version) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let head = format!("# flowgate version {} since {} from {}\n", version.number, version.since, version.origin);
        put(&file_of(folder, version.number), &(head + &version.text))
    }
}

fn file_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.toml"))
}

/// A version as written; `None` if the first line is not ours.
fn read_version(path: &Path, number: u64) -> io::Result<Option<Version>> {
    let whole = fs::read_to_string(path)?;
    let parsed = whole.split_once('\n').and_then(|(head, text)| {
        let rest = head.strip_prefix(&format!("# flowgate version {number} since "))?;
        let (since, origin) = rest.split_once(" from ")?;
        Some(Version { number, since: since.parse().ok()?, origin: origin.to_owned(), text: text.to_owned() })
    });
    Ok(parsed)
}

/// Replaces a file as a whole, on the disk too; its permissions stay.
pub fn put(path: &Path, text: &str) -> io::Result<()> {
    // Where it is a link, what it leads to is replaced.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        if let Ok(known) = fs::metadata(path) {
            file.set_permissions(known.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outlive_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut history, note) = History::open(folder.path());
        assert!(note.is_none() && history.all().is_empty());
        assert_eq!(history.push("a = 1\n", "/etc/a.toml").0, 1);
        assert_eq!(history.push("a = 1\n", "/etc/b.toml").0, 1, "the same again is no version");
        assert_eq!(history.push("a = 2\n", "rollback to 1").0, 2);
        let (again, _) = History::open(folder.path());
        let told: Vec<_> = again.all().iter().map(|one| (one.number, one.text.as_str(), one.origin.as_str())).collect();
        assert_eq!(told, [(1, "a = 1\n", "/etc/a.toml"), (2, "a = 2\n", "rollback to 1")]);
        assert_eq!(again.get(2).map(|version| version.text.as_str()), Some("a = 2\n"));
    }

    #[test]
    fn old_versions_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut history, _) = History::open(folder.path());
        (0..KEPT + 5).for_each(|n| drop(history.push(&format!("a = {n}\n"), "x")));
        assert_eq!((history.all().len(), history.all()[0].number), (KEPT, 6));
        assert_eq!(History::open(folder.path()).0.all().len(), KEPT);
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (mut history, note) = History::open(&file.path().join("versions"));
        assert!(note.expect("a note").contains("cannot keep versions"));
        assert_eq!(history.push("a = 1", "x"), (1, None));
    }

    #[test]
    fn a_file_is_replaced_through_a_link_and_keeps_its_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("real.toml"), folder.path().join("link.toml"));
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        put(&link, "new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("read"), "new");
        assert!(fs::symlink_metadata(&link).expect("there").file_type().is_symlink());
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2, "nothing is left over");
    }
}
