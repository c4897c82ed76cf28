//! TOML into Rust values, key by key, so that one pass finds every mistake in a file.
//!
//! serde stops at the first error of a struct; here each key is deserialized by itself (by serde), each array element and
//! table likewise, and what failed is noted with its place while the rest is read on. [`section!`](crate::section) writes the
//! reading and the reference of a table from one declaration.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::source::{At, Mistakes, Place, Source, near_miss};

/// A value of the file, not yet understood.
pub struct Item<'i> {
    value: Spanned<DeValue<'i>>,
    /// Its key, from the root (`acl.rule[2].source`).
    pub path: String,
}

/// Where reading happens: the file, and what was found wrong in it.
pub struct Reader<'a> {
    /// The file.
    pub source: &'a Source,
    /// The mistakes so far.
    pub mistakes: &'a mut Mistakes,
}

/// One key of a table, as the reference shows it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// What its value must be.
    pub expected: &'static str,
    /// The value it has when it is left out, as the file would write it; none if it has none.
    pub default: Option<fn() -> String>,
    /// True if it must be given.
    pub required: bool,
    /// Its meaning.
    pub doc: &'static str,
    /// The keys of the table it holds, if it holds one.
    pub keys: &'static [Key],
}

/// A value that can be read from a file.
pub trait FromToml: Sized {
    /// What is expected, for messages: "a string", "true or false".
    const EXPECTED: &'static str;
    /// The keys of a table; empty for other values.
    const KEYS: &'static [Key] = &[];
    /// Reads a value; `None` after noting what is wrong with it.
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self>;
    /// True if the key may be left out although it has no default.
    const OPTIONAL: bool = false;
    /// The value if the key is left out; `None` if it must be there.
    fn missing() -> Option<Self> {
        None
    }
}

impl<'i> Item<'i> {
    /// A value under a path.
    pub fn new(value: Spanned<DeValue<'i>>, path: impl Into<String>) -> Item<'i> {
        Item { value, path: path.into() }
    }

    /// Where it stands in the text.
    pub fn span(&self) -> Range<usize> {
        self.value.span()
    }

    /// The kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        self.value.get_ref().as_str()
    }

    /// A string in the table it is, and its place in the text, without taking it out.
    pub fn peek(&self, name: &str) -> Option<(&str, Range<usize>)> {
        let value = self.value.get_ref().get(name)?;
        Some((value.get_ref().as_str()?, value.span()))
    }

    /// The place in the text of a key's value in the table it is.
    pub fn span_of(&self, name: &str) -> Option<Range<usize>> {
        self.value.get_ref().get(name).map(Spanned::span)
    }

    /// The keys of the table it is.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        self.value.get_ref().as_table().into_iter().flat_map(|table| table.keys().map(|key| key.get_ref().as_ref()))
    }

    /// True if it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Array(_))
    }

    /// True if it is a table.
    pub fn is_table(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Table(_))
    }

    /// The elements of a list, each under its own path.
    pub fn elements(self) -> Vec<Item<'i>> {
        let path = self.path;
        match self.value.into_inner() {
            DeValue::Array(array) => {
                array.into_iter().enumerate().map(|(i, value)| Item { value, path: format!("{path}[{i}]") }).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Reader<'_> {
    /// Notes a mistake about a value.
    pub fn wrong(&mut self, item: &Item<'_>, message: impl Into<String>) {
        self.mistakes.at(&self.source.start(&item.span()), &item.path, message);
    }

    /// Notes a mistake about a value, and what to do about it.
    pub fn wrong_but(&mut self, item: &Item<'_>, message: impl Into<String>, help: impl Into<String>) {
        self.mistakes.with_help(&self.source.start(&item.span()), &item.path, message, help);
    }

    /// Notes that a value is of the wrong kind.
    pub fn expected(&mut self, item: &Item<'_>, expected: &str) {
        self.wrong(item, format!("expected {expected}, found {}", item.kind()));
    }

    /// Where a value stands.
    pub fn place(&self, item: &Item<'_>) -> Place {
        self.source.start(&item.span())
    }

    /// Where a range of the text begins.
    pub fn place_of(&self, span: &Range<usize>) -> Place {
        self.source.start(span)
    }

    /// Begins to read a table; `None` after noting that it is none.
    pub fn table<'i>(&mut self, item: Item<'i>) -> Option<Table<'i>> {
        if !item.is_table() {
            self.expected(&item, "a table");
            return None;
        }
        let span = item.span();
        match item.value.into_inner() {
            DeValue::Table(table) => {
                Some(Table { table, path: item.path, span, known: Vec::new(), missing: Vec::new() })
            }
            _ => None,
        }
    }
}

