//! Two answers of `/v1/overview`, one after the other, and what happened in between.

use serde_json::{Value, json};

use crate::cli::show::rows;

/// The later answer, and the earlier one where there is one.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The later.
    pub now: Value,
    then: Value,
}

impl Shot {
    /// Of two answers; `then` is null if there was none before.
    pub fn new(now: Value, then: Value) -> Shot {
        Shot { now, then }
    }

    /// Seconds from one to the other.
    fn seconds(&self) -> f64 {
        let at = |value: &Value| value["at"].as_f64().unwrap_or(0.0);
        if self.then.is_null() { 0.0 } else { at(&self.now) - at(&self.then) }
    }

    /// A second's share of what was counted in between; none if counting began anew, or nothing was known before.
    fn rate(&self, now: &Value, then: &Value) -> Option<f64> {
        let (now, then, seconds) = (now.as_u64()?, then.as_u64()?, self.seconds());
        (now >= then && seconds > 0.0).then(|| (now - then) as f64 / seconds)
    }

    /// A rate of what `pointer` leads to.
    pub fn rate_at(&self, pointer: &str) -> Option<f64> {
        self.rate(self.now.pointer(pointer)?, self.then.pointer(pointer)?)
    }

    /// A rate of `key` in a row of the list at `list`: the row before is the one that `same` says has the same name.
    pub fn rate_in(&self, list: &str, row: &Value, names: &[&str], key: &str) -> Option<f64> {
        let then = self.before(list, row, names)?;
        self.rate(row.pointer(key)?, then.pointer(key)?)
    }

    /// A row as it was before.
    fn before(&self, list: &str, row: &Value, names: &[&str]) -> Option<&Value> {
        rows(self.then.pointer(list)?).iter().find(|then| names.iter().all(|name| then[name] == row[name]))
    }

    /// Drops a second of a reason: one that was not told of had counted nothing.
    pub fn drop_rate(&self, row: &Value) -> Option<f64> {
        let none = json!(0);
        let then = self.before("/drops", row, &["reason"]).map_or(&none, |then| &then["packets"]);
        self.rate(&row["packets"], then)
    }

    /// Which share of its time a worker found something to do.
    pub fn load(&self, worker: &Value) -> Option<f64> {
        let before = self.before("/workers", worker, &["worker"])?;
        let passed = |key: &str| worker["account"][key].as_u64()?.checked_sub(before["account"][key].as_u64()?);
        passed("cycles")
            .filter(|cycles| *cycles > 0)
            .and_then(|cycles| Some(passed("busy-cycles")? as f64 / cycles as f64))
    }

    /// Bits a second that a talker's flows carried, from one look at them to the next.
    pub fn talker_bits(&self, row: &Value) -> Option<f64> {
        let before = self.before("/talkers/rows", row, &["address"])?;
        let passed = self.now["talkers"]["at"].as_f64()? - self.then["talkers"]["at"].as_f64()?;
        let more = row["bytes"].as_u64()?.checked_sub(before["bytes"].as_u64()?)?;
        (passed > 0.0).then(|| more as f64 * 8.0 / passed)
    }

    /// The end of the class that holds a share of the sampled times, in seconds; infinite above all classes.
    pub fn latency(&self, share: f64) -> Option<f64> {
        let (now, then) = (&self.now["latency"], &self.then["latency"]);
        let more = |now: &Value, then: &Value| now.as_u64().unwrap_or(0).saturating_sub(then.as_u64().unwrap_or(0));
        let classes: Vec<(f64, u64)> = rows(&now["classes"])
            .iter()
            .enumerate()
            .map(|(at, class)| (class[0].as_f64().unwrap_or(0.0), more(&class[1], &then["classes"][at][1])))
            .collect();
        let all = classes.iter().map(|(_, n)| n).sum::<u64>() + more(&now["longer"], &then["longer"]);
        let mut seen = 0;
        let holds = |(_, n): &&(f64, u64)| {
            seen += n;
            seen as f64 >= all as f64 * share
        };
        (all > 0).then(|| classes.iter().find(holds).map_or(f64::INFINITY, |(most, _)| *most))
    }

    /// What a script would want: the rates, beside the counts.
    pub fn json(&self) -> Value {
        let ports = rows(&self.now["ports"]).iter().map(|row| {
            let rate = |key: &str| self.rate_in("/ports", row, &["port"], key);
            let bits = |key: &str| rate(key).map(|bytes| bytes * 8.0);
            json!({
                "port": row["port"],
                "rx_packets": rate("/rx_packets"),
                "tx_packets": rate("/tx_packets"),
                "tx_dropped": rate("/tx_dropped"),
                "rx_bits": bits("/device/rx_bytes"),
                "tx_bits": bits("/device/tx_bytes"),
            })
        });
        let drops = rows(&self.now["drops"]).iter();
        let drops = drops.map(|row| json!({ "reason": row["reason"], "packets": self.drop_rate(row) }));
        let rules = rows(&self.now["rules"]["most_hit"]).iter().map(|row| {
            let rate = |key: &str| self.rate_in("/rules/most_hit", row, &["stage", "rule"], key);
            json!({ "stage": row["stage"], "rule": row["rule"], "packets": rate("/packets"), "flows": rate("/flows") })
        });
        json!({
            "seconds": self.seconds(),
            "ports": ports.collect::<Vec<_>>(),
            "received": self.rate_at("/account/received"),
            "sent": self.rate_at("/account/sent"),
            "dropped": self.rate_at("/account/dropped"),
            "drops": drops.collect::<Vec<_>>(),
            "rules": rules.collect::<Vec<_>>(),
            "new_flows": self.rate_at("/flows/new"),
            "load": rows(&self.now["workers"]).iter().map(|row| self.load(row)).collect::<Vec<_>>(),
            "latency": { "p50": self.latency(0.5), "p99": self.latency(0.99) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_was_counted_in_between() {
        let answer = |at: f64, rx: u64, busy: u64, drops: Value| {
            json!({
                "at": at,
                "ports": [{ "port": "lan", "rx_packets": rx, "device": { "rx_bytes": rx * 100 } }],
                "workers": [{ "worker": 0, "account": { "cycles": at as u64 * 1000, "busy-cycles": busy } }],
                "drops": drops,
                "latency": { "classes": [[0.1, 0], [0.2, rx], [0.3, 5]], "longer": 0 },
            })
        };
        let then = answer(10.0, 1000, 4000, json!([]));
        let now = answer(12.0, 1500, 4500, json!([{ "reason": "acl.denied", "packets": 6 }]));
        let shot = Shot::new(now.clone(), then.clone());
        let lan = &now["ports"][0];
        assert_eq!(shot.rate_in("/ports", lan, &["port"], "/rx_packets"), Some(250.0));
        assert_eq!((shot.drop_rate(&now["drops"][0]), shot.load(&now["workers"][0])), (Some(3.0), Some(0.25)));
        assert_eq!((shot.latency(0.5), shot.latency(1.0)), (Some(0.2), Some(0.2)), "of what came since");
        assert_eq!(shot.json()["ports"][0]["rx_bits"], 200_000.0);
        // It began anew, or nothing is known of before.
        assert_eq!(Shot::new(then, now.clone()).rate_at("/ports/0/rx_packets"), None);
        assert_eq!(Shot::new(now, Value::Null).rate_at("/ports/0/rx_packets"), None);
    }
}
