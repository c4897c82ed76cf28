//! Buckets: how the flows of a group are shared out among its members, by weight, and stay where they are.
//!
//! Flows hash to buckets. A member that falls away leaves its buckets to the others, and finds them again when it is back;
//! no other bucket changes hands for it. Shares are a divisor method's (Webster's, with one bucket for each at least), which
//! has that property: what the rest gets never shrinks when one leaves.

/// Who has each bucket.
#[derive(Debug)]
pub struct Buckets<T> {
    /// Whom each belongs to while all members live.
    home: Vec<Option<T>>,
    /// Who has it.
    owners: Vec<Option<T>>,
}

/// One of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<T> {
    /// Who.
    pub who: T,
    /// Its share of the flows, as a part of all weights.
    pub weight: u64,
    /// Whether it takes any at present.
    pub alive: bool,
}

impl<T: Copy + Eq> Buckets<T> {
    /// So many, which nobody has.
    pub fn new(count: usize) -> Buckets<T> {
        Buckets { home: vec![None; count], owners: vec![None; count] }
    }

    /// Shares them out, with as few changes as possible.
    pub fn share(&mut self, members: &[Member<T>]) {
        let mut left = shares(members, self.home.len(), |_| true);
        assign(&mut self.home, members, &mut left);
        let mut left = shares(members, self.home.len(), |member| member.alive);
        let at = |who: T| members.iter().position(|member| member.who == who && member.alive);
        for (home, owner) in self.home.iter().zip(&mut self.owners) {
            if let Some(at) = home.and_then(at) {
                left[at] = left[at].saturating_sub(1);
                // Out of the way of those below that are free to go to any member.
                *owner = None;
            }
        }
        let mut others: Vec<Option<T>> = (self.home.iter().zip(&self.owners))
            .filter(|(home, _)| home.and_then(at).is_none())
            .map(|(_, owner)| *owner)
            .collect();
        assign(&mut others, members, &mut left);
        let mut others = others.into_iter();
        for (home, owner) in self.home.iter().zip(&mut self.owners) {
            *owner = if home.and_then(at).is_some() { *home } else { others.next().flatten() };
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Who has each.
    pub fn owners(&self) -> impl Iterator<Item = Option<T>> + '_ {
        self.owners.iter().copied()
    }
}

/// Leaves buckets with those that have them and are due some, and gives the rest to whom they are due.
fn assign<T: Copy + Eq>(owners: &mut [Option<T>], members: &[Member<T>], left: &mut [usize]) {
    for owner in owners.iter_mut() {
        let at = owner.and_then(|who| members.iter().position(|member| member.who == who)).filter(|at| left[*at] > 0);
        match at {
            Some(at) => left[at] -= 1,
            None => *owner = None,
        }
    }
    let mut next = 0;
    for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
        while next < left.len() && left[next] == 0 {
            next += 1;
        }
        let Some(member) = members.get(next) else { return };
        left[next] -= 1;
        *owner = Some(member.who);
    }
}

/// How many of `count` buckets each member is due; none for those that do not count.
fn shares<T>(members: &[Member<T>], count: usize, counts: impl Fn(&Member<T>) -> bool) -> Vec<usize> {
    let mut shares = vec![0; members.len()];
    // The divisor of the next one: 0, 3, 5, 7 and so on.
    let divisor = |share: usize| if share == 0 { 0 } else { 2 * share as u64 + 1 };
    for _ in 0..count {
        let due = (0..members.len()).filter(|at| counts(&members[*at])).reduce(|best, at| {
            let (a, b) = (members[at].weight * divisor(shares[best]), members[best].weight * divisor(shares[at]));
            let both_none = shares[at] == 0 && shares[best] == 0 && members[at].weight > members[best].weight;
            if a > b || both_none { at } else { best }
        });
        let Some(due) = due else { break };
        shares[due] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(weights: &[u64], alive: u32) -> Vec<Member<usize>> {
        let member = |(who, weight): (usize, &u64)| Member { who, weight: *weight, alive: alive >> who & 1 == 1 };
        weights.iter().enumerate().map(member).collect()
    }

    fn counts(buckets: &Buckets<usize>, members: usize) -> Vec<usize> {
        (0..members).map(|who| buckets.owners().filter(|owner| *owner == Some(who)).count()).collect()
    }

    #[test]
    fn shares_follow_weights() {
        for (weights, expected) in [
            (&[1, 1][..], &[32, 32][..]),
            (&[3, 1], &[48, 16]),
            (&[1, 1, 1], &[22, 21, 21]),
            (&[1000, 1], &[63, 1]),
            (&[2, 1, 1], &[32, 16, 16]),
        ] {
            let mut buckets = Buckets::new(64);
            buckets.share(&members(weights, !0));
            assert_eq!(counts(&buckets, weights.len()), expected);
        }
    }

    #[test]
    fn nobody_alive_is_nobody() {
        let mut buckets = Buckets::new(64);
        buckets.share(&members(&[1, 1], 0));
        assert!(buckets.owners().all(|owner| owner.is_none()));
    }

    proptest! {
        #[test]
        fn only_the_buckets_of_the_dead_change_hands(
            weights in prop::collection::vec(1_u64..20, 2..12),
            flaps in prop::collection::vec((0_usize..12, any::<bool>()), 1..30),
        ) {
            let mut buckets = Buckets::new(256);
            buckets.share(&members(&weights, !0));
            let whole: Vec<_> = buckets.owners().collect();
            let mut alive = u32::MAX;
            for (who, up) in flaps {
                let who = who % weights.len();
                let next = if up { alive | 1 << who } else { alive & !(1 << who) };
                if next & ((1 << weights.len()) - 1) == 0 {
                    continue;
                }
                let before: Vec<_> = buckets.owners().collect();
                buckets.share(&members(&weights, next));
                for ((old, new), home) in before.iter().zip(buckets.owners()).zip(&whole) {
                    let new = new.expect("somebody has it");
                    prop_assert!(next >> new & 1 == 1);
                    let was = old.expect("somebody had it");
                    // It moves because its owner died, because its home is back, or because another is and takes its share
                    // of the buckets whose own home is not.
                    let stays = next >> was & 1 == 1 && (next & !alive == 0 || Some(was) == *home);
                    prop_assert!(!stays || new == was);
                    let home = home.expect("somebody's");
                    prop_assert!(next >> home & 1 == 0 || new == home);
                }
                alive = next;
                let sum: u64 = members(&weights, alive).iter().filter(|m| m.alive).map(|m| m.weight).sum();
                for member in members(&weights, alive).iter().filter(|m| m.alive) {
                    let due = member.weight as f64 * 256.0 / sum as f64;
                    let has = counts(&buckets, weights.len())[member.who] as f64;
                    prop_assert!((has - due).abs() <= 2.0, "{has} of {due}");
                }
            }
            buckets.share(&members(&weights, !0));
            prop_assert_eq!(buckets.owners().collect::<Vec<_>>(), whole);
        }
    }
}
