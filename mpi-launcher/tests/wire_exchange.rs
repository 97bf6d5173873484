//! The exchange between agents, on loopback: trees of real links in one process.

use corebox_mpi::wire::exchange::{Config, Event, Exchange, Parts, Secret, Timing, local_addresses};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const ARITY: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

fn config(node: u32, nodes: u32, timing: Timing) -> Config {
    Config { job: "job".into(), secret: Secret::from_bytes([3; 32]), node, nodes, arity: ARITY, timing }
}

fn make(nodes: u32, timing: Timing) -> Vec<Exchange> {
    (0..nodes).map(|node| Exchange::new(config(node, nodes, timing)).unwrap()).collect()
}

fn loopback(exchange: &Exchange) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], exchange.port().unwrap()))
}

/// Starts each node with its parent's address; an address where nobody listens comes first.
fn start(exchanges: &mut [Exchange]) {
    let ports: Vec<Option<SocketAddr>> = exchanges.iter().map(|e| e.port().map(|_| loopback(e))).collect();
    let nodes = exchanges.len() as u32;
    for (node, exchange) in (0..).zip(exchanges) {
        let parent = Exchange::parent_of(node, nodes, ARITY).map(|parent| ports[parent as usize].unwrap());
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        exchange.start(parent.map_or(vec![], |parent| vec![dead, parent])).unwrap();
    }
}

/// The next events, waiting for them with poll(2) on the descriptor that announces them.
fn wait(exchange: &mut Exchange) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = exchange.events();
        if !events.is_empty() {
            return events;
        }
        assert!(Instant::now() < deadline, "no event");
        let timeout = PollTimeout::try_from(Duration::from_secs(1)).unwrap();
        poll(&mut [PollFd::new(exchange.wake_fd(), PollFlags::POLLIN)], timeout).unwrap();
    }
}

/// Waits for an event that the function takes; others than `Ready` must not come.
fn expect<T>(exchange: &mut Exchange, take: impl Fn(Event) -> Option<T>) -> T {
    loop {
        let events = wait(exchange);
        let found: Vec<T> = events
            .into_iter()
            .filter(|event| *event != Event::Ready)
            .map(|event| take(event.clone()).unwrap_or_else(|| panic!("unexpected {event:?}")))
            .collect();
        if let Some(found) = found.into_iter().next() {
            return found;
        }
    }
}

fn wait_ready(exchanges: &mut [Exchange]) {
    for exchange in exchanges {
        while !exchange.ready() {
            wait(exchange);
        }
    }
}

fn gathered(event: Event) -> Option<(Vec<u8>, Parts)> {
    match event {
        Event::Gathered { key, parts, .. } => Some((key, parts)),
        _ => None,
    }
}

#[test]
fn all_participants_get_all_parts() {
    for nodes in [1, 2, 3, 8] {
        let mut exchanges = make(nodes, Timing::default());
        start(&mut exchanges);
        // The same key again and again; a blob longer than one Noise message; the first before the links are there.
        for round in 0_u8..3 {
            let blob = |node: u32| vec![round ^ node as u8; if round == 1 { 200_000 } else { node as usize }];
            for (node, exchange) in (0..).zip(&mut exchanges) {
                exchange.allgather(b"key".to_vec(), (0..nodes).collect(), blob(node));
            }
            let all: Vec<(u32, Vec<u8>)> = (0..nodes).map(|node| (node, blob(node))).collect();
            for exchange in &mut exchanges {
                let (key, parts) = expect(exchange, gathered);
                assert_eq!(key, b"key");
                assert!(parts == all, "{nodes} nodes, round {round}");
            }
        }
        assert!(exchanges.iter().all(Exchange::ready));
    }
}

#[test]
fn one_node_opens_no_socket() {
    let exchange = &make(1, Timing::default())[0];
    assert_eq!((exchange.port(), exchange.addresses().unwrap()), (None, vec![]));
    assert!(exchange.ready());
}

