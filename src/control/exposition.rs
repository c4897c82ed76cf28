//! The text that Prometheus reads: OpenMetrics 1.0, or its own older format for those who ask for that.
//!
//! Knows families, samples and how both formats want them written; not what is measured.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Dialect {
    /// What the `Accept` header of a request asks for: the older format only if it names that and not the newer one.
    pub fn accepted(accept: Option<&str>) -> Dialect {
        match accept {
            Some(accept) if accept.contains("text/plain") && !accept.contains("openmetrics") => Dialect::Text,
            _ => Dialect::OpenMetrics,
        }
    }

    /// The content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Dialect::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counts up.
    Counter,
    /// A level.
    Gauge,
    /// Counts by class, and a sum.
    Histogram,
}

impl Kind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Units that a name may end with.
const UNITS: [&str; 5] = ["bytes_per_second", "seconds", "bytes", "packets", "cycles"];

/// A text that is being written.
#[derive(Debug)]
pub struct Exposition {
    dialect: Dialect,
    text: String,
    names: BTreeSet<String>,
}

impl Exposition {
    /// An empty one.
    pub fn new(dialect: Dialect) -> Exposition {
        Exposition { dialect, text: String::new(), names: BTreeSet::new() }
    }

    /// Begins a family; `name` goes without `_total`, which is a counter's samples' own. A family begins once.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert!(self.names.insert(name.to_owned()), "{name} begins twice");
        let sample = if kind == Kind::Counter { format!("{name}_total") } else { name.to_owned() };
        let (title, help) = match self.dialect {
            Dialect::OpenMetrics => (name, escaped(help)),
            Dialect::Text => (sample.as_str(), help.replace('\\', r"\\").replace('\n', r"\n")),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {title} {help}\n# TYPE {title} {}", kind.word());
        if self.dialect == Dialect::OpenMetrics
            && let Some(unit) =
                UNITS.iter().find(|unit| name.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_')))
        {
            let _ = writeln!(self.text, "# UNIT {title} {unit}");
        }
        Family { text: &mut self.text, sample }
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.dialect == Dialect::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// A family whose samples are being written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    sample: String,
}

impl Family<'_> {
    /// Writes a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    /// Writes a histogram: by class its upper end and how many are in it alone, those above all ends, and the sum.
    pub fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        classes: impl Iterator<Item = (f64, u64)>,
        above: u64,
        sum: f64,
    ) {
        let mut count = 0;
        for (most, n) in classes {
            count += n;
            self.line("_bucket", &[labels, &[("le", &number(most))]].concat(), count);
        }
        count += above;
        self.line("_bucket", &[labels, &[("le", "+Inf")]].concat(), count);
        self.line("_sum", labels, number(sum));
        self.line("_count", labels, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let (text, name) = (&mut *self.text, &self.sample);
        let _ = write!(text, "{name}{suffix}");
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(text, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(value));
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"")
}

/// A number in OpenMetrics' canonical form: `1.0`, `0.0001`, `1e-05`.
pub fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        return match text.split_once("e-") {
            Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
            None => text,
        };
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dialect: Dialect) -> String {
        let mut text = Exposition::new(dialect);
        text.family("fg_rx_bytes", Kind::Counter, "Bytes \"in\"\\\nall.").sample(&[("port", "l\"a\\n\n")], 7);
        text.family("fg_up", Kind::Gauge, "Up.").sample(&[], 1);
        let classes = [(1e-6, 2), (0.5, 0), (1.0, 3)].into_iter();
        text.family("fg_time_seconds", Kind::Histogram, "Time.").histogram(&[("worker", "0")], classes, 1, 2.5);
        text.finish()
    }

    #[test]
    fn openmetrics() {
        let expected = r#"# HELP fg_rx_bytes Bytes \"in\"\\\nall.
# TYPE fg_rx_bytes counter
# UNIT fg_rx_bytes bytes
fg_rx_bytes_total{port="l\"a\\n\n"} 7
# HELP fg_up Up.
# TYPE fg_up gauge
fg_up 1
# HELP fg_time_seconds Time.
# TYPE fg_time_seconds histogram
# UNIT fg_time_seconds seconds
fg_time_seconds_bucket{worker="0",le="1e-06"} 2
fg_time_seconds_bucket{worker="0",le="0.5"} 2
fg_time_seconds_bucket{worker="0",le="1.0"} 5
fg_time_seconds_bucket{worker="0",le="+Inf"} 6
fg_time_seconds_sum{worker="0"} 2.5
fg_time_seconds_count{worker="0"} 6
# EOF
"#;
        assert_eq!(written(Dialect::OpenMetrics), expected);
    }

    #[test]
    fn the_older_format_names_counters_in_full() {
        let text = written(Dialect::Text);
        assert!(
            text.starts_with("# HELP fg_rx_bytes_total Bytes \"in\"\\\\\\nall.\n# TYPE fg_rx_bytes_total counter\nfg")
        );
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    }

    #[test]
    fn the_dialect_is_the_askers_choice() {
        let of = |accept| Dialect::accepted(Some(accept));
        assert_eq!(
            of("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"),
            Dialect::OpenMetrics
        );
        assert_eq!((of("text/plain;version=0.0.4"), of("*/*")), (Dialect::Text, Dialect::OpenMetrics));
        assert_eq!(Dialect::accepted(None), Dialect::OpenMetrics);
    }

    #[test]
    fn numbers() {
        let all = [0.0, 1.0, 2e-6, 1e-5, 1e-4, 0.05, 1234.5].map(number);
        assert_eq!(all, ["0.0", "1.0", "2e-06", "1e-05", "0.0001", "0.05", "1234.5"]);
    }
}
