//! Traces of steps, clusterings, snapshots and shards, for a collector of OpenTelemetry.
//!
//! In: OpenTelemetry's own variables. Where OTEL_EXPORTER_OTLP_ENDPOINT names a collector (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), spans
//! go there over HTTP, from a thread of the library's; OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER hold as it says.
//! Without a collector nothing is made. What can go wrong: the address is none. A collector that is away costs its spans only.

use crate::error::{Error, Result};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The spans on their way; dropping it sends what is left.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::debug!("the last traces are lost: {error}");
        }
    }
}

/// A part of a subscriber.
type AnyLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// What hears spans, where a collector is named.
pub(super) fn start<S>() -> Result<Option<(AnyLayer<S>, Traces)>>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let Some(name) = ENDPOINTS.into_iter().find(|name| std::env::var_os(name).is_some_and(|url| !url.is_empty()))
    else {
        return Ok(None);
    };
    crate::shards::source::provide_tls();
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpJson).build();
    let exporter = exporter.map_err(|error| {
        Error::usage(format!("no traces can be sent to {name}: {error}"))
            .with_hint("an address such as http://127.0.0.1:4318, or unset it")
    })?;
    let named = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"].map(|name| std::env::var(name).unwrap_or_default());
    let has_name = !named[0].is_empty() || named[1].contains("service.name=");
    let resource = Resource::builder();
    let resource = if has_name { resource } else { resource.with_service_name("shoal") }.build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shoal"));
    let spans = Targets::new().with_target("shoal", Level::DEBUG);
    Ok(Some((layer.with_filter(spans).boxed(), Traces(provider))))
}
