//! The GPU driver as the system's folders show it: loader, driver manifests, device files. It opens
//! no GPU, so it can tell what is missing when the daemon cannot start.

#[cfg(target_os = "linux")]
use std::path::{Path, PathBuf};

use super::doctor::Finding;

/// How to get a driver.
#[cfg(target_os = "linux")]
const INSTALL_DRIVER: &str = "install the GPU's Vulkan driver (Debian, Ubuntu: apt install \
    mesa-vulkan-drivers; Fedora: dnf install mesa-vulkan-drivers; Arch: vulkan-intel or vulkan-radeon)";
/// How to get the loader.
#[cfg(target_os = "linux")]
const INSTALL_LOADER: &str = "install the Vulkan loader (Debian, Ubuntu: apt install libvulkan1; \
    Fedora: dnf install vulkan-loader; Arch: vulkan-icd-loader)";

/// Looks at the driver.
#[cfg(target_os = "linux")]
pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![loader(&library_dirs()), drivers(&manifests())];
    findings.push(devices(Path::new("/dev")));
    findings
}

/// Looks at the driver.
#[cfg(not(target_os = "linux"))]
pub(super) fn examine() -> Vec<Finding> {
    let driver = if cfg!(target_os = "macos") {
        "Metal"
    } else {
        "Direct3D 12"
    };
    vec![Finding::good(
        "driver",
        format!("{driver} is part of the system"),
    )]
}

/// Folders in which a library may lie.
#[cfg(target_os = "linux")]
fn library_dirs() -> Vec<PathBuf> {
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let usual = [
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/usr/local/lib",
        "/run/opengl-driver/lib",
    ];
    let usual = usual.into_iter().map(PathBuf::from);
    let arch = ["/usr/lib", "/lib"].map(|dir| Path::new(dir).join(&multiarch));
    std::env::split_paths(&given)
        .filter(|dir| dir.is_absolute())
        .chain(usual)
        .chain(arch)
        .collect()
}

#[cfg(target_os = "linux")]
fn loader(dirs: &[PathBuf]) -> Finding {
    let found = dirs
        .iter()
        .map(|dir| dir.join("libvulkan.so.1"))
        .find(|path| path.exists());
    match found {
        Some(path) => Finding::good("loader", path.display().to_string()),
        None => Finding::bad(
            "loader",
            "libvulkan.so.1 is in none of the usual folders",
            INSTALL_LOADER,
        ),
    }
}

/// Driver manifests: those that the environment names, else those in the loader's folders.
#[cfg(target_os = "linux")]
fn manifests() -> Vec<PathBuf> {
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if let Some(list) = std::env::var_os(variable).filter(|list| !list.is_empty()) {
            let named = std::env::split_paths(&list);
            return named
                .flat_map(|path| {
                    if path.is_dir() {
                        json_files(&path)
                    } else {
                        vec![path]
                    }
                })
                .collect();
        }
    }
    manifest_dirs()
        .iter()
        .flat_map(|dir| json_files(dir))
        .collect()
}

#[cfg(target_os = "linux")]
fn manifest_dirs() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from).unwrap_or_default();
    let list = |name: &str, fallback: &str| {
        let value = variable(name).unwrap_or_else(|| fallback.into());
        std::env::split_paths(&value).collect::<Vec<_>>()
    };
    let one = |name: &str, below_home: &str| {
        vec![variable(name).map_or_else(|| home.join(below_home), PathBuf::from)]
    };
    let roots = [
        one("XDG_CONFIG_HOME", ".config"),
        list("XDG_CONFIG_DIRS", "/etc/xdg"),
        vec![PathBuf::from("/etc")],
        one("XDG_DATA_HOME", ".local/share"),
        list("XDG_DATA_DIRS", "/usr/local/share:/usr/share"),
        vec![PathBuf::from("/run/opengl-driver/share")],
    ];
    let mut dirs: Vec<PathBuf> = roots
        .into_iter()
        .flatten()
        .map(|root| root.join("vulkan/icd.d"))
        .collect();
    dirs.dedup();
    dirs
}

#[cfg(target_os = "linux")]
fn json_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

