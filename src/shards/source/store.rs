//! Shards in object stores: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.
//!
//! In: such an address, and a range of bytes. Out: an [`Answer`] or a [`Refusal`], or a page of the keys below a prefix.
//! `object_store` speaks the protocols and signs; it makes each request once, since retries are the caller's. Credentials come from
//! the environment (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY` and their
//! like), or from a profile in `~/.aws` (`profile.rs`); where there are none, requests go unsigned, as `fetch.anonymous` decides. A refusal says which way was taken, never with what.

use super::super::reason::{Reason, Trouble};
use super::http;
use super::profile::{Keys, Profile};
use super::remote::{Answer, Refusal, Remote};
use crate::config::{Anonymous, FetchPlan};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, resolve_bucket_region};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, HeaderMap, HeaderValue, ObjectStore, RetryConfig};
use reqwest::StatusCode;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// What addresses in stores begin with.
pub(in crate::shards) const SCHEMES: [&str; 3] = ["s3://", "gs://", "az://"];

/// The buckets that were asked for something.
#[derive(Debug)]
pub(super) struct Stores {
    endpoint: Option<String>,
    anonymous: Anonymous,
    patience: Duration,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
}

impl Stores {
    pub(super) fn new(plan: &FetchPlan, patience: Duration) -> Self {
        let endpoint = (!plan.endpoint.is_empty()).then(|| plan.endpoint.clone());
        Self { endpoint, anonymous: plan.anonymous, patience, buckets: Mutex::default() }
    }

    /// The object at an address.
    pub(super) fn object(&self, address: &str) -> Result<StoreObject, Trouble> {
        let (bucket, key) = self.bucket(address)?;
        let key = Path::parse(key).map_err(|error| Trouble::new(Reason::NotFound, format!("no valid key: {error}")))?;
        Ok(StoreObject { bucket, key })
    }

    /// The bucket of an address, and what follows its name.
    pub(super) fn bucket<'a>(&self, address: &'a str) -> Result<(Arc<Bucket>, &'a str), Trouble> {
        let unknown = || Trouble::new(Reason::Unreachable, "not the address of an object in a store");
        let (scheme, rest) = address.split_once("://").ok_or_else(unknown)?;
        let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
        let kind = Kind::of(scheme).ok_or_else(unknown)?;
        let host = format!("{scheme}://{name}");
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(host.clone()).or_insert_with(|| {
            Arc::new(Bucket {
                kind,
                name: name.to_owned(),
                host,
                endpoint: self.endpoint.clone(),
                anonymous: self.anonymous,
                patience: self.patience,
                opened: OnceCell::new(),
            })
        });
        Ok((Arc::clone(bucket), key))
    }
}

/// Whose protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Google,
    Azure,
}

impl Kind {
    fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Google),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }
}

/// One bucket or container, opened by the first request.
#[derive(Debug)]
pub(super) struct Bucket {
    kind: Kind,
    name: String,
    host: String,
    endpoint: Option<String>,
    anonymous: Anonymous,
    patience: Duration,
    opened: OnceCell<Opened>,
}

#[derive(Clone)]
struct Opened {
    objects: Arc<dyn ObjectStore>,
    lists: Arc<dyn PaginatedListStore>,
    /// How requests are signed, in words.
    signing: &'static str,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({})", self.signing)
    }
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Keys and the lengths of their objects in bytes.
    pub keys: Vec<(String, u64)>,
    /// Beginnings of further keys up to a `/`, which is left out: with `is_flat` alone.
    pub folders: Vec<String>,
    /// Where the next page begins, if there is one.
    pub after: Option<String>,
}

