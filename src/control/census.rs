//! What takes a look at all flows to know: how many are in which state, and who talks most. Asked for now and then, while
//! somebody wants to see it, and remembered in between.
//!
//! Owns how often the workers may be bothered: a visit takes a fraction of their time (`stage::visit`), and rests at least four
//! times as long as it took.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::Running;
use super::flows::{Selection, Talker};

/// The shortest time from one look to the next.
const REST: Duration = Duration::from_secs(3);
/// How long an asker waits for a look that is under way, before it is told what was last known.
const PATIENCE: Duration = Duration::from_millis(500);
/// Flows that are looked at for the top talkers, and talkers that are remembered.
const MOST: (usize, usize) = (200_000, 20);

/// Flows by state, as `show flows --count state` has them.
#[derive(Debug)]
pub struct Counted {
    /// When, in Unix seconds.
    pub at: f64,
    /// `flows`, `states`, `rules` and `tables`.
    pub flows: Value,
}

/// Who sends and receives most: by what its live flows have carried.
#[derive(Debug, Serialize)]
pub struct Talkers {
    /// When, in Unix seconds.
    pub at: f64,
    /// Flows that were looked at.
    pub seen: usize,
    /// True if these were not all.
    pub partial: bool,
    /// The largest first.
    pub rows: Vec<Talker>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Census {
    counted: Mutex<Memory<Counted>>,
    talkers: Mutex<Memory<Talkers>>,
}

#[derive(Debug)]
struct Memory<T> {
    last: Option<Arc<T>>,
    next: Option<Instant>,
    busy: bool,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Memory { last: None, next: None, busy: false }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is remembered, or a new look if it is time for one; the last known if that takes long.
async fn recall<T: Send + Sync + 'static>(
    running: &Arc<Running>,
    place: fn(&Census) -> &Mutex<Memory<T>>,
    look: fn(&Running) -> Option<T>,
) -> Option<Arc<T>> {
    running.blueprint.conntrack.as_ref()?;
    {
        let mut memory = lock(place(&running.census));
        if memory.busy || memory.next.is_some_and(|next| Instant::now() < next) {
            return memory.last.clone();
        }
        memory.busy = true;
    }
    let its = running.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let found = look(&its).map(Arc::new);
        let mut memory = lock(place(&its.census));
        memory.busy = false;
        memory.next = Some(Instant::now() + REST.max(4 * began.elapsed()));
        if found.is_some() {
            memory.last = found;
        }
        memory.last.clone()
    });
    match timeout(PATIENCE, looking).await {
        Ok(found) => found.ok().flatten(),
        Err(_) => lock(place(&running.census)).last.clone(),
    }
}

/// Unix seconds.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Flows by state; none if connections are not tracked, or no worker has answered yet.
pub async fn counted(running: &Arc<Running>) -> Option<Arc<Counted>> {
    let look = |running: &Running| {
        let flows = running.count_flows(&Selection::default()).ok()?;
        Some(Counted { at: now(), flows: serde_json::to_value(flows).ok()? })
    };
    recall(running, |census| &census.counted, look).await
}

/// Who talks most; none as above.
pub async fn talkers(running: &Arc<Running>) -> Option<Arc<Talkers>> {
    let look = |running: &Running| {
        let (seen, partial, all) = running.sum_by_source(MOST.0).ok()?;
        let mut rows: Vec<Talker> = all.into_values().collect();
        rows.sort_by(|a, b| (b.bytes, &a.address).cmp(&(a.bytes, &b.address)));
        rows.truncate(MOST.1);
        Some(Talkers { at: now(), seen, partial, rows })
    };
    recall(running, |census| &census.talkers, look).await
}

/// Sums by address.
pub type BySource = HashMap<std::net::IpAddr, Talker>;
