//! The system-call filters of a unit, as systemd makes them (src/shared/seccomp-util.c): one for each setting, and a call
//! is let through when all of them let it through. What is in a group (`@system-service`) systemd-analyze says.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use seccompiler::{BpfProgram, TargetArch};
use serde_json::{Value, json};

use super::Unit;

pub(super) const APPLIED: [&str; 6] = [
    "SystemCallFilter",
    "SystemCallErrorNumber",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "MemoryDenyWriteExecute",
    "RestrictSUIDSGID",
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// include/uapi/linux/sched.h, by the names of RestrictNamespaces=.
const NAMESPACES: [(&str, u64); 7] = [
    ("mnt", 0x0002_0000),
    ("cgroup", 0x0200_0000),
    ("uts", 0x0400_0000),
    ("ipc", 0x0800_0000),
    ("user", 0x1000_0000),
    ("pid", 0x2000_0000),
    ("net", 0x4000_0000),
];

pub(super) fn programs(unit: &Unit) -> Result<Vec<BpfProgram>> {
    ensure!(
        unit.last("SystemCallErrorNumber") == Some("EPERM"),
        "only SystemCallErrorNumber=EPERM is understood"
    );
    // The list comes last: loading the others takes calls that it need not have.
    let mut programs = vec![
        compile(&denied(&address_families(unit)?, EAFNOSUPPORT))?,
        // Its flags are in memory, where a filter cannot look; systemd has callers fall back to clone.
        compile(&denied(&[json!({ "syscall": "clone3" })], ENOSYS))?,
    ];
    let mut rules = namespaces(unit)?;
    if unit.yes("MemoryDenyWriteExecute") {
        rules.extend([
            // PROT_WRITE and PROT_EXEC together; and PROT_EXEC later, on what may have been written.
            masked("mmap", 2, 6),
            masked("mprotect", 2, 4),
            masked("pkey_mprotect", 2, 4),
            // SHM_EXEC
            masked("shmat", 2, 0o100_000),
        ]);
    }
    if unit.yes("RestrictSUIDSGID") {
        for (call, mode) in [
            ("chmod", 1),
            ("fchmod", 1),
            ("fchmodat", 2),
            ("fchmodat2", 2),
            ("mkdir", 1),
            ("mkdirat", 2),
            ("mknod", 1),
            ("mknodat", 2),
            ("creat", 1),
        ] {
            rules.extend([masked(call, mode, 0o4000), masked(call, mode, 0o2000)]);
        }
    }
    let native: Vec<_> = rules.into_iter().filter(is_native).collect();
    programs.push(compile(&denied(&native, EPERM))?);
    programs.push(compile(&allowed(&list(unit)?))?);
    Ok(programs)
}

/// The calls that SystemCallFilter= lets through: the first line says that it is a list of those, later ones add and
/// take away (`~`).
fn list(unit: &Unit) -> Result<BTreeSet<String>> {
    let mut calls = BTreeSet::new();
    // Always in, so that a process can begin and end (systemd.exec(5)).
    expand("@default", &mut calls)?;
    for (at, line) in unit.lines("SystemCallFilter").iter().enumerate() {
        let (away, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, line.as_str()),
        };
        ensure!(at > 0 || !away, "a list that begins with `~` is not understood");
        let mut named = BTreeSet::new();
        for word in words.split_whitespace() {
            expand(word, &mut named)?;
        }
        if away {
            calls.retain(|call| !named.contains(call));
        } else {
            calls.extend(named);
        }
    }
    // Groups name the calls of all architectures.
    calls.retain(|call| is_native(&json!({ "syscall": call })));
    ensure!(
        calls.contains("execve") && calls.contains("bpf"),
        "a strange list: {calls:?}"
    );
    Ok(calls)
}

fn expand(word: &str, calls: &mut BTreeSet<String>) -> Result<()> {
    if !word.starts_with('@') {
        calls.insert(word.to_owned());
        return Ok(());
    }
    let output = Command::new("systemd-analyze")
        .args(["syscall-filter", word])
        .output()
        .context("running systemd-analyze; `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "systemd-analyze does not know {word}");
    let text = String::from_utf8(output.stdout)?;
    for member in text.lines().skip(1).map(str::trim) {
        if !member.is_empty() && !member.starts_with('#') {
            expand(member, calls)?;
        }
    }
    Ok(())
}

fn address_families(unit: &Unit) -> Result<Vec<Value>> {
    let mut unlike_all = Vec::new();
    for name in unit.words("RestrictAddressFamilies") {
        let number = match name {
            "AF_UNIX" => 1,
            "AF_INET" => 2,
            "AF_INET6" => 10,
            "AF_NETLINK" => 16,
            _ => bail!("{name} is not understood"),
        };
        unlike_all.push(json!({ "index": 0, "type": "dword", "op": "ne", "val": number }));
    }
    ensure!(!unlike_all.is_empty(), "the unit has no RestrictAddressFamilies=");
    Ok(vec![json!({ "syscall": "socket", "args": unlike_all })])
}

/// `yes` forbids all, a list allows what it names.
fn namespaces(unit: &Unit) -> Result<Vec<Value>> {
    let restricted = unit
        .last("RestrictNamespaces")
        .context("no RestrictNamespaces=")?;
    let allowed: Vec<_> = restricted
        .split_whitespace()
        .filter(|&word| word != "yes")
        .collect();
    let mut rules = vec![
        // To whatever the descriptor is of.
        json!({ "syscall": "setns", "args": [{ "index": 1, "type": "dword", "op": "eq", "val": 0 }] }),
    ];
    for (name, flag) in NAMESPACES {
        if !allowed.contains(&name) {
            rules.extend([
                masked("unshare", 0, flag),
                masked("clone", 0, flag),
                masked("setns", 1, flag),
            ]);
        }
    }
    Ok(rules)
}

/// The call with all these bits in an argument.
fn masked(call: &str, argument: u8, bits: u64) -> Value {
    let condition = json!({ "index": argument, "type": "dword", "op": { "masked_eq": bits }, "val": bits });
    json!({ "syscall": call, "args": [condition] })
}

fn denied(rules: &[Value], error: u32) -> Value {
    json!({ "mismatch_action": "allow", "match_action": { "errno": error }, "filter": rules })
}

fn allowed(calls: &BTreeSet<String>) -> Value {
    let rules: Vec<_> = calls.iter().map(|call| json!({ "syscall": call })).collect();
    json!({ "mismatch_action": { "errno": EPERM }, "match_action": "allow", "filter": rules })
}

/// Whether the machine's architecture has the call.
fn is_native(rule: &Value) -> bool {
    let bare = json!({ "syscall": rule["syscall"] });
    compile(&denied(&[bare], EPERM)).is_ok()
}

fn compile(filter: &Value) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(ARCH)?;
    let text = json!({ "filter": filter }).to_string();
    let mut programs = seccompiler::compile_from_json(text.as_bytes(), arch)?;
    programs.remove("filter").context("the filter was not compiled")
}
