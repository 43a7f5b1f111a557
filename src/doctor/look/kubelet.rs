//! Which servers pods are told to ask: the kubelet's configuration, and the command line that goes before it.

use std::fs;

use serde::Deserialize;

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;

/// The part of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that we read.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(rename = "clusterDNS", default)]
    cluster_dns: Option<Vec<String>>,
}

/// What the kubelet says.
#[derive(Debug, Clone)]
pub struct Kubelet {
    /// Where it was read: a file, or the kubelet's own command line.
    pub place: Place,
    /// Its `clusterDNS`, empty where it has none.
    pub cluster_dns: Seen<Vec<String>>,
}

/// Where `clusterDNS` stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The configuration, by its path on the node.
    File(String),
    /// `--cluster-dns`, which goes before the file (kubelet(8)).
    Option,
}

/// The kubelet's process, as far as its command line says something.
#[derive(Debug, Default, PartialEq, Eq)]
struct Process {
    pid: String,
    config: Option<String>,
    config_dir: Option<String>,
    cluster_dns: Option<String>,
}

impl Process {
    /// A path as the kubelet sees it.
    fn below(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.pid)
    }

    fn read(&self, sources: &Sources, path: &str) -> Seen<String> {
        sources.read(self.below(path)).or_else(|_| sources.read(path))
    }
}

/// Reads the running kubelet's options, then its configuration: the file that we were told of, else the kubelet's own.
pub fn kubelet(sources: &Sources) -> Kubelet {
    let process = process(sources);
    if let Some(list) = process.as_ref().and_then(|process| process.cluster_dns.as_ref()) {
        let all = list.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty());
        return Kubelet { place: Place::Option, cluster_dns: Ok(all.collect()) };
    }
    let told = sources.kubelet.display().to_string();
    match fs::read_to_string(&sources.kubelet) {
        Ok(text) => with_drop_ins(sources, process.as_ref(), file(told, &text)),
        Err(error) => found(sources, process).unwrap_or_else(|| Kubelet {
            place: Place::File(told.clone()),
            cluster_dns: Err(Unseen::new(format!("{told}: {error}"), FIND_IT)),
        }),
    }
}

/// How people find the file.
const FIND_IT: &str = "# on the node: the file is behind --config of\n\
    ps -o args= -C kubelet\n\
    # and then: nodens doctor --kubelet-config FILE (in a pod, mount it)";

/// The file that the kubelet itself names, also when that is not below our own root, as in a pod with hostPID.
fn found(sources: &Sources, process: Option<Process>) -> Option<Kubelet> {
    let process = process?;
    let path = process.config.clone()?;
    let text = process.read(sources, &path).ok()?;
    Some(with_drop_ins(sources, Some(&process), file(path, &text)))
}

/// The last of the files in `--config-dir` that has the list replaces it (Kubernetes, "Kubelet configuration directory").
fn with_drop_ins(sources: &Sources, process: Option<&Process>, mut kubelet: Kubelet) -> Kubelet {
    let Some((process, folder)) = process.and_then(|process| Some((process, process.config_dir.as_ref()?)))
    else {
        return kubelet;
    };
    let names = sources.names(process.below(folder)).or_else(|_| sources.names(folder)).unwrap_or_default();
    for name in names.into_iter().filter(|name| name.ends_with(".conf")) {
        let path = format!("{folder}/{name}");
        let list = process.read(sources, &path).ok().and_then(|text| parse(&text).ok()).flatten();
        if let Some(list) = list {
            kubelet = Kubelet { place: Place::File(path), cluster_dns: Ok(list) };
        }
    }
    kubelet
}

fn file(path: String, text: &str) -> Kubelet {
    let cluster_dns = parse(text).map_err(|why| Unseen::new(format!("{path}: {why}"), FIND_IT));
    let cluster_dns = cluster_dns.map(Option::unwrap_or_default);
    Kubelet { place: Place::File(path), cluster_dns }
}

fn parse(text: &str) -> Result<Option<Vec<String>>, String> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| format!("no KubeletConfiguration: {error}"))?;
    Ok(file.cluster_dns)
}

