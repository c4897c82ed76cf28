use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::source::Source;
use crate::stage::pipeline::compile;
use crate::stage::{FlowCommit, FlowPlan, Plan};
use crate::testkit::bench::{self, Bench, TWO_PORTS};
use crate::testkit::packets::samples;

const STAGES: &str = "[pipeline]\nstages = ['guard', 'cross', 'acl']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";
const RULES: &str = "[acl]\n\
    [[acl.rule]]\nname = 'no telnet'\nservice = 'tcp/23'\naction = 'deny'\n\
    [[acl.rule]]\nname = 'out'\nfrom = 'inside'\nto = 'outside'\naction = 'allow'\n";

fn compiled(toml: &str) -> (Config, Blueprint) {
    let text = if toml.contains("[[port]]") { toml.to_owned() } else { format!("{TWO_PORTS}{toml}") };
    let config = Config::parse(&Source::new("bench.toml", &text)).unwrap_or_else(|list| panic!("{list:#?}"));
    let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
    (config, blueprint)
}

fn explainer(toml: &str) -> Explainer {
    let (config, blueprint) = compiled(toml);
    Explainer::new(&config, &blueprint)
}

fn ask(explainer: &Explainer, text: &str) -> Value {
    let (port, frame) = explainer.read(text).unwrap_or_else(|error| panic!("{}", error.shown(text)));
    explainer.json(&explainer.explain(port, &frame, 1, &[]))
}

/// What the bench would say of an explained packet.
fn end(explainer: &Explainer, explanation: &Explanation) -> (String, String) {
    let reason = match explanation.end {
        End::Known(Outcome::Sent) => "sent".to_owned(),
        End::Known(Outcome::Dropped(reason)) => explainer.blueprint.layout.reason_name(reason),
        End::Kept => "kept".to_owned(),
        End::Held => "held".to_owned(),
    };
    let rule = explainer.blueprint.rules.slot(explanation.facts.rule).map(|rule| rule.name.clone());
    (reason, rule.unwrap_or_default())
}

#[test]
fn every_stage_says_its_part() {
    let explainer = explainer(&format!("{STAGES}{RULES}"));
    let told = ask(&explainer, "tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan");
    let decisions: Vec<_> = told["stages"].as_array().expect("a list").iter().map(|s| s["decision"].clone()).collect();
    assert_eq!(decisions, ["passes", "leads", "allows"]);
    assert_eq!((&told["stages"][1]["out"], &told["stages"][2]["rule"]), (&json!("wan"), &json!("out")));
    assert_eq!((&told["verdict"]["verdict"], &told["verdict"]["out"]), (&json!("sent"), &json!("wan")));
    assert_eq!(told["headers"][2]["fields"]["flags"], "syn");
    let shown = text(&told);
    for line in [
        "in        lan, zone inside\n",
        "ipv4      source 10.0.0.5, destination 192.0.2.7, protocol tcp, ttl 64, length 40\n",
        "\nguard     lets it pass\n",
        "cross     it leaves by wan\n",
        "acl       allows it by rule \"out\" (bench.toml:18)\n",
        "\nverdict   sent, leaves by wan by rule \"out\" (bench.toml:18)\n",
    ] {
        assert!(shown.contains(line), "{line:?} in {shown}");
    }

    let told = ask(&explainer, "tcp 10.0.0.5:40000 > 192.0.2.7:23 in lan");
    let acl = &told["stages"][2];
    assert_eq!(
        (&acl["decision"], &acl["rule"], &acl["reason"]),
        (&json!("denies"), &json!("no telnet"), &json!("denied"))
    );
    assert_eq!(told["verdict"]["line"], 14);
    let shown = text(&told);
    assert!(
        shown.contains("acl       denies it by rule \"no telnet\" (bench.toml:14), denied: A rule denies the packet."),
        "{shown}"
    );
    assert!(shown.ends_with("verdict   dropped, acl.denied by rule \"no telnet\" (bench.toml:14)\n"), "{shown}");

    let told = ask(&explainer, "udp 127.0.0.1:5 > 192.0.2.7:23 in lan");
    assert_eq!(told["not_asked"], json!(["cross", "acl"]));
    assert_eq!(told["verdict"]["reason"], "source-loopback");
    assert!(text(&told).contains("acl       is not asked\n"));

    let malformed = explainer.explain(0, &[0; 9], 1, &[]);
    assert!(malformed.steps.is_empty());
    assert_eq!(end(&explainer, &malformed).0, "decode.short-frame");
    assert!(text(&explainer.json(&malformed)).contains("malformed  reason decode.short-frame\n"));
}

