//! What is asked: zones as a cluster has them, and queries as its pods send them. The same at every run.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Services of the cluster, spread over the namespaces.
const SERVICES: usize = 1000;
const NAMESPACES: usize = 20;
/// Names outside the cluster.
const EXTERNALS: usize = 100;
/// Lookups (each by one pod, of one name) in the mix.
const LOOKUPS: usize = 20_000;
/// Share of the lookups that are for names outside the cluster.
const EXTERNAL_SHARE: f64 = 0.2;
/// Share of the lookups of other namespaces' services that spell the name out (`svc.ns.svc.cluster.local`),
/// which has fewer than five dots and so takes the whole search path.
const SPELLED_OUT_SHARE: f64 = 0.4;
/// What kubelet writes into the resolv.conf of a pod in namespace `default`, with `options ndots:5`.
const SEARCH: [&str; 3] = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"];
/// A name that every server knows, or its upstream does.
pub(crate) const KNOWN_NAME: &str = "localhost";

/// One query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    name: String,
    aaaa: bool,
    /// The name exists (NOERROR, perhaps without data); else NXDOMAIN.
    exists: bool,
}

impl Question {
    pub(crate) fn a(name: impl Into<String>) -> Self {
        Self { name: name.into(), aaaa: false, exists: true }
    }

    /// The message, as dnsperf and stub resolvers without EDNS write it.
    pub(crate) fn wire(&self, id: u16) -> Vec<u8> {
        let mut wire = id.to_be_bytes().to_vec();
        wire.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]); // RD, one question
        for label in self.name.split('.') {
            wire.push(label.len() as u8);
            wire.extend(label.as_bytes());
        }
        wire.extend([0, 0, if self.aaaa { 28 } else { 1 }, 0, 1]);
        wire
    }
}

/// Questions in their order, and the file that holds them for dnsperf.
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    pub(crate) questions: Vec<Question>,
}

impl Input {
    fn write(path: PathBuf, questions: Vec<Question>) -> Result<Self> {
        let mut text = String::new();
        for question in &questions {
            writeln!(text, "{} {}", question.name, if question.aaaa { "AAAA" } else { "A" })?;
        }
        fs::write(&path, text)?;
        Ok(Self { path, questions })
    }

    /// How many of the first `sent` queries, the file being read again and again, ask for a name that exists.
    pub(crate) fn existing(&self, sent: u64) -> u64 {
        let exist =
            |questions: &[Question]| questions.iter().filter(|question| question.exists).count() as u64;
        let length = self.questions.len() as u64;
        sent / length * exist(&self.questions) + exist(&self.questions[..(sent % length) as usize])
    }
}

/// All inputs.
pub(crate) struct Inputs {
    /// The Kubernetes-like mix.
    pub(crate) mix: Input,
    /// Each question of the mix once, to fill caches.
    pub(crate) distinct: Input,
    /// 10,000 questions, half of them without data, to fill memory.
    pub(crate) many: Input,
    /// Names that are asked once.
    pub(crate) once: Input,
    /// A few more of them, to let connections open before anything is measured.
    pub(crate) once_before: Input,
}

impl Inputs {
    /// Writes all files into `dir`; `misses` names are asked once.
    pub(crate) fn write(dir: &Path, misses: usize) -> Result<Self> {
        let mix = lookups();
        let mut seen = HashSet::new();
        let distinct = mix.iter().filter(|question| seen.insert(*question)).cloned().collect();
        let many = (0..5000).flat_map(|number| {
            [false, true].map(|aaaa| Question {
                name: format!("svc-{number:04}.many.svc.cluster.local"),
                aaaa,
                exists: true,
            })
        });
        let once = |prefix, count| {
            (0..count).map(move |number| Question::a(format!("{prefix}-{number:07}.miss.svc.cluster.local")))
        };
        Ok(Self {
            mix: Input::write(dir.join("mix"), mix)?,
            distinct: Input::write(dir.join("distinct"), distinct)?,
            many: Input::write(dir.join("many"), many.collect())?,
            once: Input::write(dir.join("once"), once("pod", misses).collect())?,
            once_before: Input::write(dir.join("once-before"), once("first", 500).collect())?,
        })
    }
}

