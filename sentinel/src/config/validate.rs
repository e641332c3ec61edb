//! From what the file says to what has been proved.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use toml::Spanned;

use super::raw::{self, Key, Raw};
use super::{
    Act, ActMode, Config, ConfigError, Detect, Discovery, Invalid, Kubernetes, Metrics, Paths, PodMode,
    Reload, Thresholds, Watch, file,
};
use crate::postfix::ServiceId;

/// sun_path of unix(7) is 108 bytes with its NUL; `/.control.sock.` and a pid must fit behind the directory.
const RUNTIME_DIR_MAX: usize = 80;

/// From a tenth of a second, which is what a sample a tenth needs, to an hour, in which mail servers give up.
const DWELL: [SignedDuration; 2] = [SignedDuration::from_millis(100), SignedDuration::from_hours(1)];
/// STRESS_README names 5 s as low; a second is what an honest client on a bad line needs to say EHLO.
const MIN_PATIENCE: [SignedDuration; 2] = [SignedDuration::from_secs(1), SignedDuration::from_secs(300)];
/// A restart of the API server takes up to a minute; after a day nobody remembers what an annotation said.
const KEEP: [SignedDuration; 2] = [SignedDuration::from_mins(1), SignedDuration::from_hours(24)];
/// What is sized to maxproc (lookups, policy services, milters) hardly bears more.
const HEADROOM_MAX: f64 = 16.0;
const MIN_INTERVAL: [SignedDuration; 2] = [SignedDuration::from_secs(1), SignedDuration::from_hours(24)];

/// Knows the file, to tell the line of whatever it refuses.
pub(super) struct Validator<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

/// Where a value stands: section and key.
#[derive(Clone, Copy)]
struct At(&'static str, &'static str);

