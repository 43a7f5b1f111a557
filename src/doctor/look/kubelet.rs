//! Which servers pods are told to ask: the kubelet's configuration.

use std::fs;
use std::path::PathBuf;

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
    /// Where it was read.
    pub path: PathBuf,
    /// Its `clusterDNS`, empty where it has none.
    pub cluster_dns: Seen<Vec<String>>,
}

/// Reads it.
pub fn kubelet(sources: &Sources) -> Kubelet {
    let path = sources.kubelet.clone();
    let shown = path.display();
    let text = fs::read_to_string(&path).map_err(|error| {
        let other = "nodens doctor --kubelet-config FILE   # as in: ps -o args= -C kubelet";
        Unseen::new(format!("{shown}: {error}"), other)
    });
    let cluster_dns =
        text.and_then(|text| parse(&text).map_err(|why| Unseen::new(format!("{shown}: {why}"), "")));
    Kubelet { path, cluster_dns }
}

fn parse(text: &str) -> Result<Vec<String>, String> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| format!("no KubeletConfiguration: {error}"))?;
    Ok(file.cluster_dns.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_keys_do_not_disturb() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nauthentication:\n  anonymous: {enabled: false}\nclusterDNS:\n- 169.254.20.10\n- fd00::a\nclusterDomain: cluster.local\n";
        assert_eq!(parse(text).unwrap(), ["169.254.20.10", "fd00::a"]);
        assert_eq!(parse("kind: KubeletConfiguration\n").unwrap(), Vec::<String>::new());
        assert!(parse("- a\n- b\n").is_err());
    }
}