/// How the message about a key that must be given begins.
pub const MISSING: &str = "is missing";

/// A table being read. Keys are taken out one by one; what is left at the end is unknown.
pub struct Table<'i> {
    table: DeTable<'i>,
    path: String,
    span: Range<usize>,
    known: Vec<&'static str>,
    /// Keys that must be given and are not, with what was expected: noted at the end, when misspelt ones are known.
    missing: Vec<(&'static str, &'static str)>,
}

impl<'i> Table<'i> {
    /// The file's outermost table.
    pub fn root(table: Spanned<DeTable<'i>>) -> Table<'i> {
        let span = table.span();
        Table { table: table.into_inner(), path: String::new(), span, known: Vec::new(), missing: Vec::new() }
    }

    /// A table that was left out: empty, and `span` is to blame for what is missing in it.
    pub fn absent(path: &str, span: Range<usize>) -> Table<'i> {
        Table { table: DeTable::new(), path: path.to_owned(), span, known: Vec::new(), missing: Vec::new() }
    }

    /// The value it was, with what is left in it.
    pub fn into_item(self) -> Item<'i> {
        Item { value: Spanned::new(self.span, DeValue::Table(self.table)), path: self.path }
    }

    /// The names that are left.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table.keys().map(|key| key.get_ref().as_ref())
    }

    /// The path of a key in it.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Its own path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where it begins.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Takes a key out; `name` counts as known from now on.
    pub fn take(&mut self, name: &'static str) -> Option<Item<'i>> {
        self.know(name);
        let path = self.path_of(name);
        self.table.remove(name).map(|value| Item { value, path })
    }

    /// Takes out a key whose name the user chose.
    pub fn take_named(&mut self, name: &str) -> Option<Item<'i>> {
        let path = self.path_of(name);
        self.table.remove(name).map(|value| Item { value, path })
    }

    /// Names a key that may be there, for suggestions.
    pub fn know(&mut self, name: &'static str) {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
    }

    /// Everything that is left, as (name, place of the name, value).
    pub fn rest(self) -> Vec<(String, Range<usize>, Item<'i>)> {
        let prefix = self.path;
        self.table
            .into_iter()
            .map(|(key, value)| {
                let span = key.span();
                let name = key.into_inner().into_owned();
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                (name, span, Item { value, path })
            })
            .collect()
    }

    /// Reads a key: its value, the default, or `None` after noting what is wrong.
    pub fn key<T: FromToml>(
        &mut self,
        name: &'static str,
        default: Option<fn() -> T>,
        reader: &mut Reader<'_>,
    ) -> Option<T> {
        match (self.take(name), default) {
            (Some(item), _) => T::from_toml(item, reader),
            (None, Some(default)) => Some(default()),
            (None, None) => T::missing().or_else(|| {
                self.missing.push((name, T::EXPECTED));
                None
            }),
        }
    }

    /// Records that a key must be given and is not.
    pub fn miss(&mut self, name: &'static str, expected: &'static str) {
        self.missing.push((name, expected));
    }

    /// Ends the reading: what is left is unknown, and what is missing is missing unless it was only misspelt.
    pub fn finish(mut self, reader: &mut Reader<'_>) {
        let (known, mut missing) = (std::mem::take(&mut self.known), std::mem::take(&mut self.missing));
        missing.retain(|(name, _)| !self.names().any(|left| near_miss(left, known.iter().copied()) == Some(*name)));
        for (name, expected) in missing {
            let message = format!("{MISSING}: expected {expected}");
            reader.mistakes.at(&reader.source.start(&self.span), &self.path_of(name), message);
        }
        for (name, span, item) in self.rest() {
            let place = reader.source.start(&span);
            let what = if item.is_table() { "table" } else { "key" };
            reader.mistakes.unknown(&place, &item.path, what, &name, known.iter().copied());
        }
    }
}

/// Reads one value with serde.
pub fn deserialize<T: DeserializeOwned>(item: Item<'_>, expected: &str, reader: &mut Reader<'_>) -> Option<T> {
    let (place, path, kind, span) = (reader.place(&item), item.path.clone(), item.kind(), item.span());
    match T::deserialize(ValueDeserializer::from(item.value)) {
        Ok(value) => Some(value),
        Err(error) => {
            let detail = error.message().lines().next().unwrap_or("").to_owned();
            let message = if detail.starts_with("invalid type") {
                format!("expected {expected}, found {kind}")
            } else if detail.starts_with("invalid value") {
                format!("expected {expected}, found {}", &reader.source.text()[span])
            } else {
                format!("expected {expected}: {detail}")
            };
            reader.mistakes.at(&place, &path, message);
            None
        }
    }
}