impl Validator<'_> {
    pub(super) fn config(&self, raw: Raw) -> Result<Config, ConfigError> {
        let default = Config::default();
        Ok(Config {
            discovery: self.discovery(raw.discovery, default.discovery)?,
            watch: self.watch(raw.watch, default.watch)?,
            detect: self.detect(raw.detect, default.detect)?,
            act: self.act(raw.act, default.act)?,
            metrics: self.metrics(raw.metrics, default.metrics)?,
            kubernetes: self.kubernetes(raw.kubernetes, default.kubernetes)?,
            paths: self.paths(raw.paths, default.paths)?,
        })
    }

    fn discovery(&self, raw: raw::Discovery, default: Discovery) -> Result<Discovery, ConfigError> {
        let dirs = |list: Vec<String>| each_once(list).and_then(|l| l.iter().map(|t| absolute(t)).collect());
        Ok(Discovery {
            config_dirs: self.value(
                At("discovery", "config_dirs"),
                raw.config_dirs,
                default.config_dirs,
                dirs,
            )?,
            containers: self.value(
                At("discovery", "containers"),
                raw.containers,
                default.containers,
                Ok,
            )?,
            cgroups: self.value(At("discovery", "cgroups"), raw.cgroups, default.cgroups, |list| {
                each_once(list)?.into_iter().map(cgroup).collect()
            })?,
            max_instances: self.value(
                At("discovery", "max_instances"),
                raw.max_instances,
                default.max_instances,
                |n| number(n, 1, 1024),
            )?,
        })
    }

    fn watch(&self, raw: raw::Watch, default: Watch) -> Result<Watch, ConfigError> {
        let services_span = raw.services.as_ref().map(Spanned::span);
        let watch = Watch {
            services: self.value(At("watch", "services"), raw.services, default.services, |list| {
                each_once(list)?.iter().map(|text| service(text)).collect()
            })?,
            ports: self.value(At("watch", "ports"), raw.ports, default.ports, |list| {
                each_once(list)?.into_iter().map(port).collect()
            })?,
        };
        match services_span {
            Some(span) if watch.services.is_empty() && watch.ports.is_empty() => {
                Err(self.refuse(At("watch", "services"), &span, Invalid::NothingToWatch))
            }
            _ => Ok(watch),
        }
    }

    fn detect(&self, raw: raw::Detect, default: Detect) -> Result<Detect, ConfigError> {
        let trip_span = raw.trip.as_ref().map(Spanned::span);
        let clear_span = raw.clear.as_ref().map(Spanned::span);
        let trip = raw.trip.map_or(default.thresholds.trip(), Spanned::into_inner);
        let clear = raw.clear.map_or(default.thresholds.clear(), Spanned::into_inner);
        let thresholds = Thresholds::new(trip, clear).map_err(|problem| {
            // At most one of the two lines is to blame for a bad number; for the order of the two, either is.
            let trip_is_bad = matches!(&problem, Invalid::NotAPart(part) if part.to_bits() == trip.to_bits());
            let (key, span) = match (trip_is_bad, trip_span, clear_span) {
                (true, Some(span), _) | (false, Some(span), None) => ("trip", span),
                (_, _, span) => ("clear", span.unwrap_or(0..0)),
            };
            let key = if matches!(problem, Invalid::ClearNotBelowTrip { .. }) {
                "clear"
            } else {
                key
            };
            self.refuse(At("detect", key), &span, problem)
        })?;
        Ok(Detect {
            thresholds,
            dwell: self.value(At("detect", "dwell"), raw.dwell, default.dwell, |t| {
                duration(&t, DWELL)
            })?,
            trip_dwell: self.value(
                At("detect", "trip_dwell"),
                raw.trip_dwell,
                default.trip_dwell,
                |t| duration(&t, DWELL),
            )?,
        })
    }

    fn act(&self, raw: raw::Act, default: Act) -> Result<Act, ConfigError> {
        Ok(Act {
            mode: self.value(At("act", "mode"), raw.mode, default.mode, |text| match &*text {
                "enforce" => Ok(ActMode::Enforce),
                "observe" => Ok(ActMode::Observe),
                _ => Err(Invalid::NotOneOf {
                    text,
                    allowed: &["\"enforce\"", "\"observe\""],
                }),
            })?,
            reload: self.value(
                At("act", "reload"),
                raw.reload,
                default.reload,
                |text| match &*text {
                    "signal" => Ok(Reload::Signal),
                    "command" => Ok(Reload::Command),
                    _ => Err(Invalid::NotOneOf {
                        text,
                        allowed: &["\"signal\"", "\"command\""],
                    }),
                },
            )?,
            min_interval: self.value(
                At("act", "min_interval"),
                raw.min_interval,
                default.min_interval,
                |t| duration(&t, MIN_INTERVAL),
            )?,
            max_reloads_per_hour: self.value(
                At("act", "max_reloads_per_hour"),
                raw.max_reloads_per_hour,
                default.max_reloads_per_hour,
                |n| number(n, 2, 3600),
            )?,
            shed: self.value(At("act", "shed"), raw.shed, default.shed, Ok)?,
            min_patience: self.value(
                At("act", "min_patience"),
                raw.min_patience,
                default.min_patience,
                |t| duration(&t, MIN_PATIENCE),
            )?,
            headroom: self.value(At("act", "headroom"), raw.headroom, default.headroom, |factor| {
                if (1.0..=HEADROOM_MAX).contains(&factor) {
                    Ok(factor)
                } else {
                    Err(Invalid::NotAFactor {
                        factor,
                        max: HEADROOM_MAX,
                    })
                }
            })?,
        })
    }

    fn metrics(&self, raw: raw::Metrics, default: Metrics) -> Result<Metrics, ConfigError> {
        let listen = self.value(At("metrics", "listen"), raw.listen, default.listen, |text| {
            if text.is_empty() {
                return Ok(None);
            }
            // A name would have to be resolved, by a resolver that may be down just when we are needed.
            text.parse().map(Some).map_err(|_| Invalid::NotAnAddress { text })
        })?;
        Ok(Metrics { listen })
    }

    fn kubernetes(&self, raw: raw::Kubernetes, default: Kubernetes) -> Result<Kubernetes, ConfigError> {
        let at = |key| At("kubernetes", key);
        Ok(Kubernetes {
            enabled: self.value(at("enabled"), raw.enabled, default.enabled, Ok)?,
            default_mode: self.value(
                at("default_mode"),
                raw.default_mode,
                default.default_mode,
                pod_mode,
            )?,
            without_api: self.value(at("without_api"), raw.without_api, default.without_api, pod_mode)?,
            keep: self.value(at("keep"), raw.keep, default.keep, |t| duration(&t, KEEP))?,
            events: self.value(at("events"), raw.events, default.events, Ok)?,
        })
    }

    fn paths(&self, raw: raw::Paths, default: Paths) -> Result<Paths, ConfigError> {
        let short = |text: String| match text.len() {
            length if length > RUNTIME_DIR_MAX => Err(Invalid::PathTooLong {
                length,
                max: RUNTIME_DIR_MAX,
            }),
            _ => absolute(&text),
        };
        Ok(Paths {
            state_dir: self.value(At("paths", "state_dir"), raw.state_dir, default.state_dir, |t| {
                absolute(&t)
            })?,
            runtime_dir: self.value(
                At("paths", "runtime_dir"),
                raw.runtime_dir,
                default.runtime_dir,
                short,
            )?,
        })
    }

    fn value<T, U>(
        &self,
        at: At,
        raw: Key<T>,
        default: U,
        prove: impl FnOnce(T) -> Result<U, Invalid>,
    ) -> Result<U, ConfigError> {
        let Some(spanned) = raw else { return Ok(default) };
        let span = spanned.span();
        prove(spanned.into_inner()).map_err(|problem| self.refuse(at, &span, problem))
    }

    fn refuse(&self, At(section, key): At, span: &std::ops::Range<usize>, problem: Invalid) -> ConfigError {
        let line = file::line_of(self.text, span);
        ConfigError::Value {
            path: self.path.to_owned(),
            line,
            section,
            key,
            problem,
        }
    }
}

