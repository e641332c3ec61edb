use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/smtp-sentinel/config.toml"))
}

#[track_caller]
fn refused(text: &str) -> String {
    let sentence = parse(text).expect_err("must be refused").to_string();
    assert!(!sentence.contains('\n'), "one line: {sentence}");
    sentence
}

#[test]
fn an_empty_file_says_what_no_file_says() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse("[detect]\n[act]\n").unwrap(), Config::default());
}

#[test]
fn the_defaults_pass_their_own_validation() {
    let Thresholds { trip, clear } = Config::default().detect.thresholds;
    assert_eq!(
        Thresholds::new(trip, clear).unwrap(),
        Config::default().detect.thresholds
    );
}

#[test]
fn every_key_arrives() {
    let config = parse(
        r#"
        [discovery]
        config_dirs = ["/etc/postfix", "/srv/mx2/etc"]
        containers = true
        cgroups = ["kubepods/burstable", "/machine.slice"]
        max_instances = 3
        [watch]
        services = ["2525/inet"]
        ports = []
        [detect]
        trip = 1
        clear = 0.25
        dwell = "1m 30s"
        trip_dwell = "500ms"
        [act]
        mode = "observe"
        reload = "command"
        min_interval = "5m"
        max_reloads_per_hour = 4
        shed = false
        min_patience = "3s"
        headroom = 2.5
        [metrics]
        listen = "[::1]:9000"
        [kubernetes]
        enabled = true
        default_mode = "off"
        without_api = "enforce"
        keep = "10m"
        events = false
        [paths]
        state_dir = "/srv/state/"
        runtime_dir = "/srv/run"
        "#,
    )
    .unwrap();
    let expected = Config {
        discovery: Discovery {
            config_dirs: vec!["/etc/postfix".into(), "/srv/mx2/etc".into()],
            containers: true,
            cgroups: vec!["kubepods/burstable".to_owned(), "/machine.slice".to_owned()],
            max_instances: 3,
        },
        watch: Watch {
            services: vec![ServiceId {
                name: "2525".to_owned(),
                kind: "inet".to_owned(),
            }],
            ports: vec![],
        },
        detect: Detect {
            thresholds: Thresholds {
                trip: 1.0,
                clear: 0.25,
            },
            dwell: Duration::from_secs(90),
            trip_dwell: Duration::from_millis(500),
        },
        act: Act {
            mode: ActMode::Observe,
            reload: Reload::Command,
            min_interval: Duration::from_secs(300),
            max_reloads_per_hour: 4,
            shed: false,
            min_patience: Duration::from_secs(3),
            headroom: 2.5,
        },
        metrics: Metrics {
            listen: Some("[::1]:9000".parse().unwrap()),
        },
        kubernetes: Kubernetes {
            enabled: true,
            default_mode: PodMode::Off,
            without_api: PodMode::Enforce,
            keep: Duration::from_secs(600),
            events: false,
        },
        paths: Paths {
            state_dir: "/srv/state".into(),
            runtime_dir: "/srv/run".into(),
        },
    };
    assert_eq!(config, expected);
    assert_eq!(config.paths.control_socket(), Path::new("/srv/run/control.sock"));
}

#[test]
fn an_unknown_key_is_named_with_its_line_its_section_and_its_nearest_name() {
    assert_eq!(
        refused("# ours\n\n[watch]\nports = [25]\n\n[detect]\ntripp = 0.9\n"),
        "/etc/smtp-sentinel/config.toml: line 7: unknown key \"tripp\" in [detect]; did you mean \"trip\"? \
         The keys known there are: trip, clear, dwell, trip_dwell"
    );
    let inline = refused("detect = { trip = 0.5, claer = 0.1 }");
    assert!(
        inline.contains("line 1: unknown key \"claer\" in [detect]; did you mean \"clear\"?"),
        "{inline}"
    );
    let dotted = refused("\ndetect.dwel = \"3s\"");
    assert!(
        dotted.contains("line 2: unknown key \"dwel\" in [detect]; did you mean \"dwell\"?"),
        "{dotted}"
    );
    let section = refused("\n[detekt]\ntrip = 0.5");
    assert!(
        section.contains("line 2: unknown section \"detekt\"; did you mean \"detect\"?"),
        "{section}"
    );
    let top = refused("shiny = 1");
    assert!(
        top.contains("line 1: unknown key \"shiny\"; remove it, or use one of: discovery,"),
        "{top}"
    );
    let only_one = refused("[metrics]\nlisten_on = \"\"");
    assert!(only_one.contains("did you mean \"listen\"?"), "{only_one}");
}

