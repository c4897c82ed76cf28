//! What `flowgate top` shows: lines of styled text for a terminal of some size. Draws nothing and asks nobody.

use std::collections::VecDeque;

use clap::ValueEnum;
use serde_json::Value;

use super::shot::Shot;
use crate::cli::show::{cell, rows};
use crate::cli::table::grouped;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// A little of everything.
    Overview,
    /// Ports: rates, losses.
    Ports,
    /// Drops by reason.
    Drops,
    /// Rules by their hits.
    Rules,
    /// Flows by state.
    Flows,
    /// Who talks most.
    Talkers,
    /// Workers: load, account.
    Workers,
}

/// All views, in the order of their keys.
pub const VIEWS: [View; 7] =
    [View::Overview, View::Ports, View::Drops, View::Rules, View::Flows, View::Talkers, View::Workers];

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Less important.
    Soft,
    /// A heading.
    Bold,
    /// Good.
    Good,
    /// Not good.
    Bad,
    /// The chosen one.
    Chosen,
}

/// A line of text.
pub type Line = Vec<(Look, String)>;

/// What somebody chose.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The view.
    pub view: View,
    /// The column its table is sorted by, if not the one it comes with.
    pub sort: Option<usize>,
    /// The other way round.
    pub reverse: bool,
    /// Rows that were scrolled past.
    pub from: usize,
}

/// A number in three digits and a letter: `1.23M`.
pub fn short(value: f64) -> String {
    let (mut value, mut at) = (value, 0);
    while value.abs() >= 999.5 && at < 4 {
        (value, at) = (value / 1000.0, at + 1);
    }
    let digits = match at {
        0 => usize::from(value % 1.0 != 0.0 && value < 9.95),
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", ["", "k", "M", "G", "T"][at])
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => ">1s".into(),
        s if s < 1e-3 => format!("<={}us", (s * 1e6).round()),
        s if s < 1.0 => format!("<={}ms", (s * 1e3).round()),
        s => format!("<={s}s"),
    }
}

/// A cell: its text, what it is sorted by, its look.
#[derive(Clone, Debug)]
struct Cell {
    text: String,
    rank: f64,
    look: Look,
}

fn word(value: &Value) -> Cell {
    Cell { text: cell(value), rank: 0.0, look: Look::Plain }
}

fn count(value: &Value) -> Cell {
    let number = value.as_u64();
    Cell { text: number.map_or("-".into(), grouped), rank: number.map_or(-1.0, |n| n as f64), look: Look::Plain }
}

fn rate(value: Option<f64>) -> Cell {
    Cell { text: value.map_or("-".into(), short), rank: value.unwrap_or(-1.0), look: Look::Plain }
}

fn share(value: Option<f64>) -> Cell {
    let text = value.map_or("-".into(), |share| format!("{:.1}%", share * 100.0));
    let look = if value.is_some_and(|share| share > 0.9) { Look::Bad } else { Look::Plain };
    Cell { text, rank: value.unwrap_or(-1.0), look }
}

/// What is bad unless it is nothing.
fn loss(cell: Cell) -> Cell {
    let look = if cell.rank > 0.0 { Look::Bad } else { cell.look };
    Cell { look, ..cell }
}

/// A table: titles, which of them are numbers, rows; sorted by a column, largest first, or as it comes.
struct Table {
    titles: &'static [&'static str],
    words: &'static [usize],
    rows: Vec<Vec<Cell>>,
    sort: Option<usize>,
}

