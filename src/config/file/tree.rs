//! Any YAML as a tree of places: the way back from the line and column of an error to the key that was meant.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// Line and column, both from 1.
pub(super) type Place = (u64, u64);

/// Where `location` points, without its length.
pub(super) fn place(location: Location) -> Place {
    (location.line(), location.column())
}

/// A value, of which only the shape is kept.
#[derive(Debug)]
pub(super) enum Tree {
    Leaf,
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl Tree {
    /// Reads `text` as far as its shape; `None` when it has none, or a key that is no scalar.
    pub(super) fn read(text: &str) -> Option<Spanned<Self>> {
        let mut options = super::options();
        // The error that leads here may be the repeated key itself.
        options.duplicate_keys = serde_saphyr::options::DuplicateKeyPolicy::PassThrough;
        serde_saphyr::from_str_with_options(text, options).ok()
    }

    /// Path of the key that stands at `place`; of several the deepest.
    pub(super) fn key_at(tree: &Spanned<Self>, at: Place) -> Option<String> {
        Self::walk(tree, String::new(), &mut |path, key, _| (key == Some(at)).then(|| path.to_owned()))
    }

    /// Path of the value that begins at `place`; of several the outermost.
    pub(super) fn value_at(tree: &Spanned<Self>, at: Place) -> Option<String> {
        Self::walk(tree, String::new(), &mut |path, _, value| (value == at).then(|| path.to_owned()))
    }

    /// Offers each path with the places of its key and value, outermost first, until one is taken.
    fn walk(
        tree: &Spanned<Self>,
        path: String,
        take: &mut impl FnMut(&str, Option<Place>, Place) -> Option<String>,
    ) -> Option<String> {
        if path.is_empty()
            && let Some(found) = take("", None, place(tree.referenced))
        {
            return Some(found);
        }
        match &tree.value {
            Self::Leaf => None,
            Self::List(items) => items.iter().enumerate().find_map(|(index, item)| {
                let path = format!("{path}[{index}]");
                take(&path, None, place(item.referenced)).or_else(|| Self::walk(item, path, take))
            }),
            Self::Map(entries) => entries.iter().find_map(|(key, value)| {
                let path = join(&path, &key.value);
                take(&path, Some(place(key.referenced)), place(value.referenced))
                    .or_else(|| Self::walk(value, path, take))
            }),
        }
    }
}

/// `key` below `path`, on one line whatever the key holds.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = key.escape_debug();
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}
