//! From OpenMetrics text to the Prometheus text format 0.0.4.
//!
//! The two differ in three things that we use: in 0.0.4 a counter's HELP and TYPE carry the whole name of its samples,
//! with `_total`; there is no UNIT; there is no EOF. Works by line, which is safe: a newline in a label value is
//! escaped in both, and only metadata begins with `#`.

/// `openmetrics` is what prometheus-client wrote: each TYPE stands right behind its HELP.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 512);
    let mut lines = openmetrics.split_terminator('\n').peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let is_counter = [Some(line), lines.peek().copied()]
            .into_iter()
            .flatten()
            .any(is_counter_type);
        match line
            .strip_prefix("# ")
            .filter(|_| is_counter)
            .map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>())
            .as_deref()
        {
            Some([keyword, name, rest]) => text.extend(["# ", keyword, " ", name, "_total ", rest]),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

fn is_counter_type(line: &str) -> bool {
    line.starts_with("# TYPE ") && line.ends_with(" counter")
}

#[cfg(test)]
mod tests {
    use super::to_prometheus;

    #[test]
    fn only_what_differs_is_changed() {
        let openmetrics = "# HELP a Of a counter\n# TYPE a counter\na_total{x=\"# EOF\\n# UNIT \"} 1\n\
                           # HELP b_seconds Of b\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 1\n\
                           # HELP c x\n# TYPE c counter\n# EOF\n";
        let prometheus = "# HELP a_total Of a counter\n# TYPE a_total counter\na_total{x=\"# EOF\\n# UNIT \"} 1\n\
                          # HELP b_seconds Of b\n# TYPE b_seconds gauge\nb_seconds 1\n\
                          # HELP c_total x\n# TYPE c_total counter\n";
        assert_eq!(to_prometheus(openmetrics), prometheus);
    }

    /// The last sample of a family is followed by the next family's metadata, and must not be taken for it.
    #[test]
    fn a_sample_before_a_counter_is_left_alone() {
        let text = "b 1\n# HELP c x\n# TYPE c counter\n";
        assert_eq!(
            to_prometheus(text),
            "b 1\n# HELP c_total x\n# TYPE c_total counter\n"
        );
    }
}
