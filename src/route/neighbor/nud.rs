//! One neighbor: the states of neighbor unreachability detection (RFC 4861 sections 7.2, 7.3 and appendix C), for IPv6 and,
//! as Linux does, for ARP too. Pure: says what is to be sent, sends nothing.

use super::{Chance, Mac, Times};

/// What is known of a neighbor (RFC 4861 section 7.3.2, and three of our own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being asked for; its MAC is not known.
    Incomplete,
    /// It has answered of late.
    Reachable,
    /// It has answered once; nothing was sent to it since.
    Stale,
    /// Something was sent to it, and may yet show that it is there.
    Delay,
    /// It is asked whether it is still there.
    Probe,
    /// It did not answer: nobody asks again for a while.
    Silent,
    /// Given by the operator: never asked, never changed.
    Static,
}

impl State {
    /// The word for it in `show neighbors`.
    pub fn word(self) -> &'static str {
        match self {
            State::Incomplete => "incomplete",
            State::Reachable => "reachable",
            State::Stale => "stale",
            State::Delay => "delay",
            State::Probe => "probe",
            State::Silent => "silent",
            State::Static => "static",
        }
    }
}

/// A neighbor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is known of it.
    pub state: State,
    /// Its MAC; none while incomplete or silent.
    pub mac: Option<Mac>,
    /// It says that it is a router.
    pub router: bool,
    /// Questions asked in this state.
    pub probes: u8,
    /// Since when it is in this state.
    pub since: u64,
    /// Packets of ours go to it, so that it is told of.
    pub wanted: bool,
    /// When its MAC was learned.
    pub learned: u64,
    /// When something is to be done about it.
    pub due: Option<u64>,
}

/// An answer: a neighbor advertisement, or its like in ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The MAC it tells.
    pub mac: Option<Mac>,
    /// It answers a question of ours.
    pub solicited: bool,
    /// It counts more than what is known.
    pub overrides: bool,
    /// Whether the sender is a router; none if it does not say.
    pub router: Option<bool>,
}

/// What a timer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Rest,
    /// Ask everybody.
    AskAll,
    /// Ask the neighbor itself.
    Ask(Mac),
    /// Forget it.
    Forget,
}

impl Entry {
    /// One that is to be asked for at once.
    pub fn incomplete(now: u64) -> Entry {
        let state = State::Incomplete;
        Entry { state, mac: None, router: false, wanted: true, probes: 0, since: now, learned: now, due: Some(now) }
    }

    /// One that the operator gives.
    pub fn given(mac: Mac, now: u64) -> Entry {
        let state = State::Static;
        Entry { state, mac: Some(mac), router: false, wanted: true, probes: 0, since: now, learned: now, due: None }
    }

    fn enter(&mut self, state: State, now: u64, due: u64) {
        (self.state, self.probes, self.since, self.due) = (state, 0, now, Some(due));
    }

    /// RFC 4861 section 6.3.2: reachable for a random time around the base, so that neighbors are not all asked at once.
    fn reach(&mut self, now: u64, times: &Times, chance: &mut Chance) {
        self.enter(State::Reachable, now, now + times.reachable / 2 + chance.below(times.reachable));
    }

    fn stale(&mut self, now: u64, times: &Times) {
        self.enter(State::Stale, now, now + times.delay);
    }

    fn learn(&mut self, mac: Mac, now: u64) {
        (self.mac, self.learned) = (Some(mac), now);
    }

