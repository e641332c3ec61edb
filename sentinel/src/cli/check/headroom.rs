//! What speaks for headroom in this Postfix and what against it, and a factor.

use std::collections::BTreeMap;

use super::{Finding, Verdict};
use crate::headroom;
use crate::postfix::Master;
use crate::postfix::postconf::Postconf;
use crate::postfix::processes::Processes;
use crate::postfix::services::WatchedService;
use crate::signals::ProcessLimit;

/// What is proposed where nothing speaks against it. A burst that takes all slots needs some that it does not take;
/// more than this hardly shows in the benchmark.
const PROPOSED: f64 = 4.0;

/// Parameters of smtpd that say whom it asks for each session, and how many may come.
const PARAMETERS: [&str; 14] = [
    "smtpd_client_connection_count_limit",
    "smtpd_milters",
    "smtpd_proxy_filter",
    "smtpd_client_restrictions",
    "smtpd_helo_restrictions",
    "smtpd_sender_restrictions",
    "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions",
    "smtpd_data_restrictions",
    "smtpd_end_of_data_restrictions",
    "local_recipient_maps",
    "relay_recipient_maps",
    "virtual_mailbox_maps",
    "virtual_alias_maps",
];

/// Map types that connect to a database from every smtpd, unless they go through proxymap(8).
const DATABASES: [&str; 6] = ["mysql:", "pgsql:", "ldap:", "mongodb:", "sqlite:", "socketmap:"];

/// One finding for each service that may be touched.
pub(super) fn findings(master: &Master, services: &[WatchedService], factor: f64) -> Vec<Finding> {
    // It gets none; see docs/containers.md.
    if master.root.container().is_some() {
        return Vec::new();
    }
    let parameters = Postconf::of(master)
        .and_then(|postconf| postconf.parameters(&master.config_dir, &[], &PARAMETERS).ok())
        .unwrap_or_default();
    let touched = services.iter().filter(|service| service.actionable.is_ok());
    touched
        .filter_map(|service| finding(master, service, factor, &parameters))
        .collect()
}

fn finding(
    master: &Master,
    service: &WatchedService,
    factor: f64,
    parameters: &BTreeMap<String, String>,
) -> Option<Finding> {
    let ProcessLimit::Of(limit) = service.limit else {
        return None;
    };
    let slots = service.own_limit.unwrap_or(limit);
    let against = against(parameters);
    let wanted = if factor > 1.0 { factor } else { PROPOSED };
    let (room, proposal) = match room(master, service, slots, wanted) {
        Ok(target) if target.bound_by.is_empty() => {
            (format!("there is room for maxproc {}", target.maxproc), wanted)
        }
        Ok(target) => {
            let factor = f64::from(target.maxproc) / f64::from(slots);
            let text = format!(
                "there is room for maxproc {}, bounded by {}",
                target.maxproc, target.bound_by
            );
            (text, (factor * 10.0).floor() / 10.0)
        }
        Err(why) => (why, 1.0),
    };
    let mut detail = format!("headroom = {factor:.1} now; maxproc {slots}, and {room}");
    for reason in &against {
        detail.push_str("; against it: ");
        detail.push_str(reason);
    }
    detail.push_str(
        "; the listen backlog stays what it was when Postfix was started, so it is no longer queue, only more slots",
    );
    let subject = format!("{} {} headroom", master.config_dir.display(), service.id);
    let on = factor > 1.0;
    Some(match (on, against.is_empty()) {
        (true, true) => Finding::yes(subject, detail),
        (true, false) => Finding::new(
            Verdict::Degraded,
            subject,
            detail,
            "see that what is named bears so many more at once, or set [act] headroom = 1.0",
        ),
        (false, true) => Finding::yes(
            subject,
            format!("{detail}; [act] headroom = {proposal:.1} is proposed"),
        ),
        (false, false) => Finding::yes(
            subject,
            format!("{detail}; leave it off until what is named bears {proposal:.1} times as many at once"),
        ),
    })
}

fn room(
    master: &Master,
    service: &WatchedService,
    slots: u32,
    factor: f64,
) -> Result<headroom::Target, String> {
    let smtpd = Processes::default()
        .update(master)
        .map_err(|error| format!("its processes are not known: {error}"))?;
    let own = smtpd.iter().filter(|one| one.service == service.id);
    let process = headroom::of_processes(own.map(|one| one.pid)).ok_or(
        "no smtpd of it runs now, so how much memory one takes is not known; ask again when one does",
    )?;
    headroom::target(slots, factor, process, &headroom::measure(master.pid)?)
}

/// What is sized to maxproc and may break before the slots run out.
fn against(parameters: &BTreeMap<String, String>) -> Vec<String> {
    let mut reasons = Vec::new();
    for (name, value) in parameters {
        let words = || {
            value
                .split([',', ' ', '\t', '\n'])
                .filter(|word| !word.is_empty())
        };
        if let Some(map) = words().find(|word| DATABASES.iter().any(|kind| word.starts_with(kind))) {
            reasons.push(format!(
                "{name} asks {map} from every smtpd, so each new one is one more connection to it (proxy:{map} shares them)"
            ));
        }
        if let Some(service) = value.split("check_policy_service").nth(1) {
            let service = service.split([',', ' ', '\t']).find(|word| !word.is_empty());
            reasons.push(format!(
                "{name} asks the policy service {}, which must bear as many clients",
                service.unwrap_or("that it names")
            ));
        }
    }
    let set = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
    if set("smtpd_client_connection_count_limit").is_some_and(|limit| limit == "0") {
        reasons.push(
            "smtpd_client_connection_count_limit is 0, so one client may take all slots, new ones too"
                .to_owned(),
        );
    }
    if let Some(milters) = set("smtpd_milters") {
        reasons.push(format!(
            "smtpd_milters = {milters}, which must bear as many clients"
        ));
    }
    if let Some(filter) = set("smtpd_proxy_filter") {
        reasons.push(format!(
            "smtpd_proxy_filter = {filter}, which must bear as many clients"
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn what_every_smtpd_asks_by_itself_speaks_against_it() {
        let reasons = against(&parameters(&[
            ("virtual_mailbox_maps", "hash:/etc/x, mysql:/etc/postfix/users.cf"),
            ("virtual_alias_maps", "proxy:mysql:/etc/postfix/aliases.cf"),
            (
                "smtpd_recipient_restrictions",
                "reject_unauth_destination, check_policy_service unix:private/policy, permit",
            ),
            ("smtpd_milters", "inet:127.0.0.1:11332"),
            ("smtpd_proxy_filter", ""),
        ]));
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert!(
            reasons
                .iter()
                .any(|reason| reason.contains("unix:private/policy,")
                    || reason.contains("unix:private/policy"))
        );
        assert!(
            reasons
                .iter()
                .any(|reason| reason.contains("mysql:/etc/postfix/users.cf"))
        );
        assert!(
            reasons
                .iter()
                .any(|reason| reason.contains("inet:127.0.0.1:11332"))
        );
    }

    #[test]
    fn a_plain_postfix_has_nothing_against_it() {
        let plain = [
            ("smtpd_client_connection_count_limit", "50"),
            ("smtpd_milters", ""),
            ("local_recipient_maps", "unix:passwd.byname"),
        ];
        assert_eq!(against(&parameters(&plain)), [""; 0]);
    }
}
