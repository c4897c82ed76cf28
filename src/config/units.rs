//! Quantities as people write them: sizes, rates, durations, numbers within bounds, and "auto".

use std::fmt;
use std::time::Duration;

use super::reader::{FromToml, Item, Key, Reader, deserialize, parsed};
use super::source::Mistakes;

/// A text put together at compile time, for `EXPECTED` of generic types.
struct Text {
    bytes: [u8; 192],
    length: usize,
}

impl Text {
    const EMPTY: Text = Text { bytes: [0; 192], length: 0 };

    const fn text(mut self, text: &str) -> Text {
        let mut at = 0;
        while at < text.len() {
            self.bytes[self.length] = text.as_bytes()[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    const fn number(self, n: u64) -> Text {
        let mut text = if n >= 10 { self.number(n / 10) } else { self };
        text.bytes[text.length] = b'0' + (n % 10) as u8;
        text.length += 1;
        text
    }

    const fn get(&self) -> &str {
        match str::from_utf8(self.bytes.split_at(self.length).0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }
}

/// An integer from `MIN` to `MAX`, both included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Within<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Within<MIN, MAX> {
    const TEXT: Text = Text::EMPTY.text("an integer from ").number(MIN).text(" to ").number(MAX);
}

impl<const MIN: u64, const MAX: u64> fmt::Debug for Within<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MIN: u64, const MAX: u64> FromToml for Within<MIN, MAX> {
    const EXPECTED: &'static str = Self::TEXT.get();
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let (place, path) = (reader.place(&item), item.path.clone());
        let value: i64 = deserialize(item, Self::EXPECTED, reader)?;
        match u64::try_from(value) {
            Ok(value) if (MIN..=MAX).contains(&value) => Some(Within(value)),
            _ => {
                reader.mistakes.at(&place, &path, format!("expected {}, found {value}", Self::EXPECTED));
                None
            }
        }
    }
}

/// A value, or "auto" to leave the choice to flowgate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// Flowgate chooses.
    Auto,
    /// The user has chosen.
    Given(T),
}

impl<T: FromToml> Auto<T> {
    const TEXT: Text = Text::EMPTY.text(T::EXPECTED).text(" or \"auto\"");
}

impl<T> Auto<T> {
    /// What the user has chosen, if anything.
    pub fn given(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Given(value) => Some(value),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auto::Auto => f.write_str("\"auto\""),
            Auto::Given(value) => value.fmt(f),
        }
    }
}

impl<T: FromToml> FromToml for Auto<T> {
    const EXPECTED: &'static str = Self::TEXT.get();
    const KEYS: &'static [Key] = T::KEYS;
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if item.as_str() == Some("auto") {
            return Some(Auto::Auto);
        }
        let mut mistakes = Mistakes::default();
        let value = T::from_toml(item, &mut Reader { source: reader.source, mistakes: &mut mistakes });
        for mut mistake in mistakes.into_sorted() {
            mistake.message = mistake.message.replace(T::EXPECTED, Self::EXPECTED);
            reader.mistakes.push(mistake);
        }
        value.map(Auto::Given)
    }
}

/// Splits `1.5Gbit/s` into the number times `scale(unit)` and rounded down. `None` if it is no number, the unit is unknown
/// or the result is above 2^63.
fn quantity(text: &str, scale: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || whole.len() > 19 || fraction.len() > 9 {
        return None;
    }
    let scale = u128::from(scale(unit.trim_start())?);
    let whole = u128::from(whole.parse::<u64>().ok()?);
    let fraction = u128::from(fraction.parse::<u64>().ok()?) * scale / 10u128.pow(fraction.len() as u32);
    u64::try_from(whole * scale + fraction).ok().filter(|n| *n <= i64::MAX as u64)
}

/// Decimal prefixes, as rates and disks are counted.
fn prefix(letter: &str) -> Option<u64> {
    Some(match letter {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Bytes: `"512MB"` (powers of 1000), `"512MiB"` (powers of 1024), or a plain integer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Reads what stands in the file.
    pub fn parse(text: &str) -> Option<Size> {
        let scale = |unit: &str| match unit.strip_suffix("iB") {
            Some("K" | "k") => Some(1 << 10),
            Some("M") => Some(1 << 20),
            Some("G") => Some(1 << 30),
            Some(_) => None,
            None => prefix(unit.strip_suffix('B')?),
        };
        quantity(text, scale).map(Size)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}B\"", self.0)
    }
}

