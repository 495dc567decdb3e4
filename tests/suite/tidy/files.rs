//! The house rules for files that are no source: manifests and who may depend on whom, the golden
//! contract, service units, links between pages. Knows no behaviour.

use super::{assert_tidy, read, root, sources};

/// Which of our crates each crate may name, dependencies of tests and builds included.
const MAY_NAME: [(&str, &[&str]); 7] = [
    ("proto", &[]),
    ("shaders", &[]),
    ("daemon/engine", &["hearth-shaders"]),
    ("daemon", &["hearth-proto", "hearth-engine"]),
    ("client", &["hearth-proto"]),
    (
        "tests",
        &[
            "hearth",
            "hearthd",
            "hearth-proto",
            "hearth-engine",
            "hearth-shaders",
        ],
    ),
    ("tests/vulkan_layer", &[]),
];

/// Crates from outside that only some of ours may name.
const OWNED: [(&str, &[&str]); 6] = [
    ("wgpu", &["daemon/engine"]),
    ("naga", &["shaders"]),
    ("tokenizers", &["daemon/engine"]),
    ("minijinja", &["daemon/engine"]),
    ("tonic", &["proto", "daemon", "client", "tests"]),
    ("tokio", &["daemon", "client", "tests"]),
];

#[test]
fn the_contract_has_its_golden_description() {
    let golden = read("proto/descriptor.txtpb");
    for service in ["Inference", "Models", "Daemon"] {
        assert!(
            golden.contains(service),
            "proto/descriptor.txtpb does not tell of {service}"
        );
    }
}

#[test]
fn crates_depend_one_way_and_through_one_table() {
    let mut faults = Vec::new();
    for (folder, allowed) in MAY_NAME {
        let manifest: toml::Table = read(&format!("{folder}/Cargo.toml"))
            .parse()
            .expect("the manifest is TOML");
        if manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .is_none()
        {
            faults.push(format!("{folder} does not take the workspace's lints"));
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in table {
                let from_table = value.get("workspace").and_then(toml::Value::as_bool);
                if from_table != Some(true) || value.get("version").is_some() {
                    faults.push(format!("{folder}: {name} is not `workspace = true`"));
                }
                if name.starts_with("hearth") && !allowed.contains(&name.as_str()) {
                    faults.push(format!("{folder} may not name {name}"));
                }
                let owners = OWNED.iter().find(|(owned, _)| owned == name);
                if owners.is_some_and(|(_, owners)| !owners.contains(&folder)) {
                    faults.push(format!("{folder} may not name {name}"));
                }
            }
        }
    }
    assert_tidy(&faults);
}

/// The assignments of a systemd unit as (section, key, value).
fn unit_entries(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut entries = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            name.clone_into(&mut section);
        } else {
            let (key, value) = line
                .split_once('=')
                .unwrap_or_else(|| panic!("no `=` in {line:?}"));
            entries.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    entries
}

#[test]
fn the_systemd_unit_keeps_its_promises() {
    let entries = unit_entries(&read("systemd/hearthd.service"));
    let wanted = [
        ("Service", "Restart", "on-failure"),
        ("Service", "LimitCORE", "0"),
        ("Service", "UMask", "0077"),
        ("Service", "NoNewPrivileges", "yes"),
        ("Service", "RestrictAddressFamilies", "AF_UNIX"),
        ("Install", "WantedBy", "default.target"),
    ];
    for (section, key, value) in wanted {
        let has = entries
            .iter()
            .any(|entry| (&*entry.0, &*entry.1, &*entry.2) == (section, key, value));
        assert!(has, "hearthd.service lacks {key}={value}");
    }
    // These would hide the GPU, its driver's compiler or the socket.
    for key in ["PrivateDevices", "MemoryDenyWriteExecute"] {
        assert!(
            entries.iter().all(|entry| entry.1 != key),
            "hearthd.service has {key}"
        );
    }
    assert!(
        entries
            .iter()
            .all(|entry| ["Unit", "Service", "Install"].contains(&&*entry.0))
    );
}

#[test]
fn the_launch_agent_is_well_formed() {
    let text = read("launchd/org.hearth.hearthd.plist");
    let body = text.split("<plist").nth(1).expect("a plist element");
    let mut open = vec!["plist".to_owned()];
    for tag in body.split('<').skip(1) {
        let name = tag.split('>').next().expect("a tag ends");
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(closed), "tags nest");
        } else if !name.ends_with('/') && !name.starts_with("!--") {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
    assert!(body.contains("<key>Label</key>\n    <string>org.hearth.hearthd</string>"));
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let mut faults = Vec::new();
    for page in sources(&[".md"]) {
        let folder = root()
            .join(&page.path)
            .parent()
            .expect("a page lies in a folder")
            .to_path_buf();
        for rest in page.text.split("](").skip(1) {
            let link = rest.split([')', '#']).next().unwrap_or_default();
            if !link.is_empty() && !link.contains("://") && !folder.join(link).exists() {
                faults.push(format!("{}: {link} does not exist", page.path));
            }
        }
    }
    assert_tidy(&faults);
}
