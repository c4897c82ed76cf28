//! The resources by which what runs is looked at and changed: `/v1/config`, `/v1/sets`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::history::Version;
use super::sets::Member;
use super::{Applied, Applier, Diff, Refused, addresses, sets};
use crate::config::source::Source;
use crate::control::Live;
use crate::control::api::{Named, Question, answer_with, problem_with};

/// A config that somebody offers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Where it comes from, for the history. Lists it names are looked for beside the file that the next start reads, which it
    /// becomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The file's text.
    pub text: String,
    /// Seconds within which it must be confirmed, or it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
    /// How many of the flows that would end are told, by `diff`.
    #[serde(default)]
    pub list: usize,
}

/// The version to go back to; the one before if not given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// What to do to a set.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = SetChange)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Change {
    /// These belong to it from now on.
    Add {
        /// Addresses and prefixes.
        addresses: Vec<String>,
        /// For so many seconds; for good if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
    },
    /// These no longer do; they must have been added.
    Del {
        /// Addresses and prefixes.
        addresses: Vec<String>,
    },
    /// These and no others do.
    Replace {
        /// Addresses and prefixes.
        addresses: Vec<String>,
    },
    /// What was done to it is forgotten: it is the file's.
    Reset {},
}

/// The resources.
pub fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new()
        .routes(routes!(config))
        .routes(routes!(diff))
        .routes(routes!(apply))
        .routes(routes!(confirm))
        .routes(routes!(rollback))
        .routes(routes!(history))
        .routes(routes!(version))
        .routes(routes!(all_sets))
        .routes(routes!(change_set))
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Refused::Mistakes(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::Restart(_) => StatusCode::CONFLICT,
            Refused::Nothing(_) => StatusCode::NOT_FOUND,
            Refused::Environment(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let more = match &self {
            Refused::Mistakes(list) => json!({ "mistakes": list }),
            Refused::Restart(list) => json!({ "restart": list }),
            Refused::Nothing(_) | Refused::Environment(_) => json!({}),
        };
        problem_with(status, &self.to_string(), more)
    }
}

/// Lets a thread that may wait do something with the applier.
async fn with<T: Serialize + Send + 'static>(
    live: Live,
    work: impl FnOnce(&Arc<Applier>) -> Result<T, Refused> + Send + 'static,
) -> Response {
    answer_with(move || {
        let applier = live.applier().ok_or_else(|| Refused::Environment("flowgate is about to end".into()))?;
        work(&applier)
    })
    .await
}

/// An offered text, under the name of the file it is to become.
fn source(applier: &Applier, text: &str) -> Source {
    Source::new(&applier.path().display().to_string(), text)
}

/// The config that runs.
#[derive(Serialize, ToSchema)]
pub struct Current {
    /// The file that the next start reads.
    path: String,
    /// Its number in the history.
    version: Option<u64>,
    /// When it began to run, Unix seconds.
    since: Option<u64>,
    /// Seconds left to confirm it; null if there is nothing to confirm.
    confirm_within: Option<u64>,
    /// The file's text.
    text: String,
}

/// The config that runs, as text.
#[utoipa::path(get, path = "/v1/config", tag = "config", responses((status = 200, body = Current)))]
async fn config(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let (versions, confirm_within) = applier.history();
        let version = versions.last().map(|version| (version.number, version.since));
        Ok(Current {
            path: applier.path().display().to_string(),
            version: version.map(|(number, _)| number),
            since: version.map(|(_, since)| since),
            confirm_within,
            text: applier.text(),
        })
    })
    .await
}

/// What another config would change, and which flows it would end.
#[utoipa::path(
    post,
    path = "/v1/config/diff",
    security(("token" = ["read"])),
    tag = "config",
    request_body = Offer,
    responses((status = 200, body = Diff))
)]
async fn diff(State(live): State<Live>, Question(offer): Question<Offer>) -> Response {
    with(live, move |applier| {
        let list = offer.list.min(10_000);
        applier.diff(&source(applier, &offer.text), list)
    })
    .await
}

/// Goes over to another config without losing a packet, or changes nothing and says why.
#[utoipa::path(
    post,
    path = "/v1/config/apply",
    tag = "config",
    request_body = Offer,
    responses((status = 200, body = Applied))
)]
async fn apply(State(live): State<Live>, Question(offer): Question<Offer>) -> Response {
    with(live, move |applier| {
        let source = source(applier, &offer.text);
        let confirm = offer.confirm.map(|seconds| Duration::from_secs(seconds.clamp(1, 86_400)));
        applier.apply(&source, offer.path.as_deref().unwrap_or("the API"), confirm)
    })
    .await
}

/// What was confirmed.
#[derive(Serialize, ToSchema)]
pub struct Confirmed {
    /// The version that runs and stays.
    version: u64,
    /// What the operator should know.
    notes: Vec<String>,
}

