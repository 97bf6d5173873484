//! PMI-2: frames of a six-digit length and `cmd=NAME;key=value;…;`. Used by Slurm's libpmi2 and Intel MPI.
//!
//! Proven with those clients; MPICH itself is built without it nowadays.

use super::pmi::{Action, PmiServer};
use super::pmi1::shown;
use std::collections::HashMap;

/// Digits of a frame's length.
const LENGTH: usize = 6;
/// Longest frame we accept.
const FRAME_MAX: usize = 32 << 10;
/// Most attributes and most waiting questions that one node's ranks may leave.
const ATTRIBUTES_MAX: usize = 16 << 10;

/// What ranks of one node told each other (`info-putnodeattr`), and who waits for what.
#[derive(Debug, Default)]
pub(super) struct NodeAttributes {
    values: HashMap<String, String>,
    waiting: Vec<(usize, String, String)>,
}

impl PmiServer {
    /// Answers one PMI-2 frame.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub(super) fn on_frame(&mut self, local: usize, frame: &str, actions: &mut Vec<Action>) -> Result<(), String> {
        let request = Fields::read(frame);
        let command = request.get("cmd").ok_or_else(|| format!("sent `{}`", shown(frame)))?;
        let thread = request.get("thrid").unwrap_or_default();
        let reply = match command {
            "fullinit" => self.full_init(local),
            "job-getid" => format!("jobid={};rc=0;", self.shape.name()),
            "info-getjobattr" => self.job_attribute(request.get("key").unwrap_or_default()),
            "info-putnodeattr" => self.put_node_attribute(&request, actions),
            "info-getnodeattr" => match self.node_attribute(local, &request, thread)? {
                Some(reply) => reply,
                None => return Ok(()),
            },
            "kvs-put" => self.kvs_put(&request),
            "kvs-get" => self.kvs_get(&request),
            "kvs-fence" => return self.enter_barrier(local, thread.to_owned(), actions),
            "finalize" => {
                actions.push(Action::Finalized { rank: self.rank(local) });
                "rc=0;".to_owned()
            }
            "abort" => {
                let message = request.get("msg").unwrap_or_default().to_owned();
                // PMI-2 carries no code but in Slurm's message text: a failure, like any other.
                actions.push(Action::Abort { rank: self.rank(local), code: 1, message });
                return Ok(());
            }
            _ => "rc=-1;errmsg=not supported;".to_owned(),
        };
        actions.push(Action::Reply { local, bytes: response(command, thread, &reply) });
        Ok(())
    }

    fn full_init(&self, local: usize) -> String {
        let rank = self.rank(local);
        let app = self.shape.app_of(rank).unwrap_or_default();
        let size = self.shape.size();
        format!(
            "pmi-version=2;pmi-subversion=0;rank={rank};size={size};appnum={app};debugged=FALSE;pmiverbose=FALSE;rc=0;"
        )
    }

    fn job_attribute(&self, key: &str) -> String {
        let value = match key {
            "PMI_process_mapping" => self.mapping.clone(),
            "universeSize" => Some(self.shape.universe().to_string()),
            "hasNameServ" => Some("FALSE".to_owned()),
            _ => None,
        };
        found(value.as_deref())
    }

    fn put_node_attribute(&mut self, request: &Fields<'_>, actions: &mut Vec<Action>) -> String {
        let (Some(key), Some(value)) = (request.get("key"), request.get("value")) else {
            return "rc=-1;errmsg=incomplete;".to_owned();
        };
        if self.node.values.len() >= ATTRIBUTES_MAX {
            return "rc=-1;errmsg=full;".to_owned();
        }
        self.node.values.insert(key.to_owned(), value.to_owned());
        self.node.waiting.retain(|(local, wanted, thread)| {
            if wanted == key {
                let bytes = response("info-getnodeattr", thread, &found(Some(value)));
                actions.push(Action::Reply { local: *local, bytes });
            }
            wanted != key
        });
        "rc=0;".to_owned()
    }

    /// The reply, or `None` if the rank has to wait until another one puts the attribute.
    fn node_attribute(&mut self, local: usize, request: &Fields<'_>, thread: &str) -> Result<Option<String>, String> {
        let key = request.get("key").unwrap_or_default();
        let value = self.node.values.get(key);
        let wait = request.get("wait").is_some_and(|wait| wait.eq_ignore_ascii_case("true"));
        if value.is_some() || !wait {
            return Ok(Some(found(value.map(String::as_str))));
        }
        if self.node.waiting.len() >= ATTRIBUTES_MAX {
            return Err("waits for too many node attributes".to_owned());
        }
        self.node.waiting.push((local, key.to_owned(), thread.to_owned()));
        Ok(None)
    }

    fn kvs_put(&mut self, request: &Fields<'_>) -> String {
        match (request.get("key"), request.get("value")) {
            (Some(key), Some(value)) => match self.kvs.put(key, value) {
                Ok(()) => "rc=0;".to_owned(),
                Err(refused) => format!("rc=-1;errmsg=refused {refused:?};"),
            },
            _ => "rc=-1;errmsg=incomplete;".to_owned(),
        }
    }

    fn kvs_get(&self, request: &Fields<'_>) -> String {
        found(request.get("key").and_then(|key| self.kvs.get(key)))
    }
}

/// The answer to a look-up.
fn found(value: Option<&str>) -> String {
    match value {
        Some(value) => format!("found=TRUE;value={};rc=0;", value.replace(';', ";;")),
        None => "found=FALSE;rc=0;".to_owned(),
    }
}

/// The answer to `kvs-fence`.
pub(super) fn fence_reply(thread: &str) -> Vec<u8> {
    response("kvs-fence", thread, "rc=0;")
}

fn response(command: &str, thread: &str, fields: &str) -> Vec<u8> {
    let thread = if thread.is_empty() { String::new() } else { format!("thrid={thread};") };
    let body = format!("cmd={command}-response;{thread}{fields}");
    format!("{:6}{body}", body.len()).into_bytes()
}

/// Takes one frame's body off the front of what was read.
///
/// # Errors
/// If the length is none.
pub(super) fn take_frame(unread: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let Some(digits) = unread.get(..LENGTH) else { return Ok(None) };
    let length = std::str::from_utf8(digits).ok().and_then(|text| text.trim().parse::<usize>().ok());
    let length = length.filter(|length| *length <= FRAME_MAX).ok_or("sent a frame without a valid length")?;
    if unread.len() < LENGTH + length {
        return Ok(None);
    }
    let frame = unread.drain(..LENGTH + length).skip(LENGTH).collect();
    Ok(Some(frame))
}

/// The fields of a frame; `;;` within a value stands for `;`.
struct Fields<'a>(Vec<(&'a str, String)>);

impl<'a> Fields<'a> {
    fn read(frame: &'a str) -> Self {
        let mut fields: Vec<(&str, String)> = Vec::new();
        let mut pieces = frame.split(';').peekable();
        while let Some(piece) = pieces.next() {
            let Some((name, value)) = piece.split_once('=') else { continue };
            let mut value = value.to_owned();
            // An empty piece is the gap of `;;`, unless it is the end of the frame.
            while pieces.peek() == Some(&"") {
                pieces.next();
                let Some(more) = pieces.next() else { break };
                value.push(';');
                value.push_str(more);
            }
            fields.push((name, value));
        }
        Self(fields)
    }
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }
}
