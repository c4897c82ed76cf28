//! Ports: what they are, what flowgate counted there, what the device counted.

use std::sync::Arc;

use axum::extract::{Json, State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::routes::PortAddress;
use crate::control::{Live, PortState, Running};
use crate::stage::pipeline::port_counter;

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(routes!(ports))
}

/// A port.
#[derive(Serialize, ToSchema)]
pub struct Port {
    #[serde(flatten)]
    state: PortState,
    /// Packets that workers received.
    rx_packets: u64,
    /// Packets that workers sent.
    tx_packets: u64,
    /// Packets that the device did not take.
    tx_dropped: u64,
    /// Its addresses; absent if nothing is routed.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<PortAddress>>,
    /// The kernel interface beside it; absent if nothing is routed, null if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<Option<String>>,
}

/// Every port: what it is, what flowgate counted there, what the device counted.
#[utoipa::path(get, path = "/v1/ports", tag = "state", responses((status = 200, body = Vec<Port>)))]
async fn ports(State(running): State<Arc<Running>>) -> Json<Vec<Port>> {
    let total = running.total();
    let ports = running.ports.iter().zip(&running.blueprint.port_counters).enumerate().map(|(at, (port, first))| {
        // The zone is the config's, which may be another by now.
        let state = PortState { zone: running.names.zone_of(at as u8).map(str::to_owned), ..port.state() };
        let addresses = running.addresses(at as u8);
        let interface = addresses.as_ref().map(|_| running.interfaces.then(|| state.name.clone()));
        Port {
            rx_packets: total.counters[first + port_counter::RX],
            tx_packets: total.counters[first + port_counter::TX],
            tx_dropped: total.counters[first + port_counter::TX_DROPPED],
            addresses,
            interface,
            state,
        }
    });
    Json(ports.collect())
}
