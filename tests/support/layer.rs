//! The tests' Vulkan layer between the engine and the driver, in a process of the test's own: the loader
//! reads its environment when it is first used.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

const CUE: &str = "HEARTH_TEST_LAYER_CUE";
const NAME: &str = "VK_LAYER_HEARTH_test";

/// Gives the layer its cues.
pub struct Layer {
    cue: PathBuf,
    number: AtomicU64,
}

impl Layer {
    /// The layer, if it is in this process. Else runs the test `name` (with its modules) again in a
    /// process that has it, and panics if it fails there.
    pub fn here(name: &str) -> Option<Self> {
        if let Some(cue) = std::env::var_os(CUE) {
            return Some(Self {
                cue: cue.into(),
                number: AtomicU64::new(0),
            });
        }
        let folder = tempfile::tempdir().unwrap();
        let library = build();
        let manifest = serde_json::json!({
            "file_format_version": "1.1.2",
            "layer": {
                "name": NAME,
                "type": "GLOBAL",
                "library_path": library,
                "api_version": "1.3.0",
                "implementation_version": "1",
                "description": "loses the device or refuses memory on cue",
            },
        });
        let path = folder.path().join("hearth_test_layer.json");
        std::fs::write(path, manifest.to_string()).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env("VK_LAYER_PATH", folder.path())
            .env("VK_INSTANCE_LAYERS", NAME)
            .env(CUE, folder.path().join("cue"))
            .env("RUST_BACKTRACE", "0")
            // Mesa's own layer falls over where no adapter is seen.
            .env("NODEVICE_SELECT", "1")
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{name} in its own process: {status}");
        None
    }

    /// Has the layer in a daemon of its own process take the same cues. Those given before it starts are
    /// for it too: let it [`rest`](Self::rest) first.
    pub fn hand_on(&self, command: &mut Command) {
        command.env(CUE, &self.cue);
    }

    /// Loses the device at its `n`-th submission from now.
    pub fn lose_at_submit(&self, n: u64) {
        self.cue("submit", n);
    }

    /// Loses the device at the `n`-th wait from now.
    pub fn lose_at_wait(&self, n: u64) {
        self.cue("wait", n);
    }

    /// Lets the `n`-th wait from now time out.
    pub fn hang_at_wait(&self, n: u64) {
        self.cue("hang", n);
    }

    /// Finds no memory for the `n`-th submission from now.
    pub fn no_memory_at_submit(&self, n: u64) {
        self.cue("memory", n);
    }

    /// Loses the device at its `n`-th submission from now, and hides all adapters.
    pub fn gone_at_submit(&self, n: u64) {
        self.cue("gone", n);
    }

    /// Refuses allocations of more than so many bytes from now on.
    pub fn refuse_above(&self, bytes: u64) {
        self.cue("refuse", bytes);
    }

    /// Refuses all allocations but the next `n`.
    pub fn refuse_after(&self, n: u64) {
        self.cue("refuse-after", n);
    }

    /// Lets everything pass from now on.
    pub fn rest(&self) {
        self.cue("rest", 0);
    }

    fn cue(&self, what: &str, amount: u64) {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        // Renamed into place: the layer never reads half of it.
        let fresh = self.cue.with_extension("fresh");
        std::fs::write(&fresh, format!("{number} {what} {amount}\n")).unwrap();
        std::fs::rename(&fresh, &self.cue).unwrap();
    }
}

/// Builds the layer; the path of its library.
fn build() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(["build", "--quiet", "-p", "hearth-vulkan-layer"])
        .arg("--message-format=json")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the layer does not build");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut libraries = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let files = message.get("filenames")?.as_array()?;
        let mut files = files.iter().filter_map(|file| file.as_str());
        files
            .find(|file| file.ends_with(std::env::consts::DLL_SUFFIX))
            .filter(|file| file.contains("hearth_vulkan_layer"))
            .map(PathBuf::from)
    });
    libraries.next_back().expect("the layer's library")
}

/// Bytes of memory that this process uses.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * u64::try_from(rustix::param::page_size()).unwrap()
}
