//! The clients that have to be compiled: once for all tests, outside of the namespaces.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::OnceLock;

use crate::support::missing;

/// Names the directory of the compiled clients to the tests inside of namespaces.
pub(crate) const DIRECTORY: &str = "NODENS_STUBS_PROGRAMS";

/// Where the sources of the clients are.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs/clients")
}

/// Where the compiled clients are, for a test inside of a namespace.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env::var_os(DIRECTORY).expect("set by the test outside of the namespace"))
}

/// Compiles all of them, the first time that it is called.
#[track_caller]
pub(crate) fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stubs");
        // Moved into place when they are whole, as another run of the tests may use them.
        let fresh = directory.join(id().to_string());
        fs::create_dir_all(&fresh).expect("a directory below target/tmp");
        let gcc = ["-O1", "-Wall", "-Wextra", "-Werror", "-o"];
        compile("gcc", "gcc libc6-dev", &fresh, &gcc, "glibc", &["libc.c", "-lresolv"]);
        compile("musl-gcc", "musl-tools", &fresh, &gcc, "musl", &["libc.c", "-static"]);
        compile(
            "gcc",
            "libc-ares-dev",
            &fresh,
            &gcc,
            "cares",
            &["cares.c", "-Wno-deprecated-declarations", "-lcares"],
        );
        compile("go", "golang-go", &fresh, &["build", "-o"], "go", &["stub.go"]);
        compile("javac", "default-jdk-headless", &fresh, &["-d"], ".", &["Stub.java"]);
        for entry in fs::read_dir(&fresh).expect("compiled clients").flatten() {
            fs::rename(entry.path(), directory.join(entry.file_name())).expect("a file moved");
        }
        fs::remove_dir(&fresh).expect("an empty directory");
        directory
    })
}

/// Compiles `target` in `directory`; the first of `sources` lies among the clients.
#[track_caller]
fn compile(
    compiler: &str,
    package: &str,
    directory: &Path,
    options: &[&str],
    target: &str,
    sources_and_libraries: &[&str],
) {
    let (source, libraries) = sources_and_libraries.split_first().expect("a source");
    let output = Command::new(compiler)
        .args(options)
        .arg(directory.join(target))
        .arg(sources().join(source))
        .args(libraries)
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