impl Bucket {
    /// Whom requests go to.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// One page of the keys that begin with `prefix`. `is_flat` leaves out keys with a `/` behind the prefix, and tells how they
    /// begin.
    pub(super) async fn page(&self, prefix: &str, is_flat: bool, page_token: Option<String>) -> Result<Page, Refusal> {
        let opened = self.opened().await?;
        let seen = Seen::default();
        let mut options = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
        options.delimiter = is_flat.then_some("/".into());
        options.extensions.insert(seen.clone());
        let prefix = (!prefix.is_empty()).then_some(prefix);
        let page = opened.lists.list_paginated(prefix, options).await;
        let page = page.map_err(|error| refusal(&error, &seen, opened.signing))?;
        let keys = page.result.objects.into_iter().map(|object| (object.location.to_string(), object.size));
        let folders = page.result.common_prefixes.into_iter().map(|folder| folder.to_string());
        Ok(Page { keys: keys.collect(), folders: folders.collect(), after: page.page_token })
    }

    async fn opened(&self) -> Result<&Opened, Refusal> {
        let open = async || {
            self.open().await.map_err(|error| {
                let detail = format!("the settings in the environment cannot be used: {}", causes(&error));
                Refusal::Final(Trouble::new(Reason::Forbidden, detail))
            })
        };
        self.opened.get_or_try_init(open).await
    }

    async fn open(&self) -> object_store::Result<Opened> {
        super::provide_tls();
        match self.kind {
            Kind::S3 => self.open_s3().await,
            Kind::Google => self.open_google(),
            Kind::Azure => self.open_azure(),
        }
    }

    async fn open_s3(&self) -> object_store::Result<Opened> {
        use AmazonS3ConfigKey as Key;
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&self.name).with_retry(once());
        let has = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).is_some();
        let has_credentials = |builder: &AmazonS3Builder| {
            has(builder, Key::AccessKeyId)
                || has(builder, Key::WebIdentityTokenFile)
                || has(builder, Key::ContainerCredentialsRelativeUri)
                || has(builder, Key::ContainerCredentialsFullUri)
        };
        let is_without_keys = !has_credentials(&builder) && self.anonymous != Anonymous::Always;
        builder = with_profile(builder, is_without_keys)?;
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_config(Key::S3Endpoint, endpoint);
        }
        let endpoint = builder.get_config_value(&Key::S3Endpoint).or(builder.get_config_value(&Key::Endpoint));
        let options = self.client_options(endpoint.as_deref());
        if endpoint.is_none() && !has(&builder, Key::Region) {
            // A bucket answers in its own region alone, and says to anybody which one that is.
            match resolve_bucket_region(&self.name, &options).await {
                Ok(region) => builder = builder.with_region(region),
                Err(error) => tracing::debug!(bucket = self.name, error = causes(&error), "its region is not known"),
            }
        }
        let is_signed = self.signs(|| has_credentials(&builder));
        let builder = builder.with_client_options(options).with_http_connector(Watching);
        let builder = if is_signed { builder } else { builder.with_skip_signature(true) };
        Ok(Opened::new(Arc::new(builder.build()?), self.signing(is_signed)))
    }

    fn open_google(&self) -> object_store::Result<Opened> {
        use GoogleConfigKey as Key;
        let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&self.name).with_retry(once());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_base_url(endpoint.trim_end_matches('/'));
        }
        let endpoint = builder.get_config_value(&Key::BaseUrl);
        let is_signed = self.signs(|| {
            let named = [Key::ServiceAccount, Key::ServiceAccountKey, Key::ApplicationCredentials];
            named.iter().any(|key| builder.get_config_value(key).is_some()) || has_google_login()
        });
        let builder =
            builder.with_client_options(self.client_options(endpoint.as_deref())).with_http_connector(Watching);
        let builder = if is_signed { builder } else { builder.with_skip_signature(true) };
        Ok(Opened::new(Arc::new(builder.build()?), self.signing(is_signed)))
    }

    fn open_azure(&self) -> object_store::Result<Opened> {
        use AzureConfigKey as Key;
        let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(&self.name).with_retry(once());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let endpoint = builder.get_config_value(&Key::Endpoint);
        let is_signed = self.signs(|| {
            let named = [Key::AccessKey, Key::SasKey, Key::Token, Key::ClientId, Key::FederatedTokenFile];
            named.iter().any(|key| builder.get_config_value(key).is_some())
                || builder.get_config_value(&Key::UseAzureCli).is_some_and(|value| value == "true")
        });
        let builder =
            builder.with_client_options(self.client_options(endpoint.as_deref())).with_http_connector(Watching);
        let builder = if is_signed { builder } else { builder.with_skip_signature(true) };
        Ok(Opened::new(Arc::new(builder.build()?), self.signing(is_signed)))
    }

    /// Whether requests are signed.
    fn signs(&self, has_credentials: impl FnOnce() -> bool) -> bool {
        match self.anonymous {
            Anonymous::Auto => has_credentials(),
            Anonymous::Always => false,
            Anonymous::Never => true,
        }
    }

    fn signing(&self, is_signed: bool) -> &'static str {
        match (is_signed, self.anonymous) {
            (true, _) => "asked with the credentials of the environment, or of a profile",
            (false, Anonymous::Auto) => "no credentials in the environment or in a profile, asked anonymously",
            (false, _) => "asked anonymously, as fetch.anonymous says",
        }
    }

    fn client_options(&self, endpoint: Option<&str>) -> ClientOptions {
        ClientOptions::new()
            .with_user_agent(HeaderValue::from_static(concat!("shoal/", env!("CARGO_PKG_VERSION"))))
            .with_connect_timeout(self.patience)
            // a shard may take hours; whoever waits for its bytes knows how long is too long
            .with_timeout_disabled()
            .with_http1_only()
            .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
    }
}