/// Reads a string with `parse`.
pub fn parsed<T>(item: &Item<'_>, expected: &str, reader: &mut Reader<'_>, parse: fn(&str) -> Option<T>) -> Option<T> {
    let Some(text) = item.as_str() else {
        reader.expected(item, expected);
        return None;
    };
    let value = parse(text);
    if value.is_none() {
        reader.wrong(item, format!("expected {expected}, found {text:?}"));
    }
    value
}

/// Makes a type that serde reads readable here.
#[macro_export]
macro_rules! serde_key {
    ($($ty:ty: $expected:literal),* $(,)?) => {$(
        impl $crate::config::reader::FromToml for $ty {
            const EXPECTED: &'static str = $expected;
            fn from_toml(
                item: $crate::config::reader::Item<'_>,
                reader: &mut $crate::config::reader::Reader<'_>,
            ) -> Option<Self> {
                $crate::config::reader::deserialize(item, $expected, reader)
            }
        }
    )*};
}

serde_key! {
    bool: "true or false",
    String: "a string",
    u8: "an integer from 0 to 255",
    u16: "an integer from 0 to 65535",
    u32: "an integer from 0 to 4294967295",
    u64: "an integer from 0 up",
    ipnet::IpNet: "a prefix such as \"192.0.2.0/24\"",
    std::net::IpAddr: "an IP address",
}

impl<T: FromToml> FromToml for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const OPTIONAL: bool = true;
    const KEYS: &'static [Key] = T::KEYS;
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        T::from_toml(item, reader).map(Some)
    }
    fn missing() -> Option<Self> {
        Some(None)
    }
}

impl<T: FromToml> FromToml for At<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const KEYS: &'static [Key] = T::KEYS;
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let place = reader.place(&item);
        T::from_toml(item, reader).map(|value| At { value, place })
    }
}

/// A list. A single value counts as a list of one, so that `service = "web"` and `service = ["web"]` mean the same.
impl<T: FromToml> FromToml for Vec<T> {
    const EXPECTED: &'static str = "a list";
    const KEYS: &'static [Key] = T::KEYS;
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if !item.is_list() {
            return T::from_toml(item, reader).map(|value| vec![value]);
        }
        let mut all = Some(Vec::new());
        for element in item.elements() {
            match (T::from_toml(element, reader), &mut all) {
                (Some(value), Some(list)) => list.push(value),
                _ => all = None,
            }
        }
        all
    }
}

/// Declares an enum that the file writes as one of several words:
/// `choice! { /// Doc. pub enum Idle { /// Doc. Poll = "poll", /// Doc. Yield = "yield" } }`.
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $(#[doc = $fdoc:literal])+ $first:ident = $ftext:literal $(, $(#[doc = $doc:literal])+ $variant:ident = $text:literal)* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $(#[doc = $fdoc])+ $first $(, $(#[doc = $doc])+ $variant)* }

        impl $name {
            /// The word for it in the file.
            pub fn word(self) -> &'static str {
                match self { $name::$first => $ftext $(, $name::$variant => $text)* }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", self.word())
            }
        }

        impl $crate::config::reader::FromToml for $name {
            const EXPECTED: &'static str = concat!("\"", $ftext, "\"" $(, " or \"", $text, "\"")*);
            fn from_toml(
                item: $crate::config::reader::Item<'_>,
                reader: &mut $crate::config::reader::Reader<'_>,
            ) -> Option<Self> {
                match item.as_str() {
                    Some($ftext) => Some($name::$first),
                    $(Some($text) => Some($name::$variant),)*
                    Some(other) => {
                        let message = format!("expected {}, found {other:?}", Self::EXPECTED);
                        match $crate::config::source::near_miss(other, [$ftext $(, $text)*].into_iter()) {
                            Some(near) => reader.wrong_but(&item, message, format!("did you mean {near:?}?")),
                            None => reader.wrong(&item, message),
                        }
                        None
                    }
                    None => {
                        reader.expected(&item, Self::EXPECTED);
                        None
                    }
                }
            }
        }
    };
}