#[test]
fn a_key_that_does_nothing_yet_is_unknown() {
    let text = "[act]\noverride = 1";
    assert!(refused(text).contains("line 2: unknown key"), "{text}");
}

#[test]
fn broken_toml_and_wrong_types_name_their_line() {
    for text in [
        "[detect]\ntrip = \"high\"",
        "[detect]\ntrip = = 1",
        "[detect]\n= 1",
        "[watch]\nports = 25",
    ] {
        let sentence = refused(text);
        assert!(sentence.contains("config.toml: line 2: "), "{sentence}");
    }
}

#[test]
fn nonsense_is_refused_with_the_line_and_the_key() {
    for (text, words) in [
        (
            "[detect]\n\ntrip = 0.3",
            "line 3: [detect] clear = 0.4 must be below trip = 0.3",
        ),
        (
            "[detect]\nclear = 0.4\ntrip = 0.4",
            "line 2: [detect] clear = 0.4 must be below",
        ),
        (
            "[detect]\ntrip = 1.5",
            "line 2: [detect] trip must be above 0 and at most 1, and is 1.5",
        ),
        ("[detect]\ntrip = nan", "line 2: [detect] trip must be above 0"),
        (
            "[detect]\ntrip = 0.5\nclear = 0",
            "line 3: [detect] clear must be above 0",
        ),
        (
            "[detect]\ndwell = \"soon\"",
            "line 2: [detect] dwell is not a time: \"soon\"",
        ),
        (
            "[detect]\ndwell = \"-3s\"",
            "line 2: [detect] dwell must lie between 100ms and 1h, and is 3s ago",
        ),
        ("[detect]\ntrip_dwell = \"0s\"", "must lie between"),
        ("[act]\nmin_patience = \"900ms\"", "must lie between 1s and"),
        ("[act]\nmin_interval = \"25h\"", "must lie between 1s and 24h"),
        (
            "[act]\nmax_reloads_per_hour = 1",
            "must lie between 2 and 3600, and is 1",
        ),
        (
            "[act]\nmode = \"on\"",
            "must be one of \"enforce\", \"observe\", and is \"on\"",
        ),
        (
            "[act]\nreload = \"restart\"",
            "must be one of \"signal\", \"command\"",
        ),
        (
            "[watch]\nservices = [\"smtp\"]",
            "names \"smtp\", which is no service",
        ),
        ("[watch]\nservices = [\"smtp/unix\"]", "which is no service"),
        ("[watch]\nservices = [\"smtp/inet\", \"smtp/inet\"]", "twice"),
        (
            "[watch]\nservices = []\nports = []",
            "line 2: [watch] services is empty",
        ),
        ("[watch]\nports = [0]", "names 0, which is no port"),
        ("[watch]\nports = [65536]", "names 65536, which is no port"),
        (
            "[discovery]\nconfig_dirs = [\"etc\"]",
            "is not an absolute path: \"etc\"",
        ),
        (
            "[discovery]\nconfig_dirs = [\"/etc/../x\"]",
            "is not an absolute path",
        ),
        ("[discovery]\nmax_instances = 0", "must lie between 1 and 1024"),
        (
            "[metrics]\nlisten = \"localhost:9825\"",
            "is not an address with a port: \"localhost:9825\"",
        ),
        (
            "[kubernetes]\ndefault_mode = \"on\"",
            "must be one of \"enforce\", \"observe\", \"off\", and is \"on\"",
        ),
        (
            "[kubernetes]\nwithout_api = \"\"",
            "line 2: [kubernetes] without_api must be one of",
        ),
        ("[kubernetes]\nkeep = \"5s\"", "must lie between 1m and 24h"),
        ("[paths]\nstate_dir = \"\"", "is not an absolute path"),
    ] {
        let sentence = refused(text);
        assert!(
            sentence.contains(words),
            "{text:?} gave {sentence:?}, without {words:?}"
        );
    }
    let long = format!("[paths]\nruntime_dir = \"/{}\"", "x".repeat(90));
    assert!(refused(&long).contains("is 91 bytes long"));
}

