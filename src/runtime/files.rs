//! Detection of file changes by polling.
//!
//! The kubelet replaces a mounted volume by swapping a symbolic link, which inotify reports differently on different
//! file systems. Polling the file's identity a few times a second is cheap and works everywhere.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Polling interval.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Identity of a version of a file. A missing file has an identity too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileIdentity(Option<(PathBuf, u64, i64, i64, u64)>);

impl FileIdentity {
    /// Reads the current identity of `path`, following symbolic links.
    pub fn of(path: &Path) -> Self {
        let identity = || {
            let resolved = fs::canonicalize(path).ok()?;
            let meta = fs::metadata(&resolved).ok()?;
            Some((resolved, meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        };
        Self(identity())
    }
}

/// Reads a regular file. A pipe would block its reader for ever, and a device may not end.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?;
    if !kind.is_file() && !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not a regular file"));
    }
    fs::read(path)
}

/// A file that is read again when it has changed.
#[derive(Debug, Default)]
pub struct WatchedFile {
    seen: Option<(PathBuf, FileIdentity)>,
    /// Whether the last read failed with a transient error.
    retry: bool,
}

impl WatchedFile {
    /// Reads the file at `path`. None if it has not changed since the last call.
    ///
    /// # Errors
    ///
    /// Returns an error once if the file is missing or cannot be read. After a transient error, such as too many open
    /// files, the next calls retry.
    pub fn poll(&mut self, path: &Path) -> Option<io::Result<Vec<u8>>> {
        self.poll_by(path, read_regular)
    }

    /// The same for a file that may be a pipe, as in `--config <(command)`.
    pub fn poll_any(&mut self, path: &Path) -> Option<io::Result<Vec<u8>>> {
        self.poll_by(path, |path| fs::read(path))
    }

    fn poll_by(
        &mut self,
        path: &Path,
        read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
    ) -> Option<io::Result<Vec<u8>>> {
        let now = (path.to_owned(), FileIdentity::of(path));
        let unchanged = self.seen.as_ref() == Some(&now);
        if unchanged && !self.retry {
            return None;
        }
        self.seen = Some(now);
        let outcome = read(path);
        self.retry = matches!(&outcome, Err(error) if error.kind() != io::ErrorKind::NotFound);
        (!(unchanged && self.retry)).then_some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::runtime::test_dir::TestDir;

    #[test]
    fn a_swapped_link_and_a_missing_file_are_changes() {
        let dir = TestDir::new();
        fs::create_dir_all(dir.join("v1")).expect("created");
        fs::create_dir_all(dir.join("v2")).expect("created");
        fs::write(dir.join("v1/key"), "one").expect("written");
        fs::write(dir.join("v2/key"), "two").expect("written");
        symlink("v1", dir.join("..data")).expect("linked");
        let path = dir.join("..data/key");

        let first = FileIdentity::of(&path);
        assert_eq!(first, FileIdentity::of(&path));
        symlink("v2", dir.join("..new")).expect("linked");
        fs::rename(dir.join("..new"), dir.join("..data")).expect("swapped");
        let second = FileIdentity::of(&path);
        assert_ne!(first, second);
        fs::remove_file(dir.join("v2/key")).expect("removed");
        assert_ne!(second, FileIdentity::of(&path));
    }

    #[test]
    fn an_unreadable_file_is_read_once_the_error_has_passed() {
        let dir = TestDir::new();
        let path = dir.join("watched");
        let mut file = WatchedFile::default();
        let missing = file.poll(&path).expect("a change").map_err(|error| error.kind());
        assert_eq!(missing, Err(io::ErrorKind::NotFound));
        assert!(file.poll(&path).is_none());

        fs::write(&path, "one").expect("written");
        let exhausted = |_: &Path| Err(io::Error::from_raw_os_error(24));
        assert!(file.poll_by(&path, exhausted).expect("a change").is_err());
        assert!(
            file.poll_by(&path, exhausted).is_none(),
            "the error was already reported"
        );
        assert_eq!(file.poll(&path).expect("a change").expect("read"), b"one");
        assert!(file.poll(&path).is_none());
    }
}