#[test]
fn a_stage_behind_the_flow_stages_is_told_in_the_order_of_work() {
    let toml = "[pipeline]\nstages = ['cross', 'police', 'acl']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
                [police]\n[[police.limit]]\nname = 'all'\nby = 'port'\nrate = '1 Mpps'\n[acl]\ndefault = 'allow'\n";
    let told = ask(&explainer(toml), "udp 10.0.0.5 > 192.0.2.7:53 in lan");
    let stages: Vec<_> = told["stages"].as_array().expect("a list").iter().map(|s| s["stage"].clone()).collect();
    assert_eq!(stages, ["cross", "acl", "police"]);
    assert!(text(&told).contains("acl       allows it by default\n"));
}

#[test]
fn a_packet_no_stage_can_send_is_dropped_as_the_worker_does() {
    let toml = format!(
        "{}{STAGES}[acl]\ndefault = 'allow'\n",
        TWO_PORTS.replace("zone = 'outside'", "zone = 'outside'\nmtu = 600")
    );
    let told = ask(&explainer(&toml), "udp 10.0.0.5 > 192.0.2.7:53 len 1000 in lan");
    assert_eq!(told["verdict"]["reason"], "too-big");
}

#[test]
fn ports_that_do_not_exist_are_placed() {
    let explainer = explainer(&format!("{STAGES}{RULES}"));
    let error = explainer.read("udp 10.0.0.5 > 192.0.2.7:53 in wam").expect_err("no such port");
    assert_eq!((error.at, error.message.as_str()), (31, "there is no port \"wam\"; did you mean \"wan\"?"));
    let error = explainer.read("udp 10.0.0.0/8 > 192.0.2.7:53 in wan").expect_err("a range");
    assert!(error.message.contains("one source address"), "{error:?}");
}

/// Does the opposite of what a plan says.
struct Opposite(Arc<dyn FlowPlan>, Reason);

impl FlowPlan for Opposite {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        let denied = self.0.judge(todo, facts, actions);
        for i in crate::packet::bits(todo) {
            match denied >> i & 1 {
                0 => actions[i].deny(self.1, actions[i].rule),
                _ => (actions[i].verdict, actions[i].reason) = (Verdict::Allow, Reason::NONE),
            }
        }
        todo & !denied
    }

    fn start(&self, worker: usize) -> Box<dyn FlowCommit> {
        self.0.start(worker)
    }
}

#[test]
fn a_stage_that_breaks_breaks_what_is_explained() {
    let (config, blueprint) = compiled(&format!("{STAGES}{RULES}"));
    let mut broken = blueprint.clone();
    let Plan::Flow(acl) = blueprint.stages[2].plan.clone() else { panic!("the acl judges flows") };
    broken.stages[2].plan = Plan::Flow(Arc::new(Opposite(acl, blueprint.layout.reason("acl.denied").expect("known"))));
    let [good, broken] = [&blueprint, &broken].map(|blueprint| Explainer::new(&config, blueprint));
    for (packet, verdict, opposite) in [
        ("tcp 10.0.0.5:40000 > 192.0.2.7:443 in lan", "sent", "dropped"),
        ("tcp 10.0.0.5:40000 > 192.0.2.7:23 in lan", "dropped", "sent"),
        ("udp 10.0.0.5:40000 > 192.0.2.7:53 in wan", "dropped", "sent"),
    ] {
        assert_eq!(ask(&good, packet)["verdict"]["verdict"], verdict, "{packet}");
        assert_eq!(ask(&broken, packet)["verdict"]["verdict"], opposite, "{packet}");
    }
}