fn number<T: TryFrom<i64>>(value: i64, min: i64, max: i64) -> Result<T, Invalid> {
    let out_of_range = Invalid::NumberOutOfRange { value, min, max };
    if !(min..=max).contains(&value) {
        return Err(out_of_range);
    }
    T::try_from(value).map_err(|_| out_of_range)
}

fn port(value: i64) -> Result<u16, Invalid> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Invalid::NotAPort { value }),
    }
}

fn duration(text: &str, [min, max]: [SignedDuration; 2]) -> Result<Duration, Invalid> {
    let value: SignedDuration = text.parse().map_err(|_| Invalid::NotADuration {
        text: text.to_owned(),
    })?;
    if value < min || value > max {
        return Err(Invalid::DurationOutOfRange { value, min, max });
    }
    Ok(value.unsigned_abs())
}

/// A path in the cgroup hierarchy, or some parts of one.
fn cgroup(text: String) -> Result<String, Invalid> {
    let names = |part: &str| !matches!(part, "" | "." | "..");
    if text.trim_matches('/').split('/').all(names) {
        Ok(text)
    } else {
        Err(Invalid::NotACgroup { text })
    }
}

fn pod_mode(text: String) -> Result<PodMode, Invalid> {
    PodMode::parse(&text).ok_or(Invalid::NotOneOf {
        text,
        allowed: &["\"enforce\"", "\"observe\"", "\"off\""],
    })
}

fn absolute(text: &str) -> Result<PathBuf, Invalid> {
    let path = Path::new(text);
    // `..` would be resolved by the kernel after symlinks, and shown to people as if it were not.
    let plain = path.is_absolute()
        && !text.contains(char::is_control)
        && path
            .components()
            .all(|part| !matches!(part, Component::ParentDir));
    if plain {
        Ok(path.components().collect())
    } else {
        Err(Invalid::NotAbsolute {
            text: text.to_owned(),
        })
    }
}

/// Only the two types that hand TCP clients to smtpd(8).
fn service(text: &str) -> Result<ServiceId, Invalid> {
    let parts = text.rsplit_once('/').filter(|(name, kind)| {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
        !name.is_empty() && !name.contains(bad) && ["inet", "pass"].contains(kind)
    });
    match parts {
        Some((name, kind)) => Ok(ServiceId {
            name: name.to_owned(),
            kind: kind.to_owned(),
        }),
        None => Err(Invalid::NotAService {
            text: text.to_owned(),
        }),
    }
}

fn each_once<T: PartialEq + ToString>(list: Vec<T>) -> Result<Vec<T>, Invalid> {
    for (i, item) in list.iter().enumerate() {
        if list[..i].contains(item) {
            return Err(Invalid::Twice {
                text: item.to_string(),
            });
        }
    }
    Ok(list)
}