fn service(number: usize) -> (String, String) {
    let namespace = match number % NAMESPACES {
        0 => "default".to_owned(),
        other => format!("team-{other:02}"),
    };
    (format!("svc-{number:04}"), namespace)
}

fn external(number: usize) -> String {
    format!("api-{number:03}.example.com")
}

fn lookups() -> Vec<Question> {
    let mut random = Random(0x6e6f_6465_6e73);
    let (services, externals) = (Zipf::new(SERVICES), Zipf::new(EXTERNALS));
    let mut questions = Vec::new();
    for _ in 0..LOOKUPS {
        if random.fraction() < EXTERNAL_SHARE {
            let name = external(externals.pick(&mut random));
            SEARCH.iter().for_each(|domain| pair(&mut questions, format!("{name}.{domain}"), false));
            pair(&mut questions, name, true);
            continue;
        }
        let (service, namespace) = service(services.pick(&mut random));
        let full = format!("{service}.{namespace}.svc.cluster.local");
        if namespace == "default" {
            // `svc`: the first search domain completes it.
            pair(&mut questions, full, true);
        } else if random.fraction() < SPELLED_OUT_SHARE {
            // `svc.ns.svc.cluster.local`: four dots, so the search path comes first.
            SEARCH.iter().for_each(|domain| pair(&mut questions, format!("{full}.{domain}"), false));
            pair(&mut questions, full, true);
        } else {
            // `svc.ns`: the second search domain completes it.
            pair(&mut questions, format!("{service}.{namespace}.{}", SEARCH[0]), false);
            pair(&mut questions, full, true);
        }
    }
    questions
}

fn pair(questions: &mut Vec<Question>, name: String, exists: bool) {
    questions.push(Question { name: name.clone(), aaaa: false, exists });
    questions.push(Question { name, aaaa: true, exists });
}

/// The zones, as (origin, file). TTLs are an hour, negative ones too: nothing expires while it is measured.
pub(crate) fn zones() -> Result<Vec<(&'static str, String)>> {
    let head = "$TTL 3600\n@ SOA ns.dns hostmaster 1 7200 1800 86400 3600\n@ NS ns.dns\nns.dns A 127.0.0.1\n";
    let mut cluster = head.to_owned();
    for number in 0..SERVICES {
        let (service, namespace) = service(number);
        // One in ten is headless: it has its pods' addresses.
        for address in 0..if number % 10 == 3 { 3 } else { 1 } {
            writeln!(
                cluster,
                "{service}.{namespace}.svc A 10.96.{}.{}",
                number / 250 * 4 + address,
                number % 250
            )?;
        }
    }
    cluster.push_str("*.many.svc A 10.97.0.1\n*.miss.svc 30 A 10.97.0.2\n");
    let mut example = head.to_owned();
    for number in 0..EXTERNALS {
        let name = external(number);
        writeln!(example, "{name}. A 198.51.100.{number}\n{name}. AAAA 2001:db8::{number:x}")?;
    }
    let known = format!("{head}@ A 127.0.0.1\n");
    Ok(vec![("cluster.local", cluster), ("example.com", example), (KNOWN_NAME, known)])
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine and with every version of a crate.
struct Random(u64);

impl Random {
    /// At least 0, below 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Zipf's law with exponent 1: the n-th name is asked for 1/n times as often as the first.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(names: usize) -> Self {
        let sums = (1..=names).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self(sums.collect())
    }

    fn pick(&self, random: &mut Random) -> usize {
        let at = random.fraction() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|&sum| sum <= at).min(self.0.len() - 1)
    }
}