fn table(view: View, shot: &Shot) -> Table {
    let now = &shot.now;
    match view {
        View::Overview | View::Ports => Table {
            titles: &["port", "link", "in pps", "out pps", "in bps", "out bps", "not taken", "missed"],
            words: &[0, 1],
            sort: None,
            rows: rows(&now["ports"])
                .iter()
                .map(|row| {
                    let pps = |key| rate(shot.rate_in("/ports", row, &["port"], key));
                    let bps = |key| rate(shot.rate_in("/ports", row, &["port"], key).map(|bytes| bytes * 8.0));
                    let missed = row["device"]["rx_missed"].as_u64().zip(row["device"]["rx_no_buffer"].as_u64());
                    let link =
                        Cell { look: if row["link"] == "up" { Look::Good } else { Look::Bad }, ..word(&row["link"]) };
                    vec![
                        word(&row["port"]),
                        link,
                        pps("/rx_packets"),
                        pps("/tx_packets"),
                        bps("/device/rx_bytes"),
                        bps("/device/tx_bytes"),
                        loss(count(&row["tx_dropped"])),
                        loss(count(&missed.map(|(missed, none)| missed + none).into())),
                    ]
                })
                .collect(),
        },
        View::Drops => Table {
            titles: &["reason", "per s", "packets", "meaning"],
            words: &[0, 3],
            sort: Some(1),
            rows: rows(&now["drops"])
                .iter()
                .map(|row| {
                    vec![word(&row["reason"]), rate(shot.drop_rate(row)), count(&row["packets"]), word(&row["doc"])]
                })
                .collect(),
        },
        View::Rules => Table {
            titles: &["rule", "action", "per s", "packets", "bytes", "flows", "stage"],
            words: &[0, 1, 6],
            sort: Some(2),
            rows: rows(&now["rules"]["most_hit"])
                .iter()
                .map(|row| {
                    let per_second = rate(shot.rate_in("/rules/most_hit", row, &["stage", "rule"], "/packets"));
                    let (packets, bytes, flows) = (count(&row["packets"]), count(&row["bytes"]), count(&row["flows"]));
                    vec![
                        word(&row["rule"]),
                        word(&row["action"]),
                        per_second,
                        packets,
                        bytes,
                        flows,
                        word(&row["stage"]),
                    ]
                })
                .collect(),
        },
        View::Flows => Table {
            titles: &["protocol", "state", "flows"],
            words: &[0, 1],
            sort: Some(2),
            rows: rows(&now["flows"]["states"])
                .iter()
                .map(|row| vec![word(&row["protocol"]), word(&row["state"]), count(&row["flows"])])
                .collect(),
        },
        View::Talkers => Table {
            titles: &["address", "bps", "bytes", "packets", "flows"],
            words: &[0],
            sort: Some(2),
            rows: rows(&now["talkers"]["rows"])
                .iter()
                .map(|row| {
                    let (bytes, packets, flows) = (count(&row["bytes"]), count(&row["packets"]), count(&row["flows"]));
                    vec![word(&row["address"]), rate(shot.talker_bits(row)), bytes, packets, flows]
                })
                .collect(),
        },
        View::Workers => Table {
            titles: &["worker", "core", "load", "received", "sent", "dropped", "handed", "held", "account"],
            words: &[8],
            sort: None,
            rows: rows(&now["workers"])
                .iter()
                .map(|row| {
                    let (term, good) = (|key: &str| count(&row["account"][key]), row["balanced"] == true);
                    let (text, look) = if good { ("closes", Look::Good) } else { ("does not close", Look::Bad) };
                    vec![
                        word(&row["worker"]),
                        count(&row["core"]),
                        share(shot.load(row)),
                        term("received"),
                        term("sent"),
                        term("dropped"),
                        term("handed-out"),
                        term("held"),
                        Cell { text: text.into(), rank: f64::from(u8::from(!good)), look },
                    ]
                })
                .collect(),
        },
    }
}

/// How many columns a view's table has.
pub fn columns(view: View, shot: &Shot) -> usize {
    table(view, shot).titles.len()
}