    /// A timer has run out; `used` says whether something was sent to it since it was last asked.
    pub fn fire(&mut self, now: u64, times: &Times, used: impl FnOnce() -> bool) -> Act {
        match (self.state, self.mac) {
            (State::Incomplete, _) if self.probes < times.multicast_probes => {
                self.probes += 1;
                self.due = Some(now + times.retransmit);
                Act::AskAll
            }
            (State::Incomplete, _) => {
                self.enter(State::Silent, now, now + times.silent);
                Act::Rest
            }
            (State::Reachable, _) => {
                // Sent before it was stale: that counts no more.
                let _ = used();
                self.stale(now, times);
                Act::Rest
            }
            (State::Stale, _) if used() => {
                self.used(now, times);
                Act::Rest
            }
            (State::Stale, _) if now.saturating_sub(self.since) < times.idle => {
                self.due = Some(now + times.delay);
                Act::Rest
            }
            (State::Delay, Some(mac)) => {
                self.enter(State::Probe, now, now + times.retransmit);
                self.probes = 1;
                Act::Ask(mac)
            }
            (State::Probe, Some(mac)) if self.probes < times.unicast_probes => {
                self.probes += 1;
                self.due = Some(now + times.retransmit);
                Act::Ask(mac)
            }
            (State::Static, _) => {
                self.due = None;
                Act::Rest
            }
            // RFC 4861 section 7.3.3: what does not answer is deleted, and what is sent next asks everybody.
            (State::Stale | State::Delay | State::Probe | State::Silent, _) => Act::Forget,
        }
    }

    /// Something is sent to it (RFC 4861 section 7.3.3: the first packet after it became stale).
    pub fn used(&mut self, now: u64, times: &Times) {
        if self.state == State::Stale {
            self.enter(State::Delay, now, now + times.delay);
        }
    }

    /// It has told its MAC in passing, with a question (RFC 4861 section 7.2.3, appendix C "NS, RS, RA, Redirect").
    pub fn told(&mut self, mac: Mac, now: u64, times: &Times) {
        if self.state != State::Static && self.mac != Some(mac) {
            self.learn(mac, now);
            self.stale(now, times);
        }
    }

    /// It answers (RFC 4861 section 7.2.5).
    pub fn answered(&mut self, answer: Answer, now: u64, times: &Times, chance: &mut Chance) {
        let mac = match (self.state, answer.mac) {
            (State::Static | State::Silent, _) | (State::Incomplete, None) => return,
            (State::Incomplete, Some(mac)) => {
                self.learn(mac, now);
                match answer.solicited {
                    true => self.reach(now, times, chance),
                    false => self.stale(now, times),
                }
                self.router = answer.router.unwrap_or(false);
                return;
            }
            (_, mac) => mac,
        };
        let other = mac.filter(|mac| self.mac != Some(*mac));
        if let Some(mac) = other {
            if !answer.overrides {
                if self.state == State::Reachable {
                    self.stale(now, times);
                }
                return;
            }
            self.learn(mac, now);
        }
        if answer.solicited {
            self.reach(now, times, chance);
        } else if other.is_some() {
            self.stale(now, times);
        }
        self.router = answer.router.unwrap_or(self.router);
    }
}

#[cfg(test)]
mod tests {
    use super::State::*;
    use super::*;
    use crate::config::neighbor::Neighbor;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn entry(state: State) -> Entry {
        let mac = (!matches!(state, Incomplete | Silent)).then_some(A);
        Entry { state, mac, router: true, wanted: true, probes: 0, since: 0, learned: 0, due: Some(0) }
    }

