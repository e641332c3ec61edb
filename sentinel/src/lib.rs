//! SMTP Sentinel: sees the smtpd slots of a Postfix run out, and switches stress mode on before they have.
//!
//! One room per verb, plain values across the doors, arrows one way:
//! [`probes`] and [`signals`] measure, [`detector`] judges, [`controller`] decides, [`actuator`] changes,
//! [`metrics`] and [`status`] report. [`run`] wires them; [`privileges`] gives up what they do not need, [`notify`] tells
//! systemd how it goes, [`kubernetes`] knows what the cluster calls a container and wants of it, and [`clock`] is the
//! only place that reads the time.

pub mod actuator;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod controller;
pub mod detector;
pub mod headroom;
pub mod kubernetes;
pub mod metrics;
pub mod notify;
pub mod postfix;
pub mod privileges;
pub mod probes;
pub mod run;
pub mod shed;
pub mod signals;
pub mod sock_diag;
pub mod status;
mod terminal;