impl Opened {
    fn new<S: ObjectStore + PaginatedListStore>(store: Arc<S>, signing: &'static str) -> Self {
        Self { objects: Arc::clone(&store) as _, lists: store, signing }
    }
}

/// With region and endpoint of the profile in `~/.aws`, where the environment does not name them, and where `wants_keys`, its
/// keys.
fn with_profile(mut builder: AmazonS3Builder, wants_keys: bool) -> object_store::Result<AmazonS3Builder> {
    use AmazonS3ConfigKey as Key;
    let refused = |what: String| object_store::Error::Generic { store: "S3", source: what.into() };
    let Some(profile) = Profile::of_environment().map_err(refused)? else {
        return Ok(builder);
    };
    for (key, setting) in [(Key::Region, "region"), (Key::Endpoint, "endpoint_url")] {
        if let (None, Some(value)) = (builder.get_config_value(&key), profile.get(setting)) {
            builder = builder.with_config(key, value);
        }
    }
    if wants_keys && let Some(Keys { id, secret, session_token }) = profile.keys().map_err(refused)? {
        if session_token.is_none() && builder.get_config_value(&Key::Token).is_some() {
            return Err(refused("AWS_SESSION_TOKEN is set without a key of the environment: unset it".to_owned()));
        }
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        builder = session_token.into_iter().fold(builder, AmazonS3Builder::with_token);
    }
    Ok(builder)
}

/// Each request is made once: whether and when it is made again is decided in one place for all kinds of servers.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

/// Whether `gcloud auth application-default login` was run here.
fn has_google_login() -> bool {
    let file = ".config/gcloud/application_default_credentials.json";
    std::env::home_dir().is_some_and(|home| home.join(file).is_file())
}

/// One object.
#[derive(Debug)]
pub(super) struct StoreObject {
    bucket: Arc<Bucket>,
    key: Path,
}

