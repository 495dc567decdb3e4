//! System calls that the daemon has no use for, answered with EPERM by a seccomp filter.
//!
//! It is a list of what is denied, not of what is allowed: GPU drivers make calls that nobody can
//! list. What is on it reaches the network, other processes or the kernel itself.

use std::collections::BTreeMap;
use std::error::Error;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Set in the numbers of x86-64's second calling convention.
#[cfg(target_arch = "x86_64")]
const X32_BIT: i64 = 0x4000_0000;

/// Calls that are denied whatever their arguments are.
const NEEDLESS: &[i64] = &[
    // io_uring opens sockets past this filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // The kernel.
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    // File systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Calls that run a program.
const PROGRAMS: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];

/// Denies what the daemon never needs, to this thread and all that it starts.
pub(super) fn deny_needless() -> Result<String, Box<dyn Error>> {
    seccompiler::apply_filter_all_threads(&needless()?)?;
    Ok("system calls filtered, no sockets but local ones".to_owned())
}

/// Denies running programs, to all threads.
pub(super) fn deny_programs() -> Result<String, Box<dyn Error>> {
    seccompiler::apply_filter_all_threads(&filter(all_of(PROGRAMS))?)?;
    Ok("no programs are run".to_owned())
}

fn needless() -> Result<BpfProgram, Box<dyn Error>> {
    let mut rules = all_of(NEEDLESS);
    let family = u64::from(libc::AF_UNIX.unsigned_abs());
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)?;
    let other = vec![SeccompRule::new(vec![other])?];
    #[cfg(target_arch = "x86_64")]
    {
        rules.insert(libc::SYS_socket | X32_BIT, other.clone());
        // The calls that have numbers of their own there: execve, ptrace and others like them.
        rules.extend((512..=547).map(|number| (number | X32_BIT, Vec::new())));
    }
    rules.insert(libc::SYS_socket, other);
    filter(rules)
}

fn all_of(numbers: &[i64]) -> BTreeMap<i64, Vec<SeccompRule>> {
    let mut rules = BTreeMap::new();
    for number in numbers {
        rules.insert(*number, Vec::new());
        #[cfg(target_arch = "x86_64")]
        rules.insert(number | X32_BIT, Vec::new());
    }
    rules
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, Box<dyn Error>> {
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;

    /// Runs `test` on a thread that has a filter of its own.
    fn under(filter: BpfProgram, test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            test();
        });
        thread.join().unwrap();
    }

    fn assert_denied<T: std::fmt::Debug>(result: std::io::Result<T>) {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn no_socket_but_local_ones() {
        assert!(TcpListener::bind("127.0.0.1:0").is_ok());
        under(needless().unwrap(), || {
            assert_denied(TcpListener::bind("127.0.0.1:0"));
            assert_denied(TcpListener::bind("[::1]:0"));
            assert_denied(UdpSocket::bind("127.0.0.1:0"));
            assert_denied(TcpStream::connect("127.0.0.1:1"));
            let netlink = rustix::net::AddressFamily::NETLINK;
            let raw = rustix::net::SocketType::RAW;
            assert_denied(rustix::net::socket(netlink, raw, None).map_err(Into::into));
            UnixStream::pair().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("socket");
            let _listener = UnixListener::bind(&path).unwrap();
            UnixStream::connect(&path).unwrap();
        });
    }

    #[test]
    fn mounts_and_namespaces_are_out_of_reach() {
        under(needless().unwrap(), || {
            // As root as well, to whom the system itself would not refuse it.
            let new = rustix::thread::UnshareFlags::NEWUTS;
            #[expect(deprecated, reason = "it is refused, so it changes nothing")]
            let refused = rustix::thread::unshare(new);
            assert_denied(refused.map_err(Into::into));
            assert_denied(rustix::process::chroot("/").map_err(Into::into));
            assert!(Command::new("true").status().unwrap().success());
        });
    }

    #[test]
    fn programs_run_until_they_are_denied() {
        assert!(Command::new("true").status().unwrap().success());
        under(filter(all_of(PROGRAMS)).unwrap(), || {
            assert_denied(Command::new("true").status());
        });
    }
}
