//! Texts that people wrote, and the places of mistakes in them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

/// A file as it was read: its name and its text.
#[derive(Clone, Debug)]
pub struct Source {
    path: Arc<str>,
    text: Arc<str>,
    /// Where each line begins: a place is looked up for every value of the file.
    lines: Arc<[usize]>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file's name as the user gave it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub place: Place,
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl Source {
    /// A text under a name.
    pub fn new(path: &str, text: &str) -> Source {
        let lines =
            std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
        Source { path: path.into(), text: text.into(), lines: lines.collect() }
    }

    /// Reads a file.
    pub fn read(path: &str) -> std::io::Result<Source> {
        Ok(Source::new(path, &std::fs::read_to_string(path)?))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The file's name.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where byte `offset` of the text is.
    pub fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let column = self.text[self.lines[line - 1]..offset].chars().count() + 1;
        Place { file: self.path.clone(), line: line as u32, column: column as u32 }
    }

    /// The byte of the text at a place in this file.
    pub fn offset(&self, place: &Place) -> usize {
        let line = self.line(place.line);
        let column = line.char_indices().nth(place.column as usize - 1).map_or(line.len(), |(at, _)| at);
        self.lines.get(place.line as usize - 1).map_or(self.text.len(), |start| start + column)
    }

    /// A line's text, by its number from 1, without its end; empty if there is none.
    pub fn line(&self, number: u32) -> &str {
        let start = self.lines.get(number as usize - 1).copied().unwrap_or(self.text.len());
        self.text[start..].lines().next().unwrap_or_default()
    }

    /// Where a range of the text begins.
    pub fn start(&self, span: &Range<usize>) -> Place {
        self.place(span.start)
    }
}

/// One mistake in what the user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Where it is; none if it concerns no line in particular.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// The key it is about (`acl.rule[2].source`), or empty.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do about it, if that is not obvious from the message.
    pub help: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// All mistakes found so far.
#[derive(Clone, Debug, Default)]
pub struct Mistakes {
    list: Vec<Mistake>,
}

impl Mistakes {
    /// Notes a mistake at a place.
    pub fn at(&mut self, place: &Place, key: &str, message: impl Into<String>) {
        self.push(Mistake { place: Some(place.clone()), key: key.to_owned(), message: message.into(), help: None });
    }

    /// Notes a mistake at a place, with what to do about it.
    pub fn with_help(&mut self, place: &Place, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let help = Some(help.into());
        self.push(Mistake { place: Some(place.clone()), key: key.to_owned(), message: message.into(), help });
    }

    /// Notes a name that is not among those known, suggesting the nearest.
    pub fn unknown<'a>(
        &mut self,
        place: &Place,
        key: &str,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'a str>,
    ) {
        let known: Vec<&str> = known.collect();
        let help = match near_miss(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.is_empty() => format!("there is no {what} at all"),
            None if known.len() <= 24 => format!("known: {}", known.join(", ")),
            None => return self.at(place, key, format!("there is no {what} {name:?}")),
        };
        self.with_help(place, key, format!("there is no {what} {name:?}"), help);
    }

    /// Notes a mistake made elsewhere.
    pub fn push(&mut self, mistake: Mistake) {
        self.list.push(mistake);
    }

    /// True if none was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many were found.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Keeps only some of them.
    pub fn retain(&mut self, keep: impl FnMut(&Mistake) -> bool) {
        self.list.retain(keep);
    }

    /// In the order of their places, each once.
    pub fn into_sorted(mut self) -> Vec<Mistake> {
        self.list.sort_by(|a, b| a.place.cmp(&b.place));
        self.list.dedup();
        self.list
    }
}

/// The known name closest to a misspelt one, if any is close.
pub fn near_miss<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase().replace('-', "_");
    known
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase().replace('-', "_")), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(name.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_from_one() {
        let source = Source::new("a.toml", "é = 1\nb = 2\n");
        assert_eq!(source.place(0).to_string(), "a.toml:1:1");
        assert_eq!(source.place(2).column, 2);
        assert_eq!(source.place(7).to_string(), "a.toml:2:1");
        assert_eq!(source.place(1).column, 1, "inside a character");
        assert_eq!(source.place(999).line, 3);
    }

    #[test]
    fn near_misses() {
        let known = ["source", "destination", "service"];
        assert_eq!(near_miss("sorce", known.into_iter()), Some("source"));
        assert_eq!(near_miss("Destination", known.into_iter()), Some("destination"));
        assert_eq!(near_miss("zebra", known.into_iter()), None);
    }
}
