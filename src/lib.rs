//! nodens: the DNS cache agent of a Kubernetes node.
//!
//! ```text
//! serve ──▶ resolve ──┬──▶ cache ─────┬──▶ wire
//!                     └──▶ upstream ──┘
//! ```
//!
//! [`serve`] takes packets, [`resolve`] decides what happens to a query, [`cache`] answers from memory,
//! [`upstream`] asks servers, and [`wire`] reads and writes messages. [`zone`], [`config`], [`metrics`]
//! and [`clock`] are leaves, and so are [`sys`], which holds all `unsafe`, and [`readiness`]. [`node`] keeps addresses, rules
//! and routes in the kernel, [`privileges`] gives up what is not needed, [`admin`] shows, [`app`] puts all of it together,
//! [`doctor`] examines the node, and [`cli`] is the command line.
//! Begin with [`resolve::Resolver::handle`]; ARCHITECTURE.md tells the rest.

pub mod admin;
pub mod app;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod doctor;
pub mod keep;
pub mod metrics;
pub mod node;
pub mod parent;
pub mod privileges;
pub mod readiness;
pub mod resolve;
pub mod serve;
pub mod sys;
pub mod upstream;
pub mod wire;
pub mod zone;
