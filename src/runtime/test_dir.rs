//! Directories for the files and sockets of tests.

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// An empty directory of one test. It is removed when this is dropped, so also when the test fails.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new() -> Self {
        // Random, because process ids are reused and killed tests leave their directories behind.
        let path = env::temp_dir().join(format!("tlsfarm-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).expect("created");
        Self(path)
    }

    /// Writes a file; returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Deref for TestDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
