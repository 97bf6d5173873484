//! A proxy before a registry that does to each request what the test says, and remembers what was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

/// A request as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// Its number among those for layers (blobs other than configs cannot be told apart, so: all blobs), from 0.
    pub nth_blob: usize,
}

impl Request {
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }
}

/// What happens to a request.
#[derive(Clone)]
pub enum Fate {
    Pass,
    /// This status and body instead of the registry's.
    Answer(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// This byte of the body is another one.
    Flip(usize),
    /// The rest of the body waits for the gate after so many bytes.
    Hold(usize, Gate),
}

/// Closed until somebody opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

type Rule = Arc<Mutex<Box<dyn FnMut(&Request) -> Fate + Send>>>;

/// The proxy; its threads end with the test's process.
pub struct Proxy {
    /// `HOST:PORT`.
    pub address: String,
    rule: Rule,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    /// On a loopback port, before a plain registry.
    pub fn before(upstream: &str) -> Self {
        Self::start(upstream, "127.0.0.1:0", None)
    }

    /// The same in the network namespace that this file names.
    pub fn inside(upstream: &str, listen: &str, namespace: PathBuf) -> Self {
        Self::start(upstream, listen, Some(namespace))
    }

    fn start(upstream: &str, listen: &str, namespace: Option<PathBuf>) -> Self {
        let pass: Box<dyn FnMut(&Request) -> Fate + Send> = Box::new(|_| Fate::Pass);
        let (rule, log): (Rule, _) = (Arc::new(Mutex::new(pass)), Arc::new(Mutex::new(Vec::new())));
        let (tell, told) = std::sync::mpsc::channel();
        let (upstream, listen) = (upstream.to_owned(), listen.to_owned());
        let (rules, logs) = (rule.clone(), log.clone());
        std::thread::spawn(move || {
            if let Some(path) = namespace {
                // threads begun here are in it as well
                let file = std::fs::File::open(path).unwrap();
                nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            }
            let listener = TcpListener::bind(listen).unwrap();
            tell.send(listener.local_addr().unwrap().to_string()).unwrap();
            for client in listener.incoming() {
                let (upstream, rule, log) = (upstream.clone(), rules.clone(), logs.clone());
                // a client or registry that goes away in the middle is what these tests are about
                std::thread::spawn(move || client.and_then(|client| serve(client, &upstream, &rule, &log)).ok());
            }
        });
        Self { address: told.recv().unwrap(), rule, log }
    }

    /// Sets what happens from now on.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Fate + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The ranges of the blobs that were asked for since the last call.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.asked().into_iter().filter(Request::is_blob).map(|request| request.range).collect()
    }
}

/// One request of one connection, which ends with it.
fn serve(client: TcpStream, upstream: &str, rule: &Rule, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut first, mut head, mut length, mut range) = (String::new(), String::new(), 0, None);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let (name, value) = line.trim_end().split_once(": ").unwrap_or((line.trim_end(), ""));
        match name.to_ascii_lowercase().as_str() {
            "connection" => continue,
            "content-length" => length = value.parse().unwrap_or(0),
            "range" => range = Some(value.to_owned()),
            _ => {}
        }
        head += &line;
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let fate = {
        let mut log = log.lock().unwrap();
        let nth_blob = log.iter().filter(|request| request.is_blob()).count();
        let request = Request { method, path, range, nth_blob };
        log.push(request.clone());
        drop(log);
        rule.lock().unwrap()(&request)
    };
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(format!("{first}{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    relay(server, client, &fate)
}

/// Passes the answer on, or what the fate makes of it.
fn relay(server: TcpStream, mut client: TcpStream, fate: &Fate) -> std::io::Result<()> {
    if let Fate::Answer(status, body) = fate {
        let length = body.len();
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        return client.write_all(answer.as_bytes());
    }
    let mut server = BufReader::new(server);
    let mut line = Vec::new();
    while server.read_until(b'\n', &mut line)? > 0 && line != b"\r\n" {
        client.write_all(&line)?;
        line.clear();
    }
    client.write_all(b"\r\n")?;
    let mut body = Vec::new();
    match fate {
        Fate::Pass | Fate::Answer(..) => {}
        Fate::Cut(at) => {
            server.take(*at as u64).read_to_end(&mut body)?;
            return client.write_all(&body);
        }
        Fate::Flip(at) => {
            server.by_ref().take(*at as u64 + 1).read_to_end(&mut body)?;
            if let Some(byte) = body.get_mut(*at) {
                *byte ^= 1;
            }
        }
        Fate::Hold(at, gate) => {
            server.by_ref().take(*at as u64).read_to_end(&mut body)?;
            client.write_all(&body)?;
            body.clear();
            gate.wait();
        }
    }
    client.write_all(&body)?;
    std::io::copy(&mut server, &mut client)?;
    Ok(())
}