    /// RFC 4861 appendix C, as printed: state, answer's MAC (none, same, other), solicited, override; then state and MAC.
    #[test]
    fn answers_by_appendix_c() {
        let times = Times::of(&Neighbor::default());
        let all = [Reachable, Stale, Delay, Probe];
        let mut table = vec![
            (Incomplete, None, true, true, Incomplete, None),
            (Incomplete, None, false, false, Incomplete, None),
            (Incomplete, Some(A), false, false, Stale, Some(A)),
            (Incomplete, Some(A), false, true, Stale, Some(A)),
            (Incomplete, Some(A), true, false, Reachable, Some(A)),
            (Incomplete, Some(A), true, true, Reachable, Some(A)),
            (Reachable, Some(B), true, false, Stale, Some(A)),
            (Reachable, Some(B), false, false, Stale, Some(A)),
            (Silent, Some(A), true, true, Silent, None),
        ];
        for from in all {
            for overrides in [false, true] {
                // "solicited, same or no address: REACHABLE"; "unsolicited, same or no address: unchanged".
                table.push((from, Some(A), true, overrides, Reachable, Some(A)));
                table.push((from, None, true, overrides, Reachable, Some(A)));
                table.push((from, Some(A), false, overrides, from, Some(A)));
                table.push((from, None, false, overrides, from, Some(A)));
            }
            table.push((from, Some(B), true, true, Reachable, Some(B)));
            table.push((from, Some(B), false, true, Stale, Some(B)));
            if from != Reachable {
                table.push((from, Some(B), true, false, from, Some(A)));
                table.push((from, Some(B), false, false, from, Some(A)));
            }
            table.push((Static, Some(B), true, overridden(from), Static, Some(A)));
        }
        for (from, mac, solicited, overrides, to, known) in table {
            let mut entry = entry(from);
            let answer = Answer { mac, solicited, overrides, router: Some(false) };
            entry.answered(answer, 5, &times, &mut Chance::new(1));
            assert_eq!((entry.state, entry.mac), (to, known), "{from:?} {answer:?}");
            // What is ignored changes no flag either.
            let ignored = from == to && mac.is_some() && mac != known || matches!(to, Incomplete | Silent | Static);
            if !(ignored || from == Reachable && mac == Some(B) && !overrides) {
                assert!(!entry.router, "{from:?} {answer:?}");
            } else {
                assert!(entry.router, "{from:?} {answer:?}");
            }
        }
    }

    fn overridden(state: State) -> bool {
        state == Probe
    }

    #[test]
    fn questions_tell_in_passing() {
        let times = Times::of(&Neighbor::default());
        for (from, mac, to, known) in [
            (Incomplete, A, Stale, A),
            (Silent, A, Stale, A),
            (Reachable, A, Reachable, A),
            (Reachable, B, Stale, B),
            (Probe, A, Probe, A),
            (Probe, B, Stale, B),
            (Static, B, Static, A),
        ] {
            let mut entry = entry(from);
            entry.told(mac, 5, &times);
            assert_eq!((entry.state, entry.mac), (to, Some(known)), "{from:?}");
        }
    }

    #[test]
    fn silence_ends_in_oblivion() {
        let times = Times::of(&Neighbor::default());
        let second = 1_000_000_000;
        let mut entry = Entry::incomplete(0);
        for probe in 0..3 {
            assert_eq!(entry.fire(probe * second, &times, || false), Act::AskAll);
            assert_eq!(entry.due, Some((probe + 1) * second));
        }
        assert_eq!((entry.fire(3 * second, &times, || false), entry.state), (Act::Rest, Silent));
        assert_eq!(entry.fire(4 * second, &times, || false), Act::Forget);

        let mut entry = Entry::incomplete(0);
        let answer = Answer { mac: Some(A), solicited: true, overrides: true, router: None };
        entry.answered(answer, 0, &times, &mut Chance::new(7));
        let until = entry.due.expect("reachable for a while");
        assert!((15 * second..=45 * second).contains(&until), "{until}");
        assert_eq!((entry.fire(until, &times, || true), entry.state), (Act::Rest, Stale));
        assert_eq!((entry.fire(until + 5 * second, &times, || true), entry.state), (Act::Rest, Delay));
        for probe in 0..3 {
            assert_eq!((entry.fire(until + (10 + probe) * second, &times, || true), entry.state), (Act::Ask(A), Probe));
        }
        assert_eq!(entry.fire(until + 13 * second, &times, || true), Act::Forget);

        let mut entry = self::entry(Stale);
        assert_eq!(entry.fire(599 * second, &times, || false), Act::Rest);
        assert_eq!(entry.fire(600 * second, &times, || false), Act::Forget);
    }
}