impl FromToml for Size {
    const EXPECTED: &'static str = "a size such as \"512MB\" or \"1GiB\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match item.as_str() {
            Some(_) => parsed(&item, Self::EXPECTED, reader, Size::parse),
            None => deserialize(item, Self::EXPECTED, reader).map(Size),
        }
    }
}

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Things: packets, flows, replies.
    Packets,
    /// Bytes of frames.
    Bytes,
}

/// A rate: `"200/s"`, `"10k/s"`, `"5kpps"` in packets; `"1Gbit/s"`, `"100Mbps"`, `"10MB/s"` in bytes. Prefixes are powers of
/// 1000.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many a second.
    pub per_second: u64,
    /// Of what.
    pub counted: Counted,
}

impl Rate {
    /// Reads what stands in the file.
    pub fn parse(text: &str) -> Option<Rate> {
        let end = text.find(|c: char| c.is_ascii_alphabetic() || c == '/')?;
        let unit = &text[end..];
        let endings = [
            ("bit/s", Counted::Bytes, 8),
            ("bps", Counted::Bytes, 8),
            ("B/s", Counted::Bytes, 1),
            ("pps", Counted::Packets, 1),
            ("/s", Counted::Packets, 1),
        ];
        let (letter, counted, parts) =
            endings.iter().find_map(|(end, counted, parts)| Some((unit.strip_suffix(end)?, *counted, *parts)))?;
        let amount = quantity(text, |unit_there| (unit_there == unit).then(|| prefix(letter)).flatten())?;
        Some(Rate { per_second: amount / parts, counted })
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}{}/s\"", self.per_second, if self.counted == Counted::Bytes { "B" } else { "" })
    }
}

impl FromToml for Rate {
    const EXPECTED: &'static str = "a rate such as \"10k/s\", \"5000pps\", \"1Gbit/s\" or \"10MB/s\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        parsed(&item, Self::EXPECTED, reader, Rate::parse)
    }
}

impl FromToml for Duration {
    const EXPECTED: &'static str = "a duration such as \"500ms\", \"30s\", \"5m\" or \"24h\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        parsed(&item, Self::EXPECTED, reader, duration)
    }
}

fn duration(text: &str) -> Option<Duration> {
    let nanoseconds = quantity(text, |unit| {
        Some(match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return None,
        })
    })?;
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |text| Size::parse(text).map(|size| size.0);
        assert_eq!(size("512MB"), Some(512_000_000));
        assert_eq!(size("1.5 GiB"), Some(3 << 29));
        assert_eq!(size("64kB"), Some(64_000));
        assert_eq!(size("7B"), Some(7));
        for wrong in ["", "MB", "1", "1XB", "1.MB", ".5MB", "-1MB", "1MB2", "99999999999TB", "1 M B", "1.2.3MB"] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn rates() {
        let rate = |text| Rate::parse(text).map(|rate| (rate.per_second, rate.counted));
        assert_eq!(rate("200/s"), Some((200, Counted::Packets)));
        assert_eq!(rate("10k/s"), Some((10_000, Counted::Packets)));
        assert_eq!(rate("1.5Mpps"), Some((1_500_000, Counted::Packets)));
        assert_eq!(rate("1Gbit/s"), Some((125_000_000, Counted::Bytes)));
        assert_eq!(rate("100Mbps"), Some((12_500_000, Counted::Bytes)));
        assert_eq!(rate("10 MB/s"), Some((10_000_000, Counted::Bytes)));
        for wrong in ["", "10", "k/s", "10x/s", "10/m", "10 k /s", "10kbit", "é/s"] {
            assert_eq!(rate(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("30"), None);
        assert_eq!(duration("s"), None);
    }

    #[test]
    fn expectations_are_spelt_out() {
        assert_eq!(<Auto<Within<1, 128>> as FromToml>::EXPECTED, "an integer from 1 to 128 or \"auto\"");
        assert_eq!(format!("{:?} {:?}", Auto::<u8>::Auto, Auto::Given(Within::<0, 9>(3))), "\"auto\" 3");
    }
}
