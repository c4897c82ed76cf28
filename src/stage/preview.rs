//! What a pipeline that does not run yet would say of flows there are: the same judging as when it takes over, on copies of
//! their entries.

use crate::flow::entry::{self, Entry};
use crate::packet::{BATCH, Meta, bits};

use super::pipeline::Blueprint;
use super::track::{judge_again, permits};
use super::{Action, FlowPlan, Plan};

/// Which of these flows would end, by position, and what is decided about them: denied, with rule and reason; or allowed, but
/// translated otherwise, so that their packets would be another flow's.
pub fn ending<E: Entry>(blueprint: &Blueprint, entries: &[E]) -> Vec<(usize, Action)> {
    let mut facts = [const { Meta::UNKNOWN }; BATCH];
    let mut actions = [[Action::OPEN; BATCH]; 2];
    let mut ends = Vec::new();
    for (first, batch) in (0..).step_by(BATCH).zip(entries.chunks(BATCH)) {
        for (entry, facts) in batch.iter().zip(&mut facts) {
            *facts = entry::facts(entry);
        }
        let todo = u64::MAX >> (BATCH - batch.len());
        let plans = blueprint.stages.iter().filter_map(|stage| match &stage.plan {
            Plan::Flow(plan) => Some((&**plan as &dyn FlowPlan, stage.kind.egress)),
            _ => None,
        });
        actions[0] = [Action::OPEN; BATCH];
        let denied = judge_again(plans, todo, &mut facts, &mut actions);
        for i in bits(todo) {
            let action = actions[0][i];
            let kept = denied & (1 << i) == 0 && {
                let subject = entry::reversed(&facts[i], action.out);
                permits(blueprint.nat.as_ref(), &batch[i], &subject, &action)
            };
            if !kept {
                ends.push((first + i, action));
            }
        }
    }
    ends
}