fn rule() -> impl Strategy<Value = String> {
    let key = |name: &'static str, values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values))
            .prop_map(move |value| value.map_or(String::new(), |value| format!("{name} = {value}\n")))
    };
    (
        key("from", &["'lan'", "'outside'", "'any'"]),
        key("to", &["'wan'", "'inside'"]),
        key("source", &["'10.0.0.0/8'", "'192.0.2.0/24'", "'2001:db8::/32'", "['10.0.0.1', '2001:db8::1']"]),
        key("destination", &["'192.0.2.1'", "'10.0.0.0/24'", "'2001:db8::2'"]),
        key("service", &["'udp/53'", "'tcp'", "['icmp/echo', 'icmpv6']", "'sctp'", "'gre'"]),
        key("vlan", &["5", "'untagged'"]),
        prop::sample::select(vec!["allow", "deny", "count"]),
    )
        .prop_map(|(from, to, source, destination, service, vlan, action)| {
            format!("[[acl.rule]]\n{from}{to}{source}{destination}{service}{vlan}action = '{action}'\n")
        })
        .prop_filter("families meet", |rule| {
            let one = |key: &str| rule.lines().find(|line| line.starts_with(key)).map(|line| line.contains(':'));
            let both = rule.contains("['10.0.0.1'");
            both || one("source").zip(one("destination")).is_none_or(|(source, destination)| source == destination)
        })
}

fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let one =
        (prop::sample::select(samples()), any::<bool>(), prop::option::of((any::<prop::sample::Index>(), any::<u8>())))
            .prop_map(|(packet, tagged, damage)| {
                let mut bytes = if tagged { packet.vlan(5).bytes() } else { packet.bytes() };
                if let Some((at, byte)) = damage {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            });
    prop::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The datapath takes them in a batch, explain one by one; each ends alike, by the same rule, for the same reason.
    #[test]
    fn explain_and_the_datapath_never_differ(
        rules in prop::collection::vec(rule(), 0..5),
        default in prop::sample::select(vec!["allow", "deny"]),
        packets in packets(),
        port in 0u8..2,
    ) {
        let toml = format!("{STAGES}[guard]\ndrop = ['10.0.0.9']\n[acl]\ndefault = '{default}'\n{}", rules.concat());
        let mut datapath = Bench::new(&toml);
        let explainer = explainer(&toml);
        let name = ["lan", "wan"][usize::from(port)];
        let told: Vec<Explanation> = packets.iter().map(|packet| explainer.explain(port, packet, 1, &[])).collect();
        // The bench tells first what was dropped in the pipeline or sent, so that each packet is asked by itself as well.
        let mut together: Vec<(String, String)> = datapath
            .push_all(name, &packets)
            .iter()
            .map(|end| (end.reason().to_owned(), end.rule().to_owned()))
            .collect();
        let mut apart: Vec<(String, String)> = told.iter().map(|explanation| end(&explainer, explanation)).collect();
        for (packet, explanation) in packets.iter().zip(&told) {
            let pushed: bench::End = datapath.push(name, packet);
            prop_assert_eq!(end(&explainer, explanation), (pushed.reason().to_owned(), pushed.rule().to_owned()));
            if let bench::End::Sent { port, .. } = &pushed {
                let out = &explainer.names.ports[usize::from(explanation.facts.out)].name;
                prop_assert_eq!(out, port);
            }
            // The last stage that was reached decided.
            let last = explanation.steps.last().map(|step| step.decision.clone());
            match explanation.end {
                End::Known(Outcome::Sent) => prop_assert_eq!(last, Some(Decision::Allowed)),
                End::Known(Outcome::Dropped(reason)) => {
                    prop_assert!(matches!(last, None | Some(Decision::Dropped(_) | Decision::Denied(_))));
                    if let Some(Decision::Dropped(said) | Decision::Denied(said)) = last {
                        prop_assert_eq!(said, reason);
                    }
                }
                End::Kept | End::Held => prop_assert!(false, "nothing keeps packets here"),
            }
        }
        together.sort();
        apart.sort();
        prop_assert_eq!(together, apart);
    }
}

