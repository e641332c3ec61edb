//! Files as they are found in the wild, written for this test: every form that master(5) allows, and the styles of the
//! well-known mail images.

/// Whole files that Postfix accepts, each with a name for messages.
pub(crate) fn odd() -> Vec<(&'static str, Vec<u8>)> {
    let mut files: Vec<_> = TEXTS
        .iter()
        .map(|&(name, text)| (name, text.as_bytes().to_vec()))
        .collect();
    let long = format!(
        "smtp inet n - y - - smtpd\n  -o mynetworks={}\n  -o smtpd_banner=x\n",
        "10.0.0.0/8,".repeat(2000)
    );
    files.push(("one very long line", long.into_bytes()));
    let many: String = (0..200)
        .map(|n| format!("svc{n} unix - - n - - smtp -o max_use=9\n"))
        .collect();
    files.push((
        "two hundred entries",
        format!("{many}smtp inet n - y - - smtpd\n").into_bytes(),
    ));
    files.push((
        "Latin-1 in comments and values",
        b"# caf\xe9\nsmtp inet n - y - - smtpd\n  -o smtpd_banner=caf\xe9\n# \xff\xfe\n".to_vec(),
    ));
    files
}

const TEXTS: [(&str, &str); 20] = [
    ("nothing but one entry", "smtp inet n - y - - smtpd\n"),
    (
        "no newline at the end",
        "pickup unix n - y 60 1 pickup\nsmtp inet n - y - - smtpd",
    ),
    (
        "comments and blanks inside an entry",
        "smtp      inet  n       -       y       -       -       smtpd\n\
         # switched off in spring\n#  -o receive_override_options=no_address_mappings\n\n  \t \n\
         \x20 -o smtpd_client_connection_count_limit=10\n    # indented\n\n   -o smtpd_banner=$myhostname\n\n# next\n\
         pickup    unix  n       -       y       60      1       pickup\n",
    ),
    (
        "every form of an option",
        "smtp inet n - y - - smtpd -v -D\n  -o a1=b\n  -oa2=b\n  -o { a3 = b c }\n  -o {a4=b}\n  -vo a5=b\n\
         \x20 -o { a6 = { x } { y } }\n  -o a7=\n",
    ),
    (
        "an argument in braces",
        "smtp inet n - y - - smtpd -o a1=b\n  { -v }\n  -o a2=b\n",
    ),
    (
        "a group over several lines",
        "smtp inet n - y - - smtpd -o { smtpd_recipient_restrictions =\n    permit_mynetworks,\n# not yet: reject_rbl\n\n\
         \x20   reject_unauth_destination }\n  -o b=c\nrelay unix - - y - - smtp\n",
    ),
    (
        "an entry over several lines",
        "smtp inet\n n - y\n# half way\n\n\t- - smtpd\n -v\nrelay unix - - y - - smtp\n",
    ),
    (
        "CRLF throughout",
        "# head\r\nsmtp inet n - y - - smtpd\r\n  -o a=b\r\n\r\n# tail\r\npickup unix n - y 60 1 pickup\r\n",
    ),
    (
        "CRLF without an end",
        "pickup unix n - y 60 1 pickup\r\nsmtp inet n - y - - smtpd",
    ),
    (
        "CRLF and LF mixed",
        "pickup unix n - y 60 1 pickup\nsmtp inet n - y - - smtpd\r\n  -o a=b\n\r\nrelay unix - - y - - smtp\r\n",
    ),
    (
        "tabs",
        "smtp\tinet\tn\t-\ty\t-\t-\tsmtpd\n\t-o\ta=b\n\t\t-o\t{ c =\td }\n",
    ),
    (
        "duplicates, of which the last counts",
        "smtp inet n - y - 5 smtpd\n25 inet n - y - 6 smtpd\nsmtp unix - - y - - smtp\nsmtp inet n - y - 7 smtpd\n  -v\n",
    ),
    (
        "addresses",
        "smtp inet n - y - - smtpd\n127.0.0.1:10025 inet n - n - 10 smtpd\n[::1]:10025 inet n - n - 10 smtpd\n\
         [127.0.0.1]:10026 inet n - n - 10 smtpd\n::1:10027 inet n - n - - smtpd\n0.0.0.0:2525 inet n - n - - smtpd\n\
         localhost:10028 inet n - n - - smtpd\n:10029 inet n - n - - smtpd\n",
    ),
    (
        "port 25 under many names",
        "[::1]:25 inet n - y - - smtpd -v\n127.0.0.1:smtp inet n - y - 5 smtpd\n  -o { a = b }\n\
         25 inet n - y - - smtpd\n127.0.0.1:25 inet n - y - - smtpd\nsmtp inet n - y - 7 smtpd\n",
    ),
    (
        "postscreen's smtpd, pass before inet",
        "smtp pass - - y - 9 smtpd -o { c = d }\r\nsmtp unix - - y - - smtp\r\nsmtp inet n - y - - smtpd",
    ),
    (
        "all types",
        "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - - smtpd\ndnsblog unix - - y - 0 dnsblog\n\
         tlsproxy unix - - y - 0 tlsproxy\npickup fifo n - y 60 1 pickup\nqmgr unix n - n 300? 1 qmgr\n\
         postlog unix-dgram n - n - 1 postlogd\n",
    ),
    (
        "UTF-8",
        "# Größe prüfen, 日本語\nsmtp inet n - y - - smtpd\n  -o smtpd_banner=größe\n# ünde\n",
    ),
    (
        "in the style of a front with a filter behind",
        "# Exposed\nsmtp inet n - n - - smtpd\n  -o cleanup_service_name=outclean\n10025 inet n - n - - smtpd\n\
         \x20 -o smtpd_sasl_auth_enable=yes\n  -o smtpd_client_restrictions=$check_ratelimit,reject_unlisted_sender,permit\n\
         \x20 -o smtpd_reject_unlisted_recipient={{ no }}\n  -o cleanup_service_name=outclean\n\
         outclean unix n - n - 0 cleanup\n  -o header_checks=pcre:/etc/postfix/outclean_header_filter.cf\n\
         \n# Internal\npickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
         lmtp unix - - n - - lmtp\npostlog unix-dgram n - n - 1 postlogd\n",
    ),
    (
        "in the style of postscreen with many ports",
        "# inter-mx with postscreen on 25/tcp\nsmtp       inet  n       -       n       -       1       postscreen\n\
         smtpd      pass  -       -       n       -       -       smtpd\n  -o smtpd_sasl_auth_enable=no\n\
         \x20 -o smtpd_sender_restrictions=permit_mynetworks,reject_unlisted_sender,reject_unknown_sender_domain\n\n\
         # smtpd tls-wrapped (smtps) on 465/tcp\nsmtps    inet  n       -       n       -       -       smtpd\n\
         \x20 -o smtpd_tls_wrappermode=yes\n  -o tls_preempt_cipherlist=yes\n\n588 inet n      -       n       -       -       smtpd\n\
         \x20 -o smtpd_client_restrictions=permit_mynetworks,permit_sasl_authenticated,reject\n\
         maildrop  unix  -       n       n       -       -       pipe flags=DRhu\n    user=vmail argv=/usr/bin/maildrop -d ${recipient}\n\
         # start zeyple\nzeyple    unix  -       n       n       -       -       pipe\n  user=zeyple argv=/usr/local/bin/zeyple.py ${recipient}\n\
         127.0.0.1:10026 inet  n       -       n       -       10      smtpd\n  -o content_filter=\n  -o mynetworks=127.0.0.0/8\n",
    ),
    (
        "in the style of one image with everything",
        "smtp     inet  n       -       n       -       1       postscreen\nsmtpd    pass  -       -       n       -       -       smtpd\n\
         submission inet n    -       n       -       -       smtpd\n  -o syslog_name=postfix/submission\n\
         \x20 -o smtpd_tls_security_level=encrypt\n  -o milter_macro_daemon_name=ORIGINATING\n\
         uucp      unix  -       n       n       -       -       pipe\n\
         \x20 flags=Fqhu user=uucp argv=uux -r -n -z -a$sender - $nexthop!rmail ($recipient)\n\
         mailman   unix  -       n       n       -       -       pipe\n\
         \x20 flags=FR user=list argv=/usr/lib/mailman/bin/postfix-to-mailman.py\n  ${nexthop} ${user}\n\
         policyd-spf  unix  -       n       n       -       0       spawn\n    user=policyd-spf argv=/usr/bin/policyd-spf\n\
         smtp-amavis unix - - - - 2 smtp\n  -o smtp_data_done_timeout=1200\n  -o max_use=20\n\
         127.0.0.1:10025 inet n - n - - smtpd\n  -o smtpd_restriction_classes=\n  -o receive_override_options=no_header_body_checks\n\
         sender-cleanup unix n - n - 0 cleanup\n  -o header_checks=pcre:/etc/postfix/maps/sender_header_filter.pcre\n",
    ),
];