#[test]
fn subsets_gather_among_themselves() {
    let mut exchanges = make(8, Timing::default());
    start(&mut exchanges);
    wait_ready(&mut exchanges);
    for participants in [vec![3, 4], vec![7, 2, 5], vec![6], vec![0, 7]] {
        for &node in &participants {
            exchanges[node as usize].allgather(b"k".to_vec(), participants.clone(), vec![node as u8]);
        }
        let mut sorted = participants.clone();
        sorted.sort_unstable();
        let all: Vec<(u32, Vec<u8>)> = sorted.iter().map(|&node| (node, vec![node as u8])).collect();
        for &node in &participants {
            assert_eq!(expect(&mut exchanges[node as usize], gathered).1, all);
        }
    }
    // Two rounds under way at once, the later one complete first.
    exchanges[3].allgather(b"k".to_vec(), vec![3, 4], vec![1]);
    for node in [3, 5] {
        exchanges[node].allgather(b"other".to_vec(), vec![3, 5], vec![2]);
    }
    assert_eq!(expect(&mut exchanges[3], gathered).0, b"other");
    exchanges[4].allgather(b"k".to_vec(), vec![3, 4], vec![1]);
    assert_eq!(expect(&mut exchanges[3], gathered).0, b"k");
}

#[test]
fn questions_and_answers_find_their_way() {
    let mut exchanges = make(8, Timing::default());
    start(&mut exchanges);
    for (from, to) in [(7, 6), (0, 7), (4, 3), (5, 0), (2, 2)] {
        exchanges[from].request(to as u32, 42, vec![from as u8]);
        let question = expect(&mut exchanges[to], |event| match event {
            Event::Request { from, id, blob } => Some((from, id, blob)),
            _ => None,
        });
        assert_eq!(question, (from as u32, 42, vec![from as u8]));
        exchanges[to].reply(from as u32, 42, vec![9]);
        let answer = expect(&mut exchanges[from], |event| match event {
            Event::Reply { from, id, blob } => Some((from, id, blob)),
            _ => None,
        });
        assert_eq!(answer, (to as u32, 42, vec![9]));
    }
}

#[test]
fn only_the_right_secret_job_and_place_are_let_in() {
    let root = &mut Exchange::new(config(0, 2, Timing::default())).unwrap();
    let address = loopback(root);
    root.start(vec![]).unwrap();
    let wrong_secret = Config { secret: Secret::from_bytes([4; 32]), ..config(1, 2, Timing::default()) };
    let wrong_job = Config { job: "other".into(), ..config(1, 2, Timing::default()) };
    let wrong_place = config(3, 4, Timing::default()); // its parent is node 1
    for config in [wrong_secret, wrong_job, wrong_place] {
        let mut stranger = Exchange::new(config).unwrap();
        stranger.start(vec![address]).unwrap();
        // It has had its answer when it calls a second time; the ports of refused calls are in TIME-WAIT or gone.
        let mut witness = TcpStream::connect(address).unwrap();
        witness.write_all(b"nonsense that is no preamble").unwrap();
        assert_eq!(witness.read(&mut [0; 8]).unwrap_or(0), 0);
        assert!(!stranger.ready() && !root.ready() && root.events().is_empty());
    }
    let mut child = Exchange::new(config(1, 2, Timing::default())).unwrap();
    child.start(vec![address]).unwrap();
    wait_ready(std::slice::from_mut(root));
    wait_ready(std::slice::from_mut(&mut child));
    // All children are there: nobody listens any more.
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn strangers_do_not_disturb() {
    let timing = Timing { handshake: Duration::from_secs(2), ..Timing::default() };
    let mut exchanges = make(3, timing);
    let address = loopback(&exchanges[0]);
    let parent = vec![address];
    exchanges[0].start(vec![]).unwrap();
    // More silent callers than are kept waiting, a talkative one, and one that stops in mid-preamble.
    let mut silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut talkative = TcpStream::connect(address).unwrap();
    let _ = talkative.write_all(&vec![b'x'; 1 << 20]);
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"cbx1\0\0").unwrap();
    for exchange in &mut exchanges[1..] {
        exchange.start(parent.clone()).unwrap();
    }
    wait_ready(&mut exchanges);
    for exchange in &mut exchanges {
        exchange.allgather(b"k".to_vec(), vec![0, 1, 2], vec![]);
    }
    for exchange in &mut exchanges {
        assert_eq!(expect(exchange, gathered).1.len(), 3);
    }
    silent.extend([talkative, slow]);
    for mut stranger in silent {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stranger.read(&mut [0; 8]).unwrap_or(0), 0, "a stranger is still connected");
    }
}