#[cfg(target_os = "linux")]
fn drivers(manifests: &[PathBuf]) -> Finding {
    const NAME: &str = "driver";
    let name = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        // `intel_icd.x86_64.json` names the driver and what it runs on.
        stem.split(['.', '_']).next().unwrap_or_default().to_owned()
    };
    let (readable, unreadable): (Vec<&PathBuf>, Vec<&PathBuf>) = manifests
        .iter()
        .partition(|path| std::fs::File::open(path).is_ok());
    if let (Some(path), true) = (unreadable.first(), readable.is_empty()) {
        let detail = format!("cannot read {}", path.display());
        return Finding::bad(NAME, detail, "make it readable, or mend VK_DRIVER_FILES");
    }
    if readable.is_empty() {
        return Finding::bad(NAME, "no Vulkan driver is installed", INSTALL_DRIVER);
    }
    let mut names: Vec<String> = readable.into_iter().map(name).collect();
    names.dedup();
    if names.iter().all(|name| is_software(name)) {
        let detail = format!("Vulkan: only {}, which runs on the CPU", names.join(", "));
        return Finding::poor(NAME, detail, INSTALL_DRIVER);
    }
    Finding::good(NAME, format!("Vulkan: {}", names.join(", ")))
}

#[cfg(target_os = "linux")]
fn is_software(name: &str) -> bool {
    matches!(name, "lvp" | "swrast" | "vk_swiftshader" | "vk")
}

/// Whether the GPU's device files are there and may be used. `dev` is `/dev`.
#[cfg(target_os = "linux")]
fn devices(dev: &Path) -> Finding {
    const NAME: &str = "device";
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    // Render nodes of the kernel's drivers; the files of NVIDIA's own driver and of WSL.
    let rendering = entries(dev.join("dri")).filter(|e| name_begins(&e.file_name(), "renderD"));
    let others = ["nvidia0", "dxg"]
        .into_iter()
        .map(|name| dev.join(name))
        .filter(|p| p.exists());
    let mut nodes: Vec<PathBuf> = rendering.map(|entry| entry.path()).chain(others).collect();
    nodes.sort();
    let open = |path: &&PathBuf| {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .is_ok()
    };
    let usable: Vec<String> = nodes
        .iter()
        .filter(open)
        .map(|path| path.display().to_string())
        .collect();
    match (nodes.first(), usable.is_empty()) {
        (None, _) => Finding::poor(
            NAME,
            "no GPU has a device file here: only a driver that runs on the CPU can work",
            "in a container or virtual machine, hand the GPU in (such as --device /dev/dri)",
        ),
        (Some(_), false) => Finding::good(NAME, usable.join(", ")),
        (Some(node), true) => Finding::poor(
            NAME,
            format!("no permission to use {}", node.display()),
            "join the group that owns it, then log in again: sudo usermod -aG render $USER",
        ),
    }
}

#[cfg(target_os = "linux")]
fn name_begins(name: &std::ffi::OsStr, with: &str) -> bool {
    name.to_string_lossy().starts_with(with)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::doctor::Verdict;
    use super::*;

    #[test]
    fn a_missing_loader_or_driver_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(loader(&[dir.path().to_owned()]).verdict, Verdict::Bad);
        std::fs::write(dir.path().join("libvulkan.so.1"), "").unwrap();
        assert_eq!(loader(&[dir.path().to_owned()]).verdict, Verdict::Good);
        assert_eq!(drivers(&[]).verdict, Verdict::Bad);
        assert_eq!(
            drivers(&[dir.path().join("absent.json")]).verdict,
            Verdict::Bad
        );
    }

    #[test]
    fn a_software_driver_alone_is_poor() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lvp_icd.json"), "{}").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert_eq!(drivers(&json_files(dir.path())).verdict, Verdict::Poor);
        std::fs::write(dir.path().join("intel_icd.x86_64.json"), "{}").unwrap();
        let finding = drivers(&json_files(dir.path()));
        assert_eq!(finding.verdict, Verdict::Good);
        assert_eq!(finding.detail, "Vulkan: intel, lvp");
    }

    #[test]
    fn device_files_are_told() {
        let dev = tempfile::tempdir().unwrap();
        assert_eq!(devices(dev.path()).verdict, Verdict::Poor);
        std::fs::create_dir(dev.path().join("dri")).unwrap();
        std::fs::write(dev.path().join("dri/card0"), "").unwrap();
        assert_eq!(devices(dev.path()).verdict, Verdict::Poor);
        std::fs::write(dev.path().join("dri/renderD128"), "").unwrap();
        assert_eq!(devices(dev.path()).verdict, Verdict::Good);
    }
}
