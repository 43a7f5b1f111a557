//! Noticing that a file has changed.
//!
//! By looking, not by inotify: one `stat` a second follows every link on the way (a ConfigMap changes
//! by its `..data` link), works on every file system, and costs nothing that could be measured.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file and what it looked like.
#[derive(Debug)]
pub(super) struct WatchedFile {
    path: PathBuf,
    seen: Option<Look>,
}

/// What changes when a file is written or replaced.
type Look = (u64, u64, u64, i64, i64);

impl WatchedFile {
    /// Watches from how the file looks now.
    pub(super) fn new(path: PathBuf) -> Self {
        let seen = look(&path);
        Self { path, seen }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it looks different from the last time. A file that is missing for a moment, as in a
    /// replacement, has not changed yet.
    pub(super) fn changed(&mut self) -> bool {
        match look(&self.path) {
            None => false,
            now if now == self.seen => false,
            now => {
                self.seen = now;
                true
            }
        }
    }
}

fn look(path: &Path) -> Option<Look> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_written_file_and_a_switched_link_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["one", "two"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("config.yaml"), version).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/config.yaml", at("config.yaml")).unwrap();
        let mut file = WatchedFile::new(at("config.yaml"));
        assert!(!file.changed());
        symlink("two", at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
        assert!(file.changed());
        assert!(!file.changed());
        std::fs::write(at("two/config.yaml"), "longer").unwrap();
        assert!(file.changed());
        std::fs::remove_file(at("two/config.yaml")).unwrap();
        assert!(!file.changed());
    }
}