fn process(sources: &Sources) -> Option<Process> {
    let is_kubelet = |pid: &String| {
        pid.bytes().all(|byte| byte.is_ascii_digit())
            && sources.read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "kubelet")
    };
    let pid = sources.names("/proc").ok()?.into_iter().find(is_kubelet)?;
    let line = sources.read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = line.split('\0').collect();
    let [config, config_dir, cluster_dns] =
        ["--config", "--config-dir", "--cluster-dns"].map(|name| option(&words, name));
    Some(Process { pid, config, config_dir, cluster_dns })
}

/// The value of the last `--name VALUE` or `--name=VALUE`.
fn option(words: &[&str], name: &str) -> Option<String> {
    let mut found = None;
    for (at, word) in words.iter().enumerate() {
        match word.strip_prefix(name) {
            Some("") => found = words.get(at + 1).copied(),
            Some(rest) => found = rest.strip_prefix('=').or(found),
            None => {}
        }
    }
    found.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let kubelet = dir.path().join("var/lib/kubelet/config.yaml");
        let sources = Sources { root: dir.path().to_owned(), kubelet };
        (dir, sources)
    }

    const FILE: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nauthentication:\n  anonymous: {enabled: false}\nclusterDNS:\n- 169.254.20.10\n- fd00::a\nclusterDomain: cluster.local\n";

    #[test]
    fn other_keys_do_not_disturb() {
        assert_eq!(parse(FILE).unwrap().unwrap(), ["169.254.20.10", "fd00::a"]);
        assert_eq!(parse("kind: KubeletConfiguration\n").unwrap(), None);
        assert!(parse("- a\n- b\n").is_err());
    }

    #[test]
    fn an_option_of_the_running_kubelet_goes_before_its_file() {
        let (_dir, sources) = node(&[
            ("var/lib/kubelet/config.yaml", FILE),
            ("proc/12/comm", "kubelet-helper\n"),
            ("proc/34/comm", "kubelet\n"),
            ("proc/34/cmdline", "/usr/bin/kubelet\0--cluster-dns=10.96.0.10, fd00::10\0--v=2\0"),
        ]);
        let Kubelet { place, cluster_dns } = kubelet(&sources);
        assert_eq!(place, Place::Option);
        assert_eq!(cluster_dns.unwrap(), ["10.96.0.10", "fd00::10"]);
    }

    #[test]
    fn the_file_that_the_kubelet_names_is_found_where_the_usual_one_is_not_there() {
        let (_dir, sources) = node(&[
            ("proc/34/comm", "kubelet\n"),
            ("proc/34/cmdline", "kubelet\0--config\0/etc/kubernetes/kubelet.yaml\0"),
            ("proc/34/root/etc/kubernetes/kubelet.yaml", FILE),
        ]);
        let Kubelet { place, cluster_dns } = kubelet(&sources);
        assert_eq!(place, Place::File("/etc/kubernetes/kubelet.yaml".into()));
        assert_eq!(cluster_dns.unwrap(), ["169.254.20.10", "fd00::a"]);
    }

    #[test]
    fn the_last_drop_in_that_has_the_list_replaces_it() {
        let (_dir, sources) = node(&[
            ("var/lib/kubelet/config.yaml", FILE),
            ("proc/34/comm", "kubelet\n"),
            ("proc/34/cmdline", "kubelet\0--config-dir=/etc/kubelet.d\0"),
            ("etc/kubelet.d/10-dns.conf", "clusterDNS: [10.96.0.10]\n"),
            ("etc/kubelet.d/20-other.conf", "maxPods: 10\n"),
            ("etc/kubelet.d/30-no.yaml", "clusterDNS: [192.0.2.1]\n"),
        ]);
        let Kubelet { place, cluster_dns } = kubelet(&sources);
        assert_eq!(place, Place::File("/etc/kubelet.d/10-dns.conf".into()));
        assert_eq!(cluster_dns.unwrap(), ["10.96.0.10"]);
    }

    #[test]
    fn a_file_that_is_not_there_comes_with_the_way_to_find_it() {
        let (_dir, sources) = node(&[("proc/1/comm", "init\n")]);
        let unseen = kubelet(&sources).cluster_dns.unwrap_err();
        assert!(unseen.why.contains("config.yaml: No such file"), "{unseen:?}");
        assert!(unseen.mend.contains("ps -o args= -C kubelet"), "{unseen:?}");
        assert!(unseen.mend.contains("--kubelet-config"), "{unseen:?}");
    }
}
