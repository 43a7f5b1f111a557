//! Real stub resolvers: what each can do, and a conversation with one. A pod has files of its own for them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::process::missing;
use super::seconds;
use programs::{directory, sources};

#[path = "stubs/programs.rs"]
pub(crate) mod programs;
#[path = "stubs/records.rs"]
pub(crate) mod records;

/// Longer than any stub resolver's own patience here.
const PATIENCE: Duration = seconds(60);

/// What a pod has in `/etc`, for the programs that `ip netns exec` starts in its namespace: kubelet's resolv.conf
/// with these servers, and names alone that no server is asked for.
pub(crate) fn write_files(namespace: &str, servers: &[IpAddr]) {
    let files = Path::new("/etc/netns").join(namespace);
    fs::create_dir_all(&files).expect("/etc/netns");
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
    for (file, content) in [
        ("resolv.conf", format!("{search}\n{servers}options ndots:5\n")),
        ("nsswitch.conf", "hosts: files dns\n".to_owned()),
        ("hosts", "127.0.0.1 localhost\n".to_owned()),
    ] {
        fs::write(files.join(file), content).expect("a file of the namespace");
    }
}

/// One stub resolver and what its API offers.
pub(crate) struct Stub {
    pub(crate) name: &'static str,
    /// The program, its arguments, and what goes into its environment. `{sources}` and `{built}` are
    /// directories.
    run: &'static [&'static str],
    environment: Option<(&'static str, &'static str)>,
    package: &'static str,
    /// Walks the search path.
    pub(crate) searches: bool,
    /// Looks up SRV records.
    pub(crate) services: bool,
    /// Comes back by TCP for what was truncated.
    pub(crate) by_tcp: bool,
    /// Says in an OPT that it takes more than 512 bytes.
    pub(crate) edns: bool,
    /// What it says where the name exists without addresses.
    pub(crate) nodata: &'static str,
    /// What it says of an alias whose target has no addresses, or is not in the answer.
    pub(crate) bare_alias: &'static str,
    /// What it says when the server fails.
    pub(crate) server_failure: &'static str,
}

const PLAIN: Stub = Stub {
    name: "",
    run: &[],
    environment: None,
    package: "",
    searches: true,
    services: true,
    by_tcp: true,
    edns: false,
    nodata: "NODATA",
    bare_alias: "NODATA",
    server_failure: "AGAIN",
};

/// glibc's getaddrinfo, whoever calls it.
const GLIBC: Stub = Stub { package: "libc6-dev", bare_alias: "NOTFOUND", ..PLAIN };

/// c-ares counts a server that fails as one that it cannot reach.
const CARES: Stub =
    Stub { package: "libc-ares-dev", server_failure: "Could not contact DNS servers", ..PLAIN };

pub(crate) const STUBS: [Stub; 11] = [
    Stub { name: "glibc", run: &["{built}/glibc"], ..GLIBC },
    Stub {
        name: "glibc with edns0",
        run: &["{built}/glibc"],
        environment: Some(("RES_OPTIONS", "edns0")),
        edns: true,
        ..GLIBC
    },
    // It says the same for every failure.
    Stub {
        name: "getent",
        run: &["sh", "{sources}/getent.sh"],
        package: "libc-bin",
        services: false,
        nodata: "NOTFOUND",
        server_failure: "NOTFOUND",
        ..GLIBC
    },
    // Before 1.2.4 it has no TCP. It does not tell NODATA from NXDOMAIN.
    Stub {
        name: "musl",
        run: &["{built}/musl"],
        package: "musl-tools",
        by_tcp: false,
        nodata: "NOTFOUND",
        bare_alias: "NOTFOUND",
        ..PLAIN
    },
    Stub { name: "c-ares", run: &["{built}/cares"], ..CARES },
    Stub { name: "c-ares with EDNS", run: &["{built}/cares", "edns"], edns: true, ..CARES },
    Stub {
        name: "Python",
        run: &["/usr/bin/python3", "{sources}/stub.py"],
        package: "python3-minimal",
        services: false,
        ..GLIBC
    },
    Stub {
        name: "dnspython",
        run: &["/usr/bin/python3", "{sources}/stub.py", "dnspython"],
        package: "python3-dnspython",
        ..PLAIN
    },
    Stub {
        name: "Java InetAddress",
        run: &["java", "-XX:TieredStopAtLevel=1", "-cp", "{built}", "Stub"],
        package: "default-jdk-headless",
        services: false,
        ..GLIBC
    },
    Stub {
        name: "Java JNDI",
        run: &["java", "-XX:TieredStopAtLevel=1", "-cp", "{built}", "Stub", "jndi"],
        package: "default-jdk-headless",
        searches: false,
        ..PLAIN
    },
    // It does not tell NODATA from NXDOMAIN.
    Stub {
        name: "Go",
        run: &["{built}/go"],
        package: "golang-go",
        edns: true,
        nodata: "NOTFOUND",
        bare_alias: "NOTFOUND",
        ..PLAIN
    },
];