/// A field's name in the file: a keyword of Rust may be one.
pub const fn key_name(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Declares a table of the file: the struct, how it is read, and its reference, from one list of documented keys.
/// A key without a default must be given, unless its type is an `Option`.
///
/// `section! { /// Doc. pub struct Config { /// Doc. pub burst: u16 = 32, /// Doc. pub name: String, } }`
#[macro_export]
macro_rules! section {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $( $(#[doc = $doc:literal])+ $fvis:vis $field:ident : $ty:ty $(= $default:expr)? ),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $vis struct $name { $( $(#[doc = $doc])+ $fvis $field: $ty ),* }

        impl $crate::config::reader::FromToml for $name {
            const EXPECTED: &'static str = "a table";
            const KEYS: &'static [$crate::config::reader::Key] = &[$(
                $crate::config::reader::Key {
                    name: $crate::config::reader::key_name(stringify!($field)),
                    expected: <$ty as $crate::config::reader::FromToml>::EXPECTED,
                    default: $crate::section!(@default $ty $(, $default)?),
                    required: $crate::section!(@required $ty $(, $default)?),
                    doc: concat!($($doc),+).trim_ascii(),
                    keys: <$ty as $crate::config::reader::FromToml>::KEYS,
                }
            ),*];
            fn from_toml(
                item: $crate::config::reader::Item<'_>,
                reader: &mut $crate::config::reader::Reader<'_>,
            ) -> Option<Self> {
                let mut table = reader.table(item)?;
                $( let $field = table.key::<$ty>(
                    $crate::config::reader::key_name(stringify!($field)),
                    $crate::section!(@some $ty $(, $default)?),
                    reader,
                ); )*
                table.finish(reader);
                Some($name { $( $field: $field? ),* })
            }
        }
    };
    (@default $ty:ty, $default:expr) => {
        Some((|| {
            let value: $ty = $default;
            format!("{value:?}")
        }) as fn() -> String)
    };
    (@default $ty:ty) => { None };
    (@required $ty:ty, $default:expr) => { false };
    (@required $ty:ty) => { !<$ty as $crate::config::reader::FromToml>::OPTIONAL };
    (@some $ty:ty, $default:expr) => { Some((|| $default) as fn() -> $ty) };
    (@some $ty:ty) => { None };
}

#[cfg(test)]
mod tests {
    use super::*;

    section! {
        /// For the test.
        pub struct Inner {
            /// A name.
            pub name: At<String>,
            /// A size.
            pub size: u16 = 7,
            /// A list.
            pub list: Vec<u8> = vec![],
            /// May be left out.
            pub maybe: Option<bool>,
        }
    }

    fn read(text: &str) -> (Option<Inner>, Vec<String>) {
        let source = Source::new("t.toml", text);
        let mut mistakes = Mistakes::default();
        let mut reader = Reader { source: &source, mistakes: &mut mistakes };
        let mut root = Table::root(DeTable::parse(text).expect("syntax"));
        let inner = root.take("inner").and_then(|item| Inner::from_toml(item, &mut reader));
        (inner, mistakes.into_sorted().iter().map(|m| m.to_string()).collect())
    }

    #[test]
    fn defaults_and_single_values() {
        let (inner, mistakes) = read("[inner]\nname = 'x'\nlist = 3\n");
        let inner = inner.expect("good");
        assert_eq!((inner.name.as_str(), inner.size, inner.list, inner.maybe), ("x", 7, vec![3], None));
        assert_eq!(inner.name.place.to_string(), "t.toml:2:8");
        assert!(mistakes.is_empty());
        assert_eq!(Inner::KEYS[1].default.map(|default| default()), Some("7".into()));
        let required: Vec<&str> = Inner::KEYS.iter().filter(|key| key.required).map(|key| key.name).collect();
        assert_eq!(required, ["name"]);
        assert_eq!(Inner::KEYS[0].doc, "A name.");
    }

    #[test]
    fn all_mistakes_at_once() {
        let (_, misspelt) = read("[inner]\nnaem = 'x'\n");
        assert_eq!(misspelt.len(), 1, "what is misspelt is not missing too: {misspelt:?}");
        let (inner, mistakes) = read("[inner]\nsiez = 1\nsize = 70000\nlist = [1, 'a', 300]\nmaybe = 'no'\n");
        assert!(inner.is_none());
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
        assert!(mistakes.iter().any(|m| m.contains("t.toml:2:1: inner.siez") && m.contains("did you mean \"size\"?")));
        assert!(mistakes.iter().any(|m| m.contains("t.toml:4:12: inner.list[1]: expected an integer")));
        assert!(mistakes.iter().any(|m| m.contains("inner.name: is missing")));
    }
}