const TRACKED: &str =
    "[pipeline]\nstages = ['guard', 'conntrack', 'cross', 'acl']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";

#[test]
fn connection_tracking_says_what_it_knows() {
    let toml = format!("{TRACKED}{RULES}");
    let (explainer, mut datapath) = (explainer(&toml), Bench::new(&toml));
    let decisions = |told: &Value| {
        let steps = told["stages"].as_array().expect("a list").iter();
        steps
            .map(|step| format!("{} {}", step["stage"].as_str().unwrap_or(""), step["decision"].as_str().unwrap_or("")))
            .collect::<Vec<_>>()
    };
    let told = ask(&explainer, "udp 10.0.0.5:40000 > 192.0.2.7:443 in lan");
    assert_eq!(
        decisions(&told),
        ["guard passes", "conntrack fresh", "cross leads", "acl allows", "conntrack begins"],
        "{}",
        text(&told)
    );
    let told = ask(&explainer, "udp 192.0.2.7:443 > 10.0.0.5:40000 in wan");
    assert_eq!(decisions(&told), ["guard passes", "conntrack fresh", "cross leads", "acl denies"]);

    // The same answer, once the running process knows the flow.
    let (port, first) = explainer.read("udp 10.0.0.5:40000 > 192.0.2.7:443 in lan").expect("good");
    assert_eq!((port, datapath.push("lan", &first).reason()), (0, "sent"));
    let (port, answer) = explainer.read("udp 192.0.2.7:443 > 10.0.0.5:40000 in wan").expect("good");
    let flow = copied(&datapath, &explainer, port, &answer);
    let told = explainer.json(&explainer.explain(port, &answer, datapath.now, &flow));
    assert_eq!(decisions(&told), ["guard passes", "conntrack replays"]);
    assert_eq!((&told["verdict"]["out"], &told["not_asked"]), (&json!("lan"), &json!(["cross", "acl"])));
    assert!(
        text(&told).contains("conntrack  knows its flow, admitted by rule \"out\" (bench.toml:18)\n"),
        "{}",
        text(&told)
    );
}

#[test]
fn asking_uses_up_no_limit() {
    let toml = format!("{TRACKED}[conntrack.limit]\nflows_per_source = 1\n{RULES}");
    let (explainer, mut datapath) = (explainer(&toml), Bench::new(&toml));
    let mut limited = 0;
    for port in 1..4 {
        let (_, frame) = explainer.read(&format!("udp 10.0.0.5:{port} > 192.0.2.7:53 in lan")).expect("good");
        assert_eq!(end(&explainer, &explainer.explain(0, &frame, datapath.now, &[])).0, "sent");
        limited += u32::from(datapath.push("lan", &frame).reason() != "sent");
    }
    assert_eq!(limited, 2, "the datapath has its limit");
    // The other way round: questions take nothing from a datapath of the same blueprint.
    let asked = Explainer::new(&compiled(&toml).0, datapath.blueprint());
    let (_, frame) = asked.read("udp 10.0.0.6:1 > 192.0.2.7:53 in lan").expect("good");
    (0..3).for_each(|_| drop(asked.explain(0, &frame, datapath.now, &[])));
    assert_eq!(datapath.push("lan", &frame).reason(), "sent");
}

/// The entry that the datapath has for a frame's flow.
fn copied(datapath: &Bench, explainer: &Explainer, port: u8, frame: &[u8]) -> Vec<Row> {
    let mut rows = Vec::with_capacity(4);
    if let (Some(facts), Some(tracker)) = (explainer.flow_of(port, frame), datapath.tracker()) {
        tracker.copy(&facts, &mut rows);
    }
    rows
}

