//! Real stub resolvers as clients of the program as it is built: glibc, musl, c-ares, Python, dnspython, Java, Go.
//!
//! Each test runs itself again inside of a network namespace of its own, which is set up as a pod is: the
//! agent on 169.254.20.10, a resolv.conf with a search path and `ndots:5`. NSD is the cluster's DNS,
//! Unbound the resolver outside. This needs root. Debian packages: iproute2, nsd, unbound, gcc, libc6-dev,
//! musl-tools, libc-ares-dev, libc-bin, python3-minimal, python3-dnspython, default-jdk-headless, golang-go.

#[path = "stubs/cluster.rs"]
mod cluster;
#[path = "stubs/failures.rs"]
mod failures;
#[path = "stubs/names.rs"]
mod names;
#[path = "stubs/namespace.rs"]
mod namespace;
#[path = "stubs/services.rs"]
mod services;
#[path = "stubs/sizes.rs"]
mod sizes;
#[path = "stubs/support.rs"]
mod support;
