//! Noticing that a file changed.
//!
//! The kubelet replaces a whole mounted volume by swapping one symbolic link, which inotify reports in ways that differ
//! between file systems. Looking at the file's identity a few times a second costs next to nothing and works everywhere.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What tells one version of a file from another. A missing file has an identity too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileIdentity(Option<(PathBuf, u64, i64, i64, u64)>);

impl FileIdentity {
    /// Looks at `path` as it is now, through all symbolic links.
    pub fn of(path: &Path) -> Self {
        let identity = || {
            let resolved = fs::canonicalize(path).ok()?;
            let meta = fs::metadata(&resolved).ok()?;
            Some((resolved, meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        };
        Self(identity())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_swapped_link_and_a_missing_file_are_changes() {
        let dir = std::env::temp_dir().join(format!("tlsfarm-files-{}", std::process::id()));
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
        fs::remove_dir_all(&dir).expect("removed");
    }
}
