//! TLS: certificates and keys from PEM files, for the API's server and its client.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::api::Api;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error| format!("{file}: no certificates in PEM: {error}");
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(wrong)?.collect();
    match list.map_err(wrong)? {
        list if list.is_empty() => Err(format!("{file}: holds no certificate in PEM")),
        list => Ok(list),
    }
}

fn key(file: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| format!("{file}: no private key in PEM: {error}"))
}

fn roots(file: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(roots)
}

/// The server's side, as the config says; the error names the file.
pub fn server(config: &Api) -> Result<ServerConfig, String> {
    let absent = || "TLS wants api.certificate and api.key".to_owned();
    let file = config.certificate.as_deref().ok_or_else(absent)?;
    let chain = certificates(file)?;
    let key = key(config.key.as_deref().ok_or_else(absent)?)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
            // Who comes without shows a token, or reads what is open.
            let others = config.tokens.is_some() || !config.open.is_empty();
            let verifier = if others { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("{ca}: {error}"))?)
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|error| format!("{file}: {error}"))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}

/// The client's side: the roots it trusts, and its own certificate and key if it has them.
pub fn client(trusted: &str, own: Option<(&str, &str)>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(trusted)?);
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, secret)) => builder
            .with_client_auth_cert(certificates(chain)?, key(secret)?)
            .map_err(|error| format!("{chain}: {error}")),
    }
}
