//! Where the kernel put a core file, from core_pattern (core(5)).

use corebox_sys::fs;

/// Says in words where the core of a process in the container is; `pid` is its number on the host.
pub fn location(pid: i32, directory: &str, hostname: &str) -> String {
    match fs::read_to_string("/proc/sys/kernel/core_pattern") {
        Ok(pattern) => expand(pattern.trim(), pid, directory, hostname),
        Err(e) => format!("unknown ({e})"),
    }
}

fn expand(pattern: &str, pid: i32, directory: &str, hostname: &str) -> String {
    if let Some(program) = pattern.strip_prefix('|') {
        let name = program.split_whitespace().next().unwrap_or(program);
        return format!("given to `{name}` on {hostname} (try `coredumpctl list`)");
    }
    let mut path = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '%') {
            (_, false) => path.push(letter),
            _ => match letters.next() {
                Some('P' | 'I') => path.push_str(&pid.to_string()), // %p is the number inside, which only init knows
                Some('h') => path.push_str(hostname),
                Some('%') => path.push('%'),
                Some(_) => path.push('*'),
                None => {}
            },
        }
    }
    let path = if path.starts_with('/') { path } else { format!("{}/{path}", directory.trim_end_matches('/')) };
    format!("{hostname}:{path} (as seen in the container)")
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn follows_core_pattern() {
        assert_eq!(expand("core.%P", 7, "/w", "n1"), "n1:/w/core.7 (as seen in the container)");
        assert_eq!(expand("/cores/%h-%e-%p%%", 7, "/w", "n1"), "n1:/cores/n1-*-*% (as seen in the container)");
        assert!(expand("|/lib/systemd/systemd-coredump %P", 7, "/", "n1").contains("systemd-coredump"));
    }
}