#[test]
fn an_empty_listen_is_off() {
    assert_eq!(parse("[metrics]\nlisten = \"\"").unwrap().metrics.listen, None);
}

#[test]
fn only_an_unnamed_file_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    assert!(matches!(
        Config::load(Some(&path)),
        Err(ConfigError::Missing { .. })
    ));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "[act]\nmode = \"observe\"\n").unwrap();
    for (mode, ok) in [
        (0o600, true),
        (0o644, true),
        (0o664, false),
        (0o646, false),
        (0o666, false),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let result = Config::load(Some(&path));
        assert_eq!(result.is_ok(), ok, "mode {mode:o}: {result:?}");
        if let Err(error) = result {
            assert!(error.to_string().contains("chmod go-w"), "{error}");
        }
    }
}

#[test]
fn a_fifo_or_a_directory_in_its_place_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(
        Config::load(Some(&fifo)),
        Err(ConfigError::NotAFile { .. })
    ));
    assert!(matches!(
        Config::load(Some(dir.path())),
        Err(ConfigError::NotAFile { .. })
    ));
}

/// The file that the packages ship: the defaults, but for the mode, and every key there is.
#[test]
fn the_example_configuration_is_the_defaults_in_observe_mode() {
    let text = include_str!("../../../deploy/config.toml");
    let mut expected = Config::default();
    expected.act.mode = ActMode::Observe;
    assert_eq!(parse(text).unwrap(), expected);

    // A key that is missing there gets no complaint from the parser; so ask for each by name, from serde's own list.
    let table: toml::Table = toml::from_str(text).unwrap();
    let known = |text: &str| match parse(text) {
        Err(ConfigError::UnknownKey(unknown)) => unknown.known,
        other => panic!("{other:?}"),
    };
    for section in known("x = 1") {
        let keys = known(&format!("[{section}]\nx = 1"));
        assert!(!keys.is_empty());
        for key in keys {
            assert!(
                table[&section].get(&key).is_some(),
                "[{section}] {key} is not in deploy/config.toml"
            );
        }
    }
}

proptest! {
    #[test]
    fn thresholds_are_always_apart_and_in_range(trip in -0.5..1.5f64, clear in -0.5..1.5f64) {
        match Thresholds::new(trip, clear) {
            Ok(t) => prop_assert!(0.0 < t.clear() && t.clear() < t.trip() && t.trip() <= 1.0),
            Err(_) => prop_assert!(!(0.0 < clear && clear < trip && trip <= 1.0)),
        }
    }

    #[test]
    fn whatever_the_file_holds_the_answer_is_one_line(text in "(\\[[a-z]{0,8}\\]|[a-z_]{1,6} ?= ?[-0-9a-z\"\\[\\]{}.]{0,9}|#.?|\n){0,12}") {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

#[test]
fn a_cgroup_is_a_path_or_parts_of_one() {
    for bad in ["", "/", "a//b", "../kubepods", "a/.."] {
        let sentence = refused(&format!("[discovery]\ncgroups = [{bad:?}]\n"));
        assert!(sentence.contains("cgroup"), "{sentence}");
    }
}
