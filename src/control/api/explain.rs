//! Packets explained: what would happen to one now.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{PATIENCE, Question, answer};
use crate::control::flows::Refusal;
use crate::control::{Live, Running};
use crate::explain::Explainer;

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(routes!(explain))
}

/// A packet to be explained: in words, or as a frame and the port it arrives on.
#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Packet {
    Words(Words),
    Frame(Frame),
}

/// A packet in words.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// As `flowgate explain` takes it.
    #[schema(example = "tcp 10.0.0.5:40000 > 192.0.2.7:443 in lan")]
    packet: String,
}

/// A packet in bytes.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// The Ethernet frame, in hexadecimal digits.
    frame: String,
    /// The port it arrives on.
    r#in: String,
}

impl Packet {
    /// Reads it: the port it arrives on and its frame. The error is for who asks.
    pub fn read(&self, explainer: &Explainer) -> Result<(u8, Vec<u8>), String> {
        match self {
            Packet::Words(Words { packet }) => explainer.read(packet).map_err(|error| error.shown(packet)),
            Packet::Frame(Frame { frame, r#in: port }) => {
                let port = explainer.port(port)?;
                Ok((port, unhex(frame).ok_or("the frame is not hexadecimal")?))
            }
        }
    }
}

/// What would happen to a packet now, with the flows that are known: the real datapath, stage by stage, and the rule that decides.
#[utoipa::path(
    post,
    path = "/v1/explain",
    security(("token" = ["read"])),
    tag = "state",
    request_body = Packet,
    responses((status = 200, body = Object))
)]
async fn explain(State(running): State<Arc<Running>>, Question(packet): Question<Packet>) -> Response {
    answer(move || {
        let (port, frame) = packet.read(&running.explainer).map_err(Refusal::Question)?;
        running.explain(port, &frame, PATIENCE).map_err(Refusal::Late)
    })
    .await
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
