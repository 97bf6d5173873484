//! /etc/passwd and /etc/group of the container: the image's, with an entry for the caller, so that `whoami`, ssh and
//! MPI libraries that ask for a user name find one without the host's name service.

/// The image's file with these entries added, but for those whose id or name it has already.
pub(crate) fn with_entries(image: &str, entries: &[String]) -> String {
    let mut text = image.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in entries {
        let id = |line: &str| line.split(':').nth(2).map(str::to_owned);
        if !image.lines().any(|line| id(line) == id(entry)) {
            text.push_str(entry);
            text.push('\n');
        }
    }
    text
}

/// A line of passwd(5); colons and newlines cannot be in a field.
pub(crate) fn passwd_entry(name: &str, uid: u32, gid: u32, home: &str) -> String {
    format!("{}:x:{uid}:{gid}::{}:/bin/sh", field(name), field(home))
}

/// A line of group(5).
pub(crate) fn group_entry(name: &str, gid: u32) -> String {
    format!("{}:x:{gid}:", field(name))
}

fn field(text: &str) -> String {
    text.replace([':', '\n'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_what_is_missing_by_id() {
        let image = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/sh";
        let caller = passwd_entry("jo:e", 4711, 100, "/home/joe");
        assert_eq!(
            with_entries(image, std::slice::from_ref(&caller)),
            format!("{image}\njo_e:x:4711:100::/home/joe:/bin/sh\n")
        );
        assert_eq!(with_entries(image, &[passwd_entry("me", 1000, 1000, "/")]), format!("{image}\n"));
        assert_eq!(with_entries("", &[group_entry("staff", 50)]), "staff:x:50:\n");
    }
}
