//! What the descriptors of a process lead to, as `/proc/PID/fd` and `/proc/PID/net` show it (proc(5)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use super::Process;

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// A path, `socket 1.2.3.4:5`, `pipe`, …
    pub shown: String,
    /// Its inode number.
    pub inode: u64,
}

impl Process {
    /// The file behind one of its descriptors; `None` if it is closed or the process is gone.
    pub fn descriptor(&self, fd: i32) -> Option<Descriptor> {
        let path = self.path(&format!("fd/{fd}")).ok()?;
        let link = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
        let inode = fs::metadata(&path).ok()?.ino();
        let shown = if link.starts_with("socket:[") {
            self.socket(inode).unwrap_or_else(|| "socket".to_owned())
        } else if link.starts_with("pipe:[") {
            "pipe".to_owned()
        } else {
            let anonymous = link
                .strip_prefix("anon_inode:")
                .map(|name| name.trim_matches(['[', ']']).to_owned());
            anonymous.unwrap_or(link)
        };
        Some(Descriptor { shown, inode })
    }

    /// The addresses of a socket of its network namespace.
    fn socket(&self, inode: u64) -> Option<String> {
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let path = self.path(&format!("net/{table}")).ok()?;
            let text = fs::read_to_string(path).unwrap_or_default();
            if let Some(shown) = text.lines().find_map(|line| internet_socket(line, inode)) {
                return Some(shown);
            }
        }
        let text = fs::read_to_string(self.path("net/unix").ok()?).unwrap_or_default();
        text.lines().find_map(|line| unix_socket(line, inode))
    }
}

/// `SL LOCAL REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE …`: the remote address, or the
/// local one of a socket without a peer.
fn internet_socket(line: &str, inode: u64) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(9)?.parse::<u64>().ok()? != inode {
        return None;
    }
    let local = address(fields.get(1)?)?;
    let remote = address(fields.get(2)?)?;
    Some(if remote.port() == 0 {
        format!("socket {local} (local)")
    } else {
        format!("socket {remote}")
    })
}

/// `NUM REFCOUNT PROTOCOL FLAGS TYPE STATE INODE [PATH]`.
fn unix_socket(line: &str, inode: u64) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(6)?.parse::<u64>().ok()? != inode {
        return None;
    }
    Some(fields.get(7).map_or_else(
        || "socket unix:(unnamed)".to_owned(),
        |path| format!("socket unix:{path}"),
    ))
}

/// `0100007F:0050`: each 32-bit word of the address in the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        u32::from_str_radix(host.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let host = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let octets = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    Some(SocketAddr::new(host, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn the_lines_of_the_kernel_are_read() {
        let line = "   0: 0100007F:1F90 0200A8C0:01BB 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 x";
        assert_eq!(
            internet_socket(line, 4242).unwrap(),
            "socket 192.168.0.2:443"
        );
        assert_eq!(internet_socket(line, 1), None);
        assert_eq!(
            address("0000000000000000FFFF00000100007F:0050")
                .unwrap()
                .to_string(),
            "127.0.0.1:80"
        );
        assert_eq!(
            address("00000000000000000000000001000000:0050")
                .unwrap()
                .to_string(),
            "[::1]:80"
        );
        let unix = "ffff888: 00000002 00000000 00010000 0001 01 777 /run/x.sock";
        assert_eq!(unix_socket(unix, 777).unwrap(), "socket unix:/run/x.sock");
        assert_eq!(address("zz"), None);
    }

    #[test]
    fn own_descriptors_are_found() {
        let me = Process::open(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let stream = TcpStream::connect(at).unwrap();
        assert_eq!(
            me.descriptor(stream.as_raw_fd()).unwrap().shown,
            format!("socket {at}")
        );
        assert_eq!(
            me.descriptor(listener.as_raw_fd()).unwrap().shown,
            format!("socket {at} (local)")
        );
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(
            me.descriptor(file.as_raw_fd())
                .unwrap()
                .shown
                .ends_with("/stat")
        );
        assert_eq!(me.descriptor(-1), None);
    }
}