/// What a stub resolver said, and after how long.
#[derive(Debug)]
pub(crate) struct Said {
    /// What it found, in the order in which it came, or the kind of the failure.
    pub(crate) result: Result<Vec<String>, String>,
    pub(crate) after: Duration,
}

impl Said {
    /// What was found, sorted; a failure keeps its kind.
    pub(crate) fn sorted(&self) -> Result<Vec<String>, String> {
        let mut found = self.result.clone()?;
        found.sort();
        Ok(found)
    }
}

/// A running client. It ends with this value.
pub(crate) struct Client {
    pub(crate) stub: &'static Stub,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Client {
    /// `command` is for a program where its resolv.conf is that of a pod.
    #[track_caller]
    pub(crate) fn start(stub: &'static Stub, command: impl FnOnce(&str) -> Command) -> Self {
        let place = |word: &&str| {
            word.replace("{sources}", &sources().display().to_string())
                .replace("{built}", &directory().display().to_string())
        };
        let words: Vec<String> = stub.run.iter().map(place).collect();
        let mut child = command(&words[0])
            .args(&words[1..])
            .envs(stub.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}", missing(&words[0], stub.package, &error)));
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        // Ends with the client, whose death closes the pipe.
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut client = Self { stub, child, input, lines };
        // The first look-up also loads classes and modules, which no test should time. Hosts file and agent
        // both answer it without any server.
        let said = client.addresses("localhost.");
        assert!(said.result.is_ok(), "{}: localhost: {said:?}", stub.name);
        client
    }

    /// Addresses of a host.
    #[track_caller]
    pub(crate) fn addresses(&mut self, name: &str) -> Said {
        self.ask("addresses", name)
    }

    /// SRV records, as `priority,weight,port,target` with the target in lower case, without the last dot.
    #[track_caller]
    pub(crate) fn services(&mut self, name: &str) -> Said {
        self.ask("services", name)
    }

    /// Name of an address.
    #[track_caller]
    pub(crate) fn owner(&mut self, address: &str) -> Said {
        self.ask("owner", address)
    }

    #[track_caller]
    fn ask(&mut self, verb: &str, name: &str) -> Said {
        let start = Instant::now();
        let ended =
            |what| panic!("{} {what} at {verb} {name} (package {})", self.stub.name, self.stub.package);
        if writeln!(self.input, "{verb} {name}").is_err() {
            ended("has ended");
        }
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| ended("has ended or hangs"));
        let after = start.elapsed();
        let result = match line.split_once(' ') {
            Some(("OK", found)) => Ok(found.split(' ').map(plain).collect()),
            Some(("FAILED", kind)) => Err(kind.to_owned()),
            _ => panic!("{} printed {line:?} at {verb} {name}", self.stub.name),
        };
        Said { result, after }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Not an error: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names and addresses as all clients can be compared by.
fn plain(word: &str) -> String {
    match word.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => word.trim_end_matches('.').to_ascii_lowercase(),
    }
}
