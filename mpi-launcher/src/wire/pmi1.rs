//! PMI-1: lines `cmd=NAME key=value key=value`, one reply per request.

use super::pmi::{Action, Dialect, PmiServer};
use std::collections::HashMap;

/// Most service names that one node's ranks may publish.
const NAMES_MAX: usize = 1024;

/// Service names published by this node's ranks (`MPI_Publish_name`); seen on this node only.
pub(super) type Names = HashMap<String, String>;

impl PmiServer {
    /// Answers one PMI-1 line.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub(super) fn on_line(&mut self, local: usize, line: &str, actions: &mut Vec<Action>) -> Result<(), String> {
        if self.clients[local].in_multi_line {
            if line.trim() == "endcmd" {
                self.clients[local].in_multi_line = false;
                self.say(local, "cmd=spawn_result rc=-1 errmsg=spawn_is_not_supported", actions);
            }
            return Ok(());
        }
        if line.starts_with("mcmd=") {
            self.clients[local].in_multi_line = true;
            return Ok(());
        }
        let request = Request(line);
        let command = request.field("cmd").ok_or_else(|| format!("sent `{}`", shown(line)))?;
        match command {
            "init" => self.greet(local, &request, actions),
            "put" => self.put(local, &request, actions),
            "get" => self.get(local, &request, actions),
            "barrier_in" => return self.enter_barrier(local, String::new(), actions),
            "finalize" => {
                self.say(local, "cmd=finalize_ack", actions);
                actions.push(Action::Finalized { rank: self.rank(local) });
            }
            "abort" => actions.push(Action::Abort {
                rank: self.rank(local),
                code: request.field("exitcode").and_then(|code| code.parse().ok()).unwrap_or(1),
                message: request.rest("error_msg").unwrap_or_default().to_owned(),
            }),
            "publish_name" | "lookup_name" | "unpublish_name" => self.name(local, command, &request, actions),
            _ => return self.ask(local, command, actions),
        }
        Ok(())
    }

    fn ask(&mut self, local: usize, command: &str, actions: &mut Vec<Action>) -> Result<(), String> {
        let shape = &self.shape;
        let reply = match command {
            "get_maxes" => "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024".to_owned(),
            "get_appnum" => {
                format!("cmd=appnum rc=0 appnum={}", shape.app_of(self.rank(local)).unwrap_or_default())
            }
            "get_universe_size" => format!("cmd=universe_size rc=0 size={}", shape.universe()),
            "get_my_kvsname" => format!("cmd=my_kvsname rc=0 kvsname={}", shape.name()),
            "get_ranks2hosts" => "cmd=put_ranks2hosts 0 0".to_owned(),
            _ => return Err(format!("sent the unknown command `{}`", shown(command))),
        };
        self.say(local, &reply, actions);
        Ok(())
    }

    /// Versions: we speak 1.1 (1.2 would add groups to barriers) and 2.0.
    fn greet(&mut self, local: usize, request: &Request<'_>, actions: &mut Vec<Action>) {
        let number = |name| request.field(name).and_then(|n| n.parse::<u32>().ok());
        let reply = match (number("pmi_version"), number("pmi_subversion")) {
            (Some(1), Some(subversion)) => {
                format!("cmd=response_to_init pmi_version=1 pmi_subversion={} rc=0", subversion.min(1))
            }
            (Some(2), Some(_)) => {
                self.clients[local].dialect = Dialect::Frames;
                "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0".to_owned()
            }
            _ => "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1".to_owned(),
        };
        self.say(local, &reply, actions);
    }

    fn put(&mut self, local: usize, request: &Request<'_>, actions: &mut Vec<Action>) {
        let reply = match (self.own_space(request), request.field("key"), request.rest("value")) {
            (true, Some(key), Some(value)) => match self.kvs.put(key, value) {
                Ok(()) => "cmd=put_result rc=0 msg=success".to_owned(),
                Err(refused) => format!("cmd=put_result rc=-1 msg=refused_{refused:?}"),
            },
            (false, ..) => "cmd=put_result rc=-1 msg=unknown_kvsname".to_owned(),
            _ => "cmd=put_result rc=-1 msg=incomplete".to_owned(),
        };
        self.say(local, &reply, actions);
    }

    fn get(&mut self, local: usize, request: &Request<'_>, actions: &mut Vec<Action>) {
        let value = match request.field("key") {
            _ if !self.own_space(request) => None,
            Some("PMI_process_mapping") => self.mapping.as_deref(),
            Some(key) => self.kvs.get(key),
            None => None,
        };
        let reply = match value {
            Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
            None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_owned(),
        };
        self.say(local, &reply, actions);
    }

    fn name(&mut self, local: usize, command: &str, request: &Request<'_>, actions: &mut Vec<Action>) {
        let service = request.field("service").unwrap_or_default();
        let reply = match (command, request.field("port")) {
            ("publish_name", Some(port)) if self.names.len() < NAMES_MAX => {
                self.names.insert(service.to_owned(), port.to_owned());
                "cmd=publish_result info=ok rc=0 msg=success".to_owned()
            }
            ("publish_name", _) => "cmd=publish_result info=no rc=-1 msg=refused".to_owned(),
            ("lookup_name", _) => match self.names.get(service) {
                Some(port) => format!("cmd=lookup_result info=ok rc=0 port={port}"),
                None => "cmd=lookup_result info=no rc=-1 msg=not_found".to_owned(),
            },
            _ => match self.names.remove(service) {
                Some(_) => "cmd=unpublish_result info=ok rc=0".to_owned(),
                None => "cmd=unpublish_result info=no rc=-1 msg=not_found".to_owned(),
            },
        };
        self.say(local, &reply, actions);
    }

    fn own_space(&self, request: &Request<'_>) -> bool {
        request.field("kvsname") == Some(self.shape.name())
    }

    fn say(&self, local: usize, line: &str, actions: &mut Vec<Action>) {
        actions.push(Action::Reply { local, bytes: format!("{line}\n").into_bytes() });
    }
}

/// A line of `key=value` fields at single spaces.
struct Request<'a>(&'a str);

impl<'a> Request<'a> {
    /// The value of a field, up to the next space.
    fn field(&self, name: &str) -> Option<&'a str> {
        self.0.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }
    /// The value of the last field, which may hold spaces.
    fn rest(&self, name: &str) -> Option<&'a str> {
        let start = self.0.find(&format!(" {name}="))? + name.len() + 2;
        Some(&self.0[start..])
    }
}

/// The beginning of what a client sent, safe to print.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}
