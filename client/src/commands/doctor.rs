//! `hearth doctor`: looks at everything Hearth needs, from the driver to the model, and says how to
//! mend what is amiss. It changes nothing and works without a daemon.

use std::path::Path;

use hearth::v1::{DaemonStatus, LifecycleState};
use hearth::{Client, Error};

use crate::cli::Global;
use crate::exit::{Failure, Kind};
use crate::output::{Output, bytes};

use super::{doctor_driver, doctor_machine};
use super::{may_start, socket};

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Works, but not as well as it could.
    Poor,
    /// Keeps Hearth from working.
    Bad,
}

/// What was found about one thing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The thing.
    pub(super) name: &'static str,
    /// How it is.
    pub(super) verdict: Verdict,
    /// What was seen.
    pub(super) detail: String,
    /// How to mend it.
    pub(super) mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub(super) fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            detail: detail.into(),
            mend: None,
        }
    }

    /// Works, but could be better.
    pub(super) fn poor(
        name: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Poor,
            detail: detail.into(),
            mend: Some(mend.into()),
        }
    }

    /// Keeps Hearth from working.
    pub(super) fn bad(
        name: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Bad,
            detail: detail.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Examines everything and reports it.
///
/// # Errors
/// Something keeps Hearth from working, or the report cannot be written.
pub(crate) async fn doctor(global: &Global, output: Output) -> Result<(), Failure> {
    let mut bad = 0;
    let mut report = |findings: Vec<Finding>| -> Result<(), Failure> {
        for finding in findings {
            bad += usize::from(finding.verdict == Verdict::Bad);
            show(&finding, output)?;
        }
        Ok(())
    };
    report(doctor_driver::examine())?;
    report(vec![doctor_machine::program()])?;
    let path = socket(global)?;
    report(vec![doctor_machine::directory(&path)])?;
    report(daemon(&path, global).await)?;
    report(
        [doctor_machine::memory(), doctor_machine::power()]
            .into_iter()
            .flatten()
            .collect(),
    )?;
    match bad {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Runtime, "one thing needs mending")),
        n => Err(Failure::new(
            Kind::Runtime,
            format!("{n} things need mending"),
        )),
    }
}

fn show(finding: &Finding, output: Output) -> Result<(), Failure> {
    let verdict = match finding.verdict {
        Verdict::Good => "ok",
        Verdict::Poor => "warning",
        Verdict::Bad => "bad",
    };
    if output.json {
        return Ok(output.object(&serde_json::json!({
            "name": finding.name,
            "verdict": verdict,
            "detail": finding.detail,
            "mend": finding.mend,
        }))?);
    }
    output.line(&format!(
        "{verdict:<8} {:<11} {}",
        finding.name, finding.detail
    ))?;
    if let Some(mend) = &finding.mend {
        output.line(&format!("{:20} mend: {mend}", ""))?;
    }
    Ok(())
}

/// Whether the daemon answers, and what it says of itself.
async fn daemon(socket: &Path, global: &Global) -> Vec<Finding> {
    let log = hearth::daemon_log_path()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let client = match Client::connect_to(socket).await {
        Ok(client) => client,
        Err(error) => return vec![unreachable(&error, socket, &log, global)],
    };
    match client.status().await {
        Ok(status) => told_by_daemon(&status, &log),
        Err(error) => vec![Finding::bad(
            "daemon",
            format!("takes the connection on {}, but: {error}", socket.display()),
            format!("look at its log ({log}), or end it and try again"),
        )],
    }
}

fn unreachable(error: &Error, socket: &Path, log: &str, global: &Global) -> Finding {
    let at = socket.display();
    match error {
        Error::NotRunning { .. } if may_start(global) => Finding::good(
            "daemon",
            "does not run; the next command that needs it starts it",
        ),
        Error::NotRunning { .. } => Finding::poor(
            "daemon",
            "does not run, and starting it is turned off",
            "run `hearthd`",
        ),
        Error::Refused { pid: Some(pid), .. } => Finding::bad(
            "daemon",
            format!("runs as pid {pid}, but does not answer on {at}"),
            format!("look at its log ({log}), or end it: kill {pid}"),
        ),
        Error::Denied { .. } => Finding::bad(
            "daemon",
            format!("{at}: permission denied"),
            "the daemon serves one user: run as that user, or set HEARTH_SOCKET",
        ),
        other => Finding::bad(
            "daemon",
            Failure::new(Kind::Runtime, other.to_string()).message(),
            format!("look at its log ({log})"),
        ),
    }
}

fn told_by_daemon(status: &DaemonStatus, log: &str) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let about = format!("pid {} answers on {}", status.pid, status.socket_path);
    let mut findings = vec![if status.version == own {
        Finding::good("daemon", about)
    } else {
        Finding::poor(
            "daemon",
            format!(
                "{about}; it is version {}, this command is {own}",
                status.version
            ),
            format!(
                "end it, and the new one starts by itself: kill {}",
                status.pid
            ),
        )
    }];
    let state = LifecycleState::try_from(status.state).unwrap_or_default();
    match &status.adapter {
        Some(adapter) if adapter.software => findings.push(Finding::poor(
            "adapter",
            format!("{} runs on the CPU: right, but slow", adapter.name),
            "install the GPU's Vulkan driver, if this machine has a GPU",
        )),
        Some(adapter) => {
            findings.push(Finding::good(
                "adapter",
                format!("{} ({})", adapter.name, adapter.backend),
            ));
        }
        None if state == LifecycleState::Starting => {
            findings.push(Finding::good("adapter", "is being opened"));
        }
        None => findings.push(Finding::bad(
            "adapter",
            status
                .reason
                .clone()
                .unwrap_or_else(|| "none is open".to_owned()),
            format!("mend the driver above, and look at the log ({log})"),
        )),
    }
    findings.push(model(status, state));
    findings
}

fn model(status: &DaemonStatus, state: LifecycleState) -> Finding {
    const NAME: &str = "model";
    if let Some(warm) = &status.model {
        let name = warm
            .info
            .as_ref()
            .map(|info| info.name.clone())
            .unwrap_or_default();
        let others = match status.models.len().saturating_sub(1) {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        let weights = bytes(warm.weights_bytes);
        let detail = format!("{name} is warm ({weights} of weights){others}");
        return match warm
            .info
            .as_ref()
            .is_some_and(|info| info.has_chat_template)
        {
            true => Finding::good(NAME, detail),
            false => Finding::poor(
                NAME,
                format!("{detail}, but has no chat template"),
                "use `hearth run --raw`, or a model that was tuned to talk",
            ),
        };
    }
    if let Some(loading) = &status.loading {
        return Finding::good(NAME, format!("{} is being loaded", loading.name));
    }
    let detail = match (&status.reason, state) {
        (Some(reason), LifecycleState::Ready) => reason.clone(),
        _ => "none is warm".to_owned(),
    };
    Finding::poor(
        NAME,
        detail,
        "`hearth ls` shows what there is; then `hearth load NAME` or `hearth import FILE`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_software_adapter_and_a_missing_model_are_warnings() {
        let status = DaemonStatus {
            state: LifecycleState::Ready.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: Some(hearth::v1::Adapter {
                software: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        let findings = told_by_daemon(&status, "");
        let verdicts: Vec<_> = findings.iter().map(|f| (f.name, f.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("daemon", Verdict::Good),
                ("adapter", Verdict::Poor),
                ("model", Verdict::Poor)
            ]
        );
    }
}