/// Keeps a config that would else go back by itself.
#[utoipa::path(
    post,
    path = "/v1/config/confirm",
    tag = "config",
    responses((status = 200, body = Confirmed))
)]
async fn confirm(State(live): State<Live>) -> Response {
    with(live, |applier| applier.confirm().map(|(version, notes)| Confirmed { version, notes })).await
}

/// Goes back to an earlier config.
#[utoipa::path(
    post,
    path = "/v1/config/rollback",
    tag = "config",
    request_body = Back,
    responses((status = 200, body = Applied))
)]
async fn rollback(State(live): State<Live>, Question(back): Question<Back>) -> Response {
    with(live, move |applier| applier.rollback(back.version)).await
}

/// The configs that ran.
#[derive(Serialize, ToSchema)]
pub struct Versions {
    /// Oldest first; the last one runs.
    versions: Vec<Version>,
    /// Seconds left to confirm the last; null if there is nothing to confirm.
    confirm_within: Option<u64>,
}

/// The configs that ran.
#[utoipa::path(get, path = "/v1/config/history", tag = "config", responses((status = 200, body = Versions)))]
async fn history(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let (versions, confirm_within) = applier.history();
        Ok(Versions { versions, confirm_within })
    })
    .await
}

/// An earlier config.
#[derive(Serialize, ToSchema)]
pub struct Former {
    /// Its number.
    version: u64,
    /// Where it came from.
    origin: String,
    /// The file's text.
    text: String,
}

/// The text of a config that ran.
#[utoipa::path(
    get,
    path = "/v1/config/history/{version}",
    tag = "config",
    params(("version" = u64, Path, description = "Its number.")),
    responses((status = 200, body = Former))
)]
async fn version(State(live): State<Live>, Named(number): Named<u64>) -> Response {
    with(live, move |applier| {
        let (versions, _) = applier.history();
        let found = versions.into_iter().find(|version| version.number == number);
        found
            .map(|version| Former { version: number, origin: version.origin, text: version.text })
            .ok_or_else(|| Refused::Nothing(format!("there is no version {number}")))
    })
    .await
}

/// A set of addresses.
#[derive(Serialize, ToSchema)]
pub struct SetState {
    /// Its name.
    set: String,
    /// What is in it.
    addresses: Vec<String>,
    /// True if what the file says of it does not count.
    replaced: bool,
    /// What was added while running.
    added: Vec<Member>,
}

/// All sets, with what was done to them while running.
#[utoipa::path(get, path = "/v1/sets", tag = "config", responses((status = 200, body = Vec<SetState>)))]
async fn all_sets(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let running = applier.live.now();
        let changed = applier.sets();
        let sets = running.names.sets.iter().map(|set| {
            let done = changed.iter().find(|(name, _)| *name == set.name).map(|(_, changed)| changed);
            let addresses = set.v4.iter().map(ToString::to_string).chain(set.v6.iter().map(ToString::to_string));
            SetState {
                set: set.name.clone(),
                addresses: addresses.collect(),
                replaced: done.is_some_and(|done| done.replaced),
                added: done.map(|done| done.members.clone()).unwrap_or_default(),
            }
        });
        Ok(sets.collect::<Vec<_>>())
    })
    .await
}

/// What became of a change to a set.
#[derive(Serialize, ToSchema)]
pub struct SetChanged {
    /// The set.
    set: String,
    /// True if it made a difference.
    changed: bool,
}

/// Changes a set at once, without another config.
#[utoipa::path(
    post,
    path = "/v1/sets/{set}",
    tag = "config",
    params(("set" = String, Path, description = "Its name.")),
    request_body = Change,
    responses((status = 200, body = SetChanged))
)]
async fn change_set(
    State(live): State<Live>,
    Named(set): Named<String>,
    Question(change): Question<Change>,
) -> Response {
    with(live, move |applier| {
        let name = set.clone();
        let done = applier.change_sets(&set, move |sets| {
            match change {
                Change::Add { addresses: words, seconds } => {
                    let until = seconds.map(|seconds| sets::now().saturating_add(seconds));
                    sets.add(&name, &addresses(&words)?, until);
                }
                Change::Del { addresses: words } => {
                    let missing = sets.remove(&name, &addresses(&words)?);
                    if !missing.is_empty() {
                        let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
                        return Err(format!(
                            "{} {} not added to set {name:?} while running: what the file has, the file gives up",
                            list.join(", "),
                            if list.len() == 1 { "was" } else { "were" },
                        ));
                    }
                }
                Change::Replace { addresses: words } => sets.replace(&name, &addresses(&words)?),
                Change::Reset {} => drop(sets.reset(&name)),
            }
            Ok(())
        });
        done.map(|((), changed)| SetChanged { set, changed })
    })
    .await
}
