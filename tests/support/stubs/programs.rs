//! The clients that have to be compiled: once for all tests of a suite, outside of the namespaces.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::OnceLock;

use super::missing;

/// Names the directory of the compiled clients to the tests inside of namespaces.
pub(crate) const DIRECTORY: &str = "NODENS_STUBS_PROGRAMS";

/// Where the sources of the clients are.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/stubs/clients")
}

/// Where the compiled clients are, for a test inside of a namespace.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env::var_os(DIRECTORY).expect("set by the test outside of the namespace"))
}

/// A client that has to be compiled.
struct Source {
    /// What becomes of it.
    target: &'static str,
    compiler: &'static str,
    /// The Debian packages of the compiler and the libraries.
    package: &'static str,
    /// The last one names the target.
    options: &'static [&'static str],
    source: &'static str,
    libraries: &'static [&'static str],
}

const GCC: [&str; 5] = ["-O1", "-Wall", "-Wextra", "-Werror", "-o"];

const SOURCES: [Source; 5] = [
    Source {
        target: "glibc",
        compiler: "gcc",
        package: "gcc libc6-dev",
        options: &GCC,
        source: "libc.c",
        libraries: &["-lresolv"],
    },
    Source {
        target: "musl",
        compiler: "musl-gcc",
        package: "musl-tools",
        options: &GCC,
        source: "libc.c",
        libraries: &["-static"],
    },
    Source {
        target: "cares",
        compiler: "gcc",
        package: "libc-ares-dev",
        options: &GCC,
        source: "cares.c",
        libraries: &["-Wno-deprecated-declarations", "-lcares"],
    },
    Source {
        target: "go",
        compiler: "go",
        package: "golang-go",
        options: &["build", "-o"],
        source: "stub.go",
        libraries: &[],
    },
    // `javac -d DIRECTORY`
    Source {
        target: ".",
        compiler: "javac",
        package: "default-jdk-headless",
        options: &["-d"],
        source: "Stub.java",
        libraries: &[],
    },
];

/// Compiles those that `is_wanted` says by their target, the first time that it is called.
#[track_caller]
pub(crate) fn built(is_wanted: fn(&str) -> bool) -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stubs");
        // Moved into place when they are whole, as another run of the tests may use them.
        let fresh = directory.join(id().to_string());
        fs::create_dir_all(&fresh).expect("a directory below target/tmp");
        for source in SOURCES.iter().filter(|source| is_wanted(source.target)) {
            compile(source, &fresh);
        }
        for entry in fs::read_dir(&fresh).expect("compiled clients").flatten() {
            fs::rename(entry.path(), directory.join(entry.file_name())).expect("a file moved");
        }
        fs::remove_dir(&fresh).expect("an empty directory");
        directory
    })
}

/// Compiles one into `directory`.
#[track_caller]
fn compile(what: &Source, directory: &Path) {
    let Source { target, compiler, package, options, source, libraries } = what;
    let output = Command::new(compiler)
        .args(*options)
        .arg(directory.join(target))
        .arg(sources().join(source))
        .args(*libraries)
        // Go: without the C library's resolver, without modules, nothing fetched, files below target.
        .envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOTOOLCHAIN", "local")])
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache"))
        .output()
        .unwrap_or_else(|error| panic!("{}", missing(compiler, package, &error)));
    assert!(
        output.status.success(),
        "{compiler} does not compile {source} (Debian package {package}):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
