//! A status in Prometheus's text format, or in OpenMetrics. Pure.

use std::fmt;

use hearth_proto::v1;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{Family, Kind, Labels, Number, families};

/// How figures are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's text format 0.0.4: what every collector of files reads.
    Prometheus,
    /// OpenMetrics 1.0: with units and an end mark.
    OpenMetrics,
}

impl Format {
    /// Its name on HTTP.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes a status down.
///
/// # Errors
/// None that writing into a text can have; a bug.
pub(super) fn encode(status: &v1::DaemonStatus, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("hearth");
    registry.register_collector(Box::new(Snapshot {
        families: families(status),
        format,
    }));
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    if format == Format::OpenMetrics {
        encode_eof(&mut text)?;
    }
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    families: Vec<Family>,
    format: Format,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in self
            .families
            .iter()
            .filter(|family| !family.samples.is_empty())
        {
            family.encode(&mut encoder, self.format)?;
        }
        Ok(())
    }
}

impl Family {
    /// The older format has no line for a unit, and calls a counter by its whole name everywhere;
    /// the newer one adds `_total` to its figures alone.
    fn encode(&self, encoder: &mut DescriptorEncoder, format: Format) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let open = format == Format::OpenMetrics;
        let unit = self
            .unit
            .as_ref()
            .map_or(String::new(), |unit| format!("_{}", unit.as_str()));
        let total = if self.kind == Kind::Counter {
            "_total"
        } else {
            ""
        };
        let whole = format!("{}{unit}{total}", self.name);
        let (name, unit) = if open {
            (self.name, self.unit.as_ref())
        } else {
            (whole.as_str(), None)
        };
        let mut metric = encoder.encode_descriptor(name, self.help, unit, kind)?;
        let suffixed = open && self.kind == Kind::Counter;
        for (labels, number) in &self.samples {
            // A set of no labels would be written as `{}`.
            if labels.is_empty() {
                write(&mut metric, *number, suffixed)?;
            } else {
                write(&mut metric.encode_family(labels)?, *number, suffixed)?;
            }
        }
        Ok(())
    }
}

/// Writes one figure; `suffixed`: with `_total` after its name.
fn write(metric: &mut MetricEncoder, number: Number, suffixed: bool) -> fmt::Result {
    match number {
        Number::Whole(n) if suffixed => metric.encode_counter::<Labels, _, f64>(&n, None),
        Number::Real(n) if suffixed => metric.encode_counter::<Labels, _, f64>(&n, None),
        Number::Whole(n) => metric.encode_gauge(&i64::try_from(n).unwrap_or(i64::MAX)),
        Number::Real(n) => metric.encode_gauge(&n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::DaemonStatus {
        v1::DaemonStatus {
            state: v1::LifecycleState::Ready.into(),
            version: "1.2.3".to_owned(),
            counters: Some(v1::Counters {
                generated_tokens: 7,
                decode_time: Some(prost_types::Duration {
                    seconds: 2,
                    nanos: 500_000_000,
                }),
                ..Default::default()
            }),
            models: vec![v1::WarmModel {
                info: Some(v1::ModelInfo {
                    name: "m".to_owned(),
                    ..Default::default()
                }),
                kv_blocks_total: 10,
                kv_blocks_used: 3,
                kv_blocks_cached: 2,
                ..Default::default()
            }],
            apps: vec![v1::AppStatus {
                app: "a\"b\\c\nd".to_owned(),
                generated_tokens: u64::MAX,
                gpu_time: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 250_000_000,
                }),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn lines(format: Format) -> Vec<String> {
        let text = encode(&status(), format).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn counters_are_named_as_each_format_wants() {
        let old = lines(Format::Prometheus);
        for line in [
            "# TYPE hearth_generated_tokens_total counter",
            "hearth_generated_tokens_total 7",
            "# TYPE hearth_decode_seconds_total counter",
            "hearth_decode_seconds_total 2.5",
            "hearth_kv_blocks{model=\"m\",state=\"free\"} 5",
            "hearth_state{state=\"ready\"} 1",
            "hearth_state{state=\"draining\"} 0",
            "hearth_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(old.iter().any(|l| l == line), "{line} in {old:#?}");
        }
        let unknown = old.iter().find(|line| {
            line.starts_with('#') && !line.starts_with("# HELP ") && !line.starts_with("# TYPE ")
        });
        assert_eq!(unknown, None);

        let open = lines(Format::OpenMetrics);
        for line in [
            "# TYPE hearth_generated_tokens counter",
            "hearth_generated_tokens_total 7",
            "# TYPE hearth_decode_seconds counter",
            "# UNIT hearth_decode_seconds seconds",
            "hearth_decode_seconds_total 2.5",
        ] {
            assert!(open.iter().any(|l| l == line), "{line} in {open:#?}");
        }
        assert_eq!(open.last().unwrap(), "# EOF");
    }

    #[test]
    fn names_of_apps_are_escaped_and_large_counts_written() {
        let old = lines(Format::Prometheus);
        let label = r#"{app="a\"b\\c\nd"}"#;
        let wanted = [
            format!("hearth_app_gpu_seconds_total{label} 0.25"),
            format!("hearth_app_generated_tokens_total{label} {}", i64::MAX),
        ];
        for line in wanted {
            assert!(old.contains(&line), "{line} in {old:#?}");
        }
    }

    #[test]
    fn nothing_is_said_of_what_is_not_there() {
        let text = encode(&v1::DaemonStatus::default(), Format::Prometheus).unwrap();
        for absent in ["hearth_app_", "model_info", "adapter_info", "resident"] {
            assert!(!text.contains(absent), "{absent}");
        }
        assert!(text.contains("hearth_requests_total 0\n"));
    }
}