impl Remote for StoreObject {
    fn get(&self, from: u64, to: Option<u64>, tag: Option<&str>) -> BoxFuture<'_, Result<Answer, Refusal>> {
        let tag = tag.map(str::to_owned);
        Box::pin(async move {
            let opened = self.bucket.opened().await?;
            let seen = Seen::default();
            let range = match to {
                Some(to) => GetRange::Bounded(from..to),
                None => GetRange::Offset(from),
            };
            let mut options = GetOptions { range: Some(range), if_match: tag.clone(), ..GetOptions::default() };
            options.extensions.insert(seen.clone());
            let result = match opened.objects.get_opts(&self.key, options).await {
                Ok(result) => result,
                // an empty object has no byte that a range could begin at
                Err(_) if from == 0 && seen.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
                    let body = futures_util::stream::empty().boxed();
                    return Ok(Answer { from: 0, length: Some(0), tag: seen.tag(), ranges: true, body });
                }
                Err(error) => return Err(refusal(&error, &seen, opened.signing)),
            };
            // not every server that speaks the protocol heeds If-Match
            if tag.is_some() && result.meta.e_tag != tag {
                return Err(Refusal::Final(Trouble::new(Reason::ShardChanged, "the store has another version now")));
            }
            let (begins, length, tag) = (result.range.start, result.meta.size, result.meta.e_tag.clone());
            let body = result.into_stream().map_err(|error| causes(&error)).boxed();
            Ok(Answer { from: begins, length: Some(length), tag, ranges: true, body })
        })
    }

    fn host(&self) -> &str {
        self.bucket.host()
    }
}

/// What an error of a store means: by the status of its answer, where there was one.
fn refusal(error: &object_store::Error, seen: &Seen, signing: &str) -> Refusal {
    let Some((status, headers)) = seen.answer() else {
        return Refusal::Passing(Trouble::new(Reason::Unreachable, causes(error)), None);
    };
    let code = code(error).map(|code| format!(" ({code})")).unwrap_or_default();
    if let object_store::Error::InvalidPath { source } = error {
        let detail = format!("holds a key that `object_store` has no name for: {source}");
        return Refusal::Final(Trouble::new(Reason::Unreadable, detail));
    }
    if status.is_success() {
        // an error in the body of a success, as S3 gives them, or not the part that was asked for
        let detail = format!("HTTP status {status} without what was asked for{code}");
        return Refusal::Passing(Trouble::new(Reason::HttpStatus, detail), None);
    }
    if status.is_redirection() {
        let detail = format!("HTTP status {status}: the bucket is in another region, set AWS_REGION");
        return Refusal::Final(Trouble::new(Reason::HttpStatus, detail));
    }
    let is_expired = code.contains("ExpiredToken") || code.contains("InvalidToken");
    if is_expired || [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&status) {
        return Refusal::Final(Trouble::new(Reason::Forbidden, format!("HTTP status {status}{code}: {signing}")));
    }
    match http::refusal(status, &headers) {
        Refusal::Final(trouble) => Refusal::Final(Trouble::new(trouble.reason, format!("{}{code}", trouble.detail))),
        Refusal::Passing(trouble, pause) => {
            Refusal::Passing(Trouble::new(trouble.reason, format!("{}{code}", trouble.detail)), pause)
        }
    }
}

/// The error code in the XML of an answer, as `NoSuchKey` or `SlowDown`.
fn code(error: &object_store::Error) -> Option<String> {
    let text = error.to_string();
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let is_word = code.len() <= 60 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

/// What lies behind an error, the innermost last. Messages with a URL are left out: it may be a signed one.
fn causes(error: &object_store::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !text.contains("://") && !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = inner.source();
    }
    match texts.is_empty() {
        true => "no answer".to_owned(),
        false => texts.join(": "),
    }
}

/// Status and headers of the answer to one request: the errors of `object_store` do not tell them.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Option<(StatusCode, HeaderMap)>>>);

impl Seen {
    fn answer(&self) -> Option<(StatusCode, HeaderMap)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn status(&self) -> Option<StatusCode> {
        self.answer().map(|(status, _)| status)
    }

    fn tag(&self) -> Option<String> {
        let (_, headers) = self.answer()?;
        Some(headers.get("etag")?.to_str().ok()?.to_owned())
    }
}

/// Makes clients that note their answers in the [`Seen`] of a request.
#[derive(Debug)]
struct Watching;

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Watched(HttpClient);

impl HttpService for Watched {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let seen = request.extensions().get::<Seen>().cloned();
            let response = self.0.execute(request).await?;
            if let Some(Seen(noted)) = seen {
                let head = (response.status(), response.headers().clone());
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
            }
            Ok(response)
        })
    }
}
