//! An agent's files on the node, with and without the agent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Http, Process, free_port, program, seconds, wait_until};
use crate::topology::{ENDPOINTS, Node};

/// The usual address, which a link of the node is to hold.
pub(crate) const LISTEN: &str = "169.254.20.10";
/// The same by IPv6.
pub(crate) const LISTEN6: &str = "fd00:169:254:20::10";

/// Where the agent and the kubelet have their files.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) config: PathBuf,
    pub(crate) control: PathBuf,
    pub(crate) kubelet: PathBuf,
    admin: Http,
}

impl Home {
    /// Listening at the usual address alone, with these settings below `network`.
    pub(crate) fn new(network: &str) -> Self {
        Self::listening(&[LISTEN], network)
    }

    /// Listening at these addresses. The cluster's DNS is asked where it is dialled directly, and the kubelet gives pods
    /// the agent's addresses.
    pub(crate) fn listening(addresses: &[&str], network: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        let (config, control, kubelet) = (at("nodens.yaml"), at("control.sock"), at("kubelet.yaml"));
        let admin = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port());
        let listen: Vec<String> = addresses
            .iter()
            .map(|address| SocketAddr::new(address.parse().expect("an address"), 53).to_string())
            .collect();
        let server = format!("tcp://{}", ENDPOINTS[0]);
        let text = format!(
            "listen: {listen:?}\nadmin: \"{admin}\"\ncontrol: {}\nnetwork: {{ {network} }}\n\
             zones:\n  - match: [cluster.local, test, \".\"]\n    upstream: {{ servers: [{server:?}] }}\n",
            control.display()
        );
        fs::write(&config, text).expect("config");
        fs::write(&kubelet, format!("kind: KubeletConfiguration\nclusterDNS: {addresses:?}\n"))
            .expect("config");
        Self { config, control, kubelet, admin: Http { address: admin }, dir }
    }

    /// In both families, and answering for the ClusterIPs.
    pub(crate) fn intercepting(node: &Node) -> Self {
        let ips: Vec<_> = node.cluster_ips().iter().map(|at| at.ip().to_string()).collect();
        let home = Self::listening(
            &[LISTEN, LISTEN6],
            &format!("address_on: nodelocaldns, notrack: true, intercept: {ips:?}"),
        );
        // The kubelet is as it was before: pods ask the ClusterIP.
        fs::write(&home.kubelet, format!("kind: KubeletConfiguration\nclusterDNS: {ips:?}\n"))
            .expect("config");
        home
    }

    /// Runs the agent.
    pub(crate) fn launch(&self) -> Process {
        self.launch_by(&[])
    }

    /// Runs it by another program.
    pub(crate) fn launch_by(&self, by: &[&str]) -> Process {
        let program = program().display().to_string();
        let words = [by, &[&program, "run", "--config"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.config);
        Process::start(command, "iproute2", &self.dir.path().join("output"))
    }

    /// Runs the agent until it is ready.
    #[track_caller]
    pub(crate) fn start(&self) -> Process {
        let process = self.launch();
        self.wait_until_ready();
        process
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        wait_until("the agent is ready", seconds(15), || self.ready() == 200);
    }

    /// The code of `/ready`; 0 when there is none.
    pub(crate) fn ready(&self) -> u16 {
        self.admin.get("/ready").map_or(0, |(code, _)| code)
    }
}

/// Has it end in the tidy way, and waits for that.
#[track_caller]
pub(crate) fn stop(mut agent: Process) {
    agent.signal("TERM");
    assert!(agent.wait(seconds(10)).is_some_and(|status| status.success()), "{}", agent.output());
}