impl Table {
    fn lines(mut self, choice: Option<&Choice>, room: usize) -> Vec<Line> {
        let sort = choice.and_then(|choice| choice.sort).filter(|sort| *sort < self.titles.len()).or(self.sort);
        if let Some(by) = sort {
            self.rows.sort_by(|a, b| b[by].rank.total_cmp(&a[by].rank).then_with(|| a[by].text.cmp(&b[by].text)));
        }
        if choice.is_some_and(|choice| choice.reverse) {
            self.rows.reverse();
        }
        let from = choice.map_or(0, |choice| choice.from.min(self.rows.len().saturating_sub(1)));
        let shown: Vec<&Vec<Cell>> = self.rows.iter().skip(from).take(room.saturating_sub(1)).collect();
        let width = |at: usize| {
            let cells = shown.iter().map(|row| row[at].text.chars().count());
            // A mark of the order stands behind the title.
            cells.chain([self.titles[at].len() + usize::from(sort == Some(at))]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.titles.len()).map(width).collect();
        let padded = |at: usize, text: &str| match self.words.contains(&at) {
            true => format!("{text:<width$}  ", width = widths[at]),
            false => format!("{text:>width$}  ", width = widths[at]),
        };
        let title = |(at, title): (usize, &&str)| match sort == Some(at) {
            true => (Look::Chosen, padded(at, &format!("{title}*"))),
            false => (Look::Bold, padded(at, title)),
        };
        let mut lines: Vec<Line> = vec![self.titles.iter().enumerate().map(title).collect()];
        let cells =
            |row: &Vec<Cell>| row.iter().enumerate().map(|(at, cell)| (cell.look, padded(at, &cell.text))).collect();
        lines.extend(shown.into_iter().map(cells));
        if self.rows.is_empty() {
            lines.push(vec![(Look::Soft, "nothing".into())]);
        }
        lines
    }
}

/// The last rates as a row of bars, of as many characters; of ASCII where the terminal knows no others.
pub fn bars(rates: &VecDeque<f64>, width: usize, ascii: bool) -> String {
    let steps: Vec<char> = if ascii { " .:-=+*#" } else { "▁▂▃▄▅▆▇█" }.chars().collect();
    let shown = rates.iter().skip(rates.len().saturating_sub(width));
    let most = shown.clone().fold(1.0_f64, |most, rate| most.max(*rate));
    shown.map(|rate| steps[((rate / most * 7.0).round() as usize).min(7)]).collect()
}

fn headline(shot: &Shot) -> Vec<Line> {
    let now = &shot.now;
    let rates = |key: &str| rate(shot.rate_at(key)).text;
    let bits = |key: &str| {
        let all = rows(&now["ports"]).iter().filter_map(|row| shot.rate_in("/ports", row, &["port"], key));
        short(all.sum::<f64>() * 8.0)
    };
    let up = now["up"].as_f64().unwrap_or(0.0) as u64;
    let load = rows(&now["workers"]).iter().filter_map(|row| shot.load(row)).reduce(f64::max);
    let pools = |key: &str| rows(&now["buffers"]).iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    let latency = |share| shot.latency(share).map_or("-".into(), time);
    let mut lines = vec![
        vec![
            (Look::Bold, "flowgate".into()),
            (Look::Plain, format!(" {}  {}  ", cell(&now["version"]), cell(&now["config"]))),
            (Look::Soft, format!("up {}d {:02}:{:02}:{:02}", up / 86400, up / 3600 % 24, up / 60 % 60, up % 60)),
        ],
        vec![(
            Look::Plain,
            format!(
                "in {} pps {} bps   out {} pps {} bps   dropped {} pps",
                rates("/account/received"),
                bits("/device/rx_bytes"),
                rates("/account/sent"),
                bits("/device/tx_bytes"),
                rates("/account/dropped"),
            ),
        )],
        vec![(
            Look::Plain,
            format!(
                "busiest worker {}   latency p50 {} p99 {}   buffers {} of {}",
                share(load).text,
                latency(0.5),
                latency(0.99),
                grouped(pools("in_use")),
                grouped(pools("all")),
            ),
        )],
    ];
    if !now["flows"].is_null() {
        let of = |key: &str| count(&now["flows"][key]).text;
        lines.push(vec![(
            Look::Plain,
            format!(
                "flows {} of {}   half-open {}   new {} per s",
                of("now"),
                of("entries"),
                of("half_open"),
                rates("/flows/new")
            ),
        )]);
    }
    for worker in rows(&now["workers"]).iter().filter(|worker| worker["balanced"] != true) {
        lines.push(vec![(Look::Bad, format!("worker {}: the account does not close: report it", worker["worker"]))]);
    }
    lines
}

/// A view's lines, `height` of them at most.
pub fn lines(shot: &Shot, choice: &Choice, bars: Option<String>, height: usize) -> Vec<Line> {
    let mut lines = headline(shot);
    lines.extend(bars.map(|bars| vec![(Look::Soft, "in  ".into()), (Look::Good, bars)]));
    lines.push(Vec::new());
    let room = |lines: &Vec<Line>| height.saturating_sub(lines.len());
    match choice.view {
        View::Overview => {
            let ports = rows(&shot.now["ports"]).len();
            let left = room(&lines);
            lines.extend(table(View::Ports, shot).lines(None, (ports + 1).min(left / 2).max(2)));
            for view in [View::Drops, View::Rules] {
                lines.push(Vec::new());
                let left = room(&lines);
                let share = if view == View::Drops { left / 2 } else { left };
                lines.extend(table(view, shot).lines(None, share.min(11)));
            }
        }
        view => {
            let left = room(&lines);
            lines.extend(table(view, shot).lines(Some(choice), left));
        }
    }
    lines.truncate(height);
    lines
}

/// A line cut to a width.
pub fn cut(line: &Line, width: usize) -> Line {
    let mut left = width;
    let mut out = Vec::new();
    for (look, text) in line {
        let piece: String = text.chars().take(left).collect();
        left -= piece.chars().count();
        out.push((*look, piece));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shot() -> Shot {
        let answer = |at: u64| {
            json!({
                "version": "1.0", "config": "fw.toml", "at": at, "up": 93_784.0,
                "ports": [
                    { "port": "lan", "link": "up", "rx_packets": at * 1000, "tx_packets": at, "tx_dropped": 0,
                      "device": { "rx_bytes": at * 64_000, "tx_bytes": 0, "rx_missed": 0, "rx_no_buffer": 0 } },
                    { "port": "wan.7", "link": "down", "rx_packets": 0, "tx_packets": at * 999, "tx_dropped": 1234, "device": null },
                ],
                "account": { "received": at * 1000, "sent": at * 1000, "dropped": 0 },
                "workers": [{ "worker": 0, "core": 1, "balanced": true, "account": { "cycles": at * 100, "busy-cycles": at * 95 } }],
                "drops": [{ "reason": "acl.denied", "packets": at, "doc": "Denied." }, { "reason": "guard.martian", "packets": 77, "doc": "Odd." }],
                "rules": { "all": 1, "most_hit": [{ "stage": "acl", "rule": "web", "action": "allow", "packets": 5, "bytes": 300, "flows": 2 }] },
                "flows": { "now": 3, "half_open": 1, "new": at * 2, "entries": 64, "states": [] },
                "latency": { "classes": [[1e-6, 0], [2e-6, at]], "longer": 0 },
                "buffers": [{ "node": 0, "all": 8192, "in_use": 512 }],
            })
        };
        Shot::new(answer(20), answer(10))
    }

    fn text(lines: &[Line]) -> String {
        lines
            .iter()
            .map(|line| line.iter().map(|(_, text)| text.as_str()).collect::<String>().trim_end().to_owned() + "\n")
            .collect()
    }

    const CHOICE: Choice = Choice { view: View::Overview, sort: None, reverse: false, from: 0 };

    #[test]
    fn an_overview_fits_a_small_terminal() {
        let lines: Vec<Line> = lines(&shot(), &CHOICE, None, 23).iter().map(|line| cut(line, 80)).collect();
        let expected = "\
flowgate 1.0  fw.toml  up 1d 02:03:04
in 1.00k pps 512k bps   out 1.00k pps 0 bps   dropped 0 pps
busiest worker 95.0%   latency p50 <=2us p99 <=2us   buffers 512 of 8,192
flows 3 of 64   half-open 1   new 2 per s

port   link  in pps  out pps  in bps  out bps  not taken  missed
lan    up     1.00k        1    512k        0          0       0
wan.7  down       0      999       -        -      1,234       -

reason         per s*  packets  meaning
acl.denied          1       20  Denied.
guard.martian       0       77  Odd.

rule  action  per s*  packets  bytes  flows  stage
web   allow        0        5    300      2  acl
";
        assert_eq!(text(&lines), expected);
        assert!(lines[5].iter().any(|(look, title)| *look == Look::Bold && title.starts_with("port")));
        assert!(lines[7].iter().any(|(look, link)| *look == Look::Bad && link.starts_with("down")));
    }

    #[test]
    fn tables_are_sorted_as_chosen_and_scroll() {
        let choice = Choice { view: View::Drops, sort: Some(2), ..CHOICE };
        let order = |choice: &Choice| {
            let text = text(&lines(&shot(), choice, None, 20));
            text.lines().skip(6).map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(order(&choice), ["guard.martian", "acl.denied"]);
        assert_eq!(order(&Choice { reverse: true, ..choice }), ["acl.denied", "guard.martian"]);
        assert_eq!(order(&Choice { from: 1, ..choice }), ["acl.denied"]);
        assert_eq!(order(&Choice { sort: Some(99), ..choice }), ["acl.denied", "guard.martian"], "another view's");
        for view in VIEWS {
            for height in 0..12 {
                assert!(lines(&shot(), &Choice { view, ..CHOICE }, None, height).len() <= height);
            }
        }
    }

    #[test]
    fn numbers_and_bars() {
        let all = [0.0, 7.25, 999.4, 999.6, 1234.0, 45_600.0, 1e6, 123e9, 5e15].map(short);
        assert_eq!(all, ["0", "7.2", "999", "1.00k", "1.23k", "45.6k", "1.00M", "123G", "5000T"]);
        let rates = VecDeque::from([0.0, 5.0, 10.0, 10.0]);
        assert_eq!((bars(&rates, 3, true), bars(&rates, 9, false)), ("=##".into(), "▁▅██".into()));
    }
}