#[test]
fn a_silent_caller_is_dropped_in_time() {
    let timing = Timing { handshake: Duration::from_millis(200), ..Timing::default() };
    let mut root = Exchange::new(config(0, 2, timing)).unwrap();
    let mut stranger = TcpStream::connect(loopback(&root)).unwrap();
    root.start(vec![]).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stranger.read(&mut [0; 8]).unwrap(), 0);
}

fn lost(event: Event) -> Option<(u32, String)> {
    match event {
        Event::LinkLost { node, cause } => Some((node, cause)),
        _ => None,
    }
}

#[test]
fn good_bye_is_not_a_loss() {
    let mut exchanges = make(3, Timing::default());
    start(&mut exchanges);
    wait_ready(&mut exchanges);
    exchanges[1].close();
    // Something that comes after the good-bye, to know that it was read.
    exchanges[2].request(0, 1, vec![]);
    let question = expect(&mut exchanges[0], |event| match event {
        Event::Request { from, .. } => Some(from),
        _ => None,
    });
    assert_eq!(question, 2);
}

/// A relay that can be cut or muted, between a child and its parent.
struct Relay {
    address: SocketAddr,
    mute: std::sync::Arc<std::sync::atomic::AtomicBool>,
    streams: std::sync::mpsc::Receiver<(TcpStream, TcpStream)>,
}

impl Relay {
    fn to(target: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mute = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (sender, streams) = std::sync::mpsc::channel();
        let muted = mute.clone();
        std::thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = TcpStream::connect(target).unwrap();
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far.try_clone().unwrap(), near.try_clone().unwrap()),
            ] {
                let muted = muted.clone();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        if !muted.load(std::sync::atomic::Ordering::SeqCst) && to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
            sender.send((near, far)).unwrap();
        });
        Self { address, mute, streams }
    }
}

#[test]
fn a_lost_link_is_told_on_both_sides() {
    for cut in [true, false] {
        let timing = Timing {
            heartbeat: Duration::from_millis(50),
            silence: Duration::from_millis(if cut { 20_000 } else { 600 }),
            handshake: Duration::from_secs(5),
        };
        let mut exchanges = make(2, timing);
        let relay = Relay::to(loopback(&exchanges[0]));
        exchanges[0].start(vec![]).unwrap();
        exchanges[1].start(vec![relay.address]).unwrap();
        wait_ready(&mut exchanges);
        let (near, far) = relay.streams.recv().unwrap();
        if cut {
            near.shutdown(std::net::Shutdown::Both).unwrap();
            far.shutdown(std::net::Shutdown::Both).unwrap();
        } else {
            relay.mute.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        for (node, other) in [(0, 1), (1, 0)] {
            let (lost, cause) = expect(&mut exchanges[node], lost);
            assert_eq!(lost, other);
            assert!(cause.contains(if cut { "closed" } else { "nothing was heard" }), "{cause}");
        }
    }
}

#[test]
fn heartbeats_keep_an_idle_link() {
    let timing = Timing {
        heartbeat: Duration::from_millis(50),
        silence: Duration::from_millis(2500),
        handshake: Duration::from_secs(5),
    };
    let mut exchanges = make(2, timing);
    start(&mut exchanges);
    wait_ready(&mut exchanges);
    // Idle for longer than the silence that would end the link: this is what is tested, not a wait for something.
    std::thread::sleep(timing.silence * 2);
    let events: Vec<Event> = exchanges.iter_mut().flat_map(Exchange::events).collect();
    assert!(events.iter().all(|event| *event == Event::Ready), "{events:?}");
    exchanges[1].request(0, 5, vec![]);
    assert!(matches!(wait(&mut exchanges[0])[..], [Event::Request { from: 1, id: 5, .. }]));
}

#[test]
fn local_addresses_reach_this_host() {
    let addresses = local_addresses().unwrap();
    assert!(!addresses.is_empty());
    let root = Exchange::new(config(0, 2, Timing::default())).unwrap();
    assert_eq!(root.addresses().unwrap().len(), addresses.len());
    for address in root.addresses().unwrap() {
        TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|e| panic!("{address}: {e}"));
    }
}
