//! Text of master.cf and main.cf for the private Postfix.

use std::path::Path;

/// All services that a message from smtpd(8) to discard(8) passes, and none that reaches out of the lab.
const INNER: &str = "\
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
showq     unix  n       -       n       -       -       showq
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
";

/// A plain master.cf: `smtp inet` with `maxproc` slots and everything that it needs.
pub fn plain(maxproc: u32) -> String {
    format!("{}{INNER}", smtp(maxproc))
}

/// Any text for the watched services, followed by everything that they need.
pub fn with_inner(services: &str) -> String {
    format!("{services}{INNER}")
}

/// The one line of `smtp inet`.
pub fn smtp(maxproc: u32) -> String {
    format!("smtp      inet  n       -       n       -       {maxproc:<7} smtpd\n")
}

/// postscreen on port 25, as POSTSCREEN_README has it, and `maxproc` slots of smtpd behind it.
pub fn postscreen(maxproc: u32) -> String {
    format!(
        "smtp      inet  n       -       n       -       1       postscreen\n\
         smtpd     pass  -       -       n       -       {maxproc:<7} smtpd\n\
         dnsblog   unix  -       -       n       -       0       dnsblog\n\
         tlsproxy  unix  -       -       n       -       0       tlsproxy\n"
    )
}

/// What administrators write over the years: tabs, comments inside an entry, continuation lines, a CRLF, blank lines with
/// blanks, another service with its own options, and no newline at the end. Every byte must come back.
pub fn weathered(maxproc: u32) -> String {
    let entry = format!(
        "# Postfix master process configuration file.  Ask Anna before you touch this!\r\n\
         \t \n\
         smtp\tinet  n  -\tn   -  {maxproc}  smtpd\n\
         # -o content_filter=old-filter:[127.0.0.1]:10024\n  \
           -o smtpd_banner=$myhostname\n\
         #  comment between two continuation lines, with a blank at its end: \n\
         \t-o {{ smtpd_client_port_logging = yes }}\n\
         \n\
         #submission inet n       -       n       -       -       smtpd\n\
         127.0.0.1:10025 inet n - n - 10 smtpd\n  \
           -o syslog_name=postfix/reinject -o smtpd_tls_security_level=none\n"
    );
    format!("{entry}{}", INNER.trim_end())
}

/// main.cf: every transport discards, no DNS, the log into a file, everything below `base`. smtpd's timeouts and limits are
/// the defaults, since they are what an attack meets in the field.
pub fn main_cf(base: &Path, extra: &str) -> String {
    let base = base.display();
    format!(
        "compatibility_level = 3.6
config_directory = {base}/config
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/mail.log
maillog_file_prefixes = {base}
inet_interfaces = all
inet_protocols = ipv4
myhostname = mx.lab.invalid
mydestination = lab.invalid
mynetworks = 127.0.0.0/8
local_recipient_maps =
alias_maps =
alias_database =
smtpd_peername_lookup = no
disable_dns_lookups = yes
local_transport = discard:
default_transport = discard:
relay_transport = discard:
virtual_transport = discard:
{extra}
"
    )
}
