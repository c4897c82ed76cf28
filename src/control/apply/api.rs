//! The resources by which what runs is looked at and changed: `/v1/config`, `/v1/sets`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Applier, Refused, addresses, sets};
use crate::config::source::Source;
use crate::control::Live;

/// A config that somebody offers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// What to do to a set.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
pub fn routes() -> Router<Live> {
    Router::new()
        .route("/v1/config", get(config))
        .route("/v1/config/diff", post(diff))
        .route("/v1/config/apply", post(apply))
        .route("/v1/config/confirm", post(confirm))
        .route("/v1/config/rollback", post(rollback))
        .route("/v1/config/history", get(history))
        .route("/v1/config/history/{version}", get(version))
        .route("/v1/sets", get(all_sets))
        .route("/v1/sets/{set}", post(change_set))
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Refused::Mistakes(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::Restart(_) => StatusCode::CONFLICT,
            Refused::Nothing(_) => StatusCode::NOT_FOUND,
            Refused::Environment(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut value = json!({ "error": self.to_string() });
        match &self {
            Refused::Mistakes(list) => value["mistakes"] = json!(list),
            Refused::Restart(list) => value["restart"] = json!(list),
            Refused::Nothing(_) | Refused::Environment(_) => {}
        }
        (status, Json(value)).into_response()
    }
}

/// Lets a thread that may wait do something with the applier.
async fn with<T: Serialize + Send + 'static>(
    live: Live,
    work: impl FnOnce(&Arc<Applier>) -> Result<T, Refused> + Send + 'static,
) -> Response {
    let done = tokio::task::spawn_blocking(move || {
        let applier = live.applier().ok_or_else(|| Refused::Environment("flowgate is about to end".into()))?;
        work(&applier)
    });
    match done.await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(refused)) => refused.into_response(),
        Err(error) => Refused::Environment(error.to_string()).into_response(),
    }
}

/// An offered text, under the name of the file it is to become.
fn source(applier: &Applier, text: &str) -> Source {
    Source::new(&applier.path().display().to_string(), text)
}

/// The config that runs, as text.
async fn config(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let (versions, confirm_within) = applier.history();
        let version = versions.last().map(|version| (version.number, version.since));
        Ok(json!({
            "path": applier.path(),
            "version": version.map(|(number, _)| number),
            "since": version.map(|(_, since)| since),
            "confirm_within": confirm_within,
            "text": applier.text(),
        }))
    })
    .await
}

async fn diff(State(live): State<Live>, Json(offer): Json<Offer>) -> Response {
    with(live, move |applier| {
        let list = offer.list.min(10_000);
        applier.diff(&source(applier, &offer.text), list)
    })
    .await
}

async fn apply(State(live): State<Live>, Json(offer): Json<Offer>) -> Response {
    with(live, move |applier| {
        let source = source(applier, &offer.text);
        let confirm = offer.confirm.map(|seconds| Duration::from_secs(seconds.clamp(1, 86_400)));
        applier.apply(&source, offer.path.as_deref().unwrap_or("the API"), confirm)
    })
    .await
}

async fn confirm(State(live): State<Live>) -> Response {
    with(live, |applier| applier.confirm().map(|(version, notes)| json!({ "version": version, "notes": notes }))).await
}

async fn rollback(State(live): State<Live>, Json(back): Json<Back>) -> Response {
    with(live, move |applier| applier.rollback(back.version)).await
}

async fn history(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let (versions, confirm_within) = applier.history();
        Ok(json!({ "versions": versions, "confirm_within": confirm_within }))
    })
    .await
}

async fn version(State(live): State<Live>, Path(number): Path<u64>) -> Response {
    with(live, move |applier| {
        let (versions, _) = applier.history();
        let found = versions.into_iter().find(|version| version.number == number);
        found
            .map(|version| json!({ "version": number, "origin": version.origin, "text": version.text }))
            .ok_or_else(|| Refused::Nothing(format!("there is no version {number}")))
    })
    .await
}

async fn all_sets(State(live): State<Live>) -> Response {
    with(live, |applier| {
        let running = applier.live.now();
        let changed = applier.sets();
        let sets = running.names.sets.iter().map(|set| {
            let done = changed.iter().find(|(name, _)| *name == set.name).map(|(_, changed)| changed);
            json!({
                "set": set.name,
                "addresses": set.v4.iter().map(ToString::to_string)
                    .chain(set.v6.iter().map(ToString::to_string)).collect::<Vec<_>>(),
                "replaced": done.is_some_and(|done| done.replaced),
                "added": done.map(|done| done.members.clone()).unwrap_or_default(),
            })
        });
        Ok(sets.collect::<Vec<_>>())
    })
    .await
}

async fn change_set(State(live): State<Live>, Path(set): Path<String>, Json(change): Json<Change>) -> Response {
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
        done.map(|((), changed)| json!({ "set": set, "changed": changed }))
    })
    .await
}