/// A packet of one of a few conversations, most of them plausible.
fn conversing() -> impl Strategy<Value = (bool, String)> {
    let tcp = (
        prop::sample::select(vec![
            "syn",
            "syn ack 1",
            "ack 1",
            "psh ack 1",
            "fin ack 1",
            "rst",
            "rst ack 1",
            "ack 2",
            "none",
        ]),
        0u32..3,
        0u16..2,
        0u8..3,
    )
        .prop_map(|(flags, sequence, len, host)| (host, format!("tcp|:40000|:443|{flags} seq {sequence} len {len}")));
    let others = prop::sample::select(vec![
        "udp|:5000|:53|",
        "udp|:5000|:23|",
        "icmp|||echo id 7",
        "icmp|||echo-reply id 7",
        "icmp|||destination-unreachable/1",
        "gre|||",
        "sctp|:5|:6|",
    ]);
    (any::<bool>(), prop_oneof![3 => tcp, 2 => (0u8..3, others.prop_map(str::to_owned))]).prop_map(
        |(back, (host, words))| {
            let parts: Vec<&str> = words.split('|').collect();
            let (here, there) = (format!("10.0.0.{host}{}", parts[1]), format!("192.0.2.7{}", parts[2]));
            let (from, to, port) = if back { (there, here, "wan") } else { (here, there, "lan") };
            (back, format!("{} {from} > {to} {} in {port}", parts[0], parts[3]))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With the flow that the datapath knows, explain says of every packet of a conversation what the datapath then does.
    #[test]
    fn explain_with_flows_and_the_datapath_never_differ(packets in prop::collection::vec(conversing(), 1..40)) {
        let toml = format!("{TRACKED}{RULES}");
        let (explainer, mut datapath) = (explainer(&toml), Bench::new(&toml));
        for (back, text) in packets {
            let (port, bytes) = explainer.read(&text).unwrap_or_else(|error| panic!("{}", error.shown(&text)));
            let flow = copied(&datapath, &explainer, port, &bytes);
            let told = explainer.explain(port, &bytes, datapath.now, &flow);
            let pushed = datapath.push(if back { "wan" } else { "lan" }, &bytes);
            prop_assert_eq!(end(&explainer, &told), (pushed.reason().to_owned(), pushed.rule().to_owned()), "{}", text);
            prop_assert_eq!(told.steps.iter().any(|step| step.decision == Decision::Replayed) && flow.is_empty(), false);
        }
    }
}

mod routed;

#[test]
fn translation_is_told() {
    let explainer = explainer(include_str!("../../config/router.toml"));
    // What comes, what the stages that translate say and by which rule, and what leaves.
    for (packet, stages, leaves) in [
        (
            "tcp 203.0.113.9:40000 > 192.0.2.2:443 syn in wan",
            [("dnat", "translates", json!("web server")), ("snat", "nothing", Value::Null)],
            "203.0.113.9:40000 > 10.0.0.80:443",
        ),
        (
            "tcp 10.0.0.5:40000 > 198.51.100.9:443 syn in lan",
            [("dnat", "nothing", Value::Null), ("snat", "translates", json!("masquerade"))],
            "192.0.2.2:40000 > 198.51.100.9:443",
        ),
        (
            "tcp 10.0.0.5:40000 > 192.0.2.2:443 syn in lan",
            [("dnat", "translates", json!("web server")), ("snat", "translates", Value::Null)],
            "10.0.0.1:40000 > 10.0.0.80:443",
        ),
    ] {
        let told = ask(&explainer, packet);
        assert_eq!(told["verdict"]["verdict"], "sent", "{packet}: {told:#}");
        for (stage, decision, rule) in stages {
            let step = told["stages"].as_array().expect("a list").iter().find(|step| step["stage"] == stage);
            let step = step.expect("it is asked");
            assert_eq!((&step["decision"], &step["rule"]), (&json!(decision), &rule), "{packet}: {stage}");
        }
        let shown = text(&told);
        assert!(shown.contains(&format!("\nleaves as  {leaves}\n")), "{shown}");
        assert!(!told["translated"].is_null());
    }
    let told = ask(&explainer, "udp [2001:db8:1::5]:40000 > [2001:db8:9::9]:53 in lan");
    assert_eq!((&told["verdict"]["verdict"], &told["translated"]), (&json!("sent"), &Value::Null));
}
