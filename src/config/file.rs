//! The configuration as it is written in YAML.
