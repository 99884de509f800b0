//! Pictures at web addresses, from the hosts that the server was told it may ask, and from no other.

use super::error::Failure;
use base64::Engine;
use std::time::Duration;

/// Longest wait for a picture.
const WAIT: Duration = Duration::from_secs(20);

/// Who may be asked, and how much is read.
pub struct Remote {
    hosts: Vec<String>,
    most: usize,
    client: Option<reqwest::Client>,
}

impl Remote {
    /// For these hosts (`host` at the usual ports, or `host:port`); pictures of a request of at most so many bytes together.
    pub fn new(hosts: &[String], most: usize) -> anyhow::Result<Self> {
        // a redirect could lead to a host that nobody allowed
        let build = || reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(WAIT).build();
        let client = if hosts.is_empty() { None } else { Some(build()?) };
        Ok(Self { hosts: hosts.iter().map(|h| h.to_lowercase()).collect(), most, client })
    }

    /// What a request may still fetch.
    pub fn budget(&self) -> usize {
        self.most
    }

    /// The picture of a web address as a data: URL, taken off the request's budget; any other URL as it is.
    pub async fn inline(&self, url: &str, left: &mut usize) -> Result<String, Failure> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Ok(url.to_owned());
        }
        let parsed = reqwest::Url::parse(url).map_err(|e| Failure::bad(format!("image_url: {e}")))?;
        let host = parsed.host_str().unwrap_or_default();
        let host = parsed.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let Some(client) = self.client.as_ref().filter(|_| self.hosts.contains(&host)) else {
            let why = "only data: URLs are read (data:image/png;base64,...)";
            return Err(Failure::bad(format!(
                "image_url: {why}; the server was not given --allow-remote-images {host}"
            )));
        };
        let failed =
            |e: reqwest::Error| Failure::bad(format!("image_url: {host} gave no picture ({})", e.without_url()));
        let mut answer = client.get(parsed).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(Failure::bad(format!("image_url: {host} answered {}", answer.status())));
        }
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&part);
            *left = left.saturating_sub(part.len());
            if *left == 0 {
                return Err(Failure::bad(format!("image_url: more than {} megabytes in one request", self.most >> 20)));
            }
        }
        Ok(format!("data:image/*;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
    }
}
