//! Where the facts are read: the files of a node, below a root that tests can set.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::finding::{Seen, Unseen};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Sources {
    /// What `/proc`, `/sys` and `/etc` are below of.
    pub root: PathBuf,
    /// The kubelet's configuration.
    pub kubelet: PathBuf,
}

impl Sources {
    /// A path of the node, `/proc/meminfo` for one.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file's text.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Seen<String> {
        let path = path.as_ref();
        fs::read(self.path(path))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| unseen(path, &error))
    }

    /// A file's text, and `None` where there is no such file.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read_if_there(&self, path: impl AsRef<Path>) -> Seen<Option<String>> {
        let path = path.as_ref();
        match fs::read(self.path(path)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unseen(path, &error)),
        }
    }

    /// A file that holds one number.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn number(&self, path: impl AsRef<Path>) -> Seen<u64> {
        let text = self.read(path.as_ref())?;
        let odd = || Unseen::new(format!("{} is not a number", path.as_ref().display()), "");
        text.trim().parse().map_err(|_| odd())
    }

    /// The names in a directory, in order.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn names(&self, path: impl AsRef<Path>) -> Seen<Vec<String>> {
        let path = path.as_ref();
        let entries = fs::read_dir(self.path(path)).map_err(|error| unseen(path, &error))?;
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Where a link leads.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn link(&self, path: impl AsRef<Path>) -> Seen<String> {
        let path = path.as_ref();
        fs::read_link(self.path(path))
            .map(|to| to.to_string_lossy().into_owned())
            .map_err(|error| unseen(path, &error))
    }
}

fn unseen(path: &Path, error: &std::io::Error) -> Unseen {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Unseen::new(format!("{} may be read by root alone", path.display()), AS_ROOT)
        }
        ErrorKind::NotFound => Unseen::new(format!("{} is not there", path.display()), ""),
        _ => Unseen::new(format!("{}: {error}", path.display()), ""),
    }
}

/// What lets one look at what is root's.
pub const AS_ROOT: &str = "sudo nodens doctor";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_or_no_number_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        fs::create_dir(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/good"), "42\n").unwrap();
        fs::write(dir.path().join("proc/odd"), "many\n").unwrap();
        assert_eq!(sources.number("/proc/good"), Ok(42));
        assert_eq!(sources.number("/proc/odd").unwrap_err().why, "/proc/odd is not a number");
        assert_eq!(sources.read("/proc/none").unwrap_err().why, "/proc/none is not there");
        assert_eq!(sources.read_if_there("/proc/none"), Ok(None));
        assert_eq!(sources.names("/proc"), Ok(vec!["good".to_owned(), "odd".to_owned()]));
    }
}
