//! PMI-1 and PMI-2: transcripts of real clients, and of hostile ones.

use corebox_mpi::wire::{Action, JobShape, PmiServer};

fn shape(node: u32) -> JobShape {
    JobShape::new("job.1", node, vec![vec![0, 1], vec![2, 3]], vec![0, 0, 0, 1], 8).unwrap()
}

fn reply(local: usize, text: &str) -> Action {
    Action::Reply { local, bytes: text.as_bytes().to_vec() }
}

/// Says a line that has exactly one answer, which is returned without its end.
fn ask(server: &mut PmiServer, local: usize, line: &str) -> String {
    let mut actions = server.on_bytes(local, format!("{line}\n").as_bytes());
    actions.retain(|action| !matches!(action, Action::Connected { .. }));
    let [Action::Reply { local: to, bytes }] = &actions[..] else { panic!("{line}: {actions:?}") };
    assert_eq!(*to, local);
    String::from_utf8(bytes.clone()).unwrap().strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn an_mpich_rank_starts_up() {
    let mut server = PmiServer::new(shape(1));
    let first = server.on_bytes(1, b"cmd=init pmi_version=1 pmi_subversion=1\n");
    let greeting = "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n";
    assert_eq!(first, [Action::Connected { rank: 3 }, reply(1, greeting)]);
    let transcript = [
        ("cmd=get_maxes", "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024"),
        ("cmd=get_appnum", "cmd=appnum rc=0 appnum=1"),
        ("cmd=get_my_kvsname", "cmd=my_kvsname rc=0 kvsname=job.1"),
        ("cmd=get_universe_size", "cmd=universe_size rc=0 size=8"),
        ("cmd=get kvsname=job.1 key=PMI_process_mapping", "cmd=get_result rc=0 msg=success value=(vector,(0,2,2))"),
        ("cmd=get kvsname=job.1 key=PMI_hwloc_xmlfile", "cmd=get_result rc=-1 msg=key_not_found value=unknown"),
        ("cmd=put kvsname=job.1 key=bc-3 value=mpi#0200A=B$", "cmd=put_result rc=0 msg=success"),
        ("cmd=get kvsname=job.1 key=bc-3", "cmd=get_result rc=0 msg=success value=mpi#0200A=B$"),
        ("cmd=get kvsname=other key=bc-3", "cmd=get_result rc=-1 msg=key_not_found value=unknown"),
        ("cmd=put kvsname=other key=bc-3 value=1", "cmd=put_result rc=-1 msg=unknown_kvsname"),
    ];
    for (request, answer) in transcript {
        assert_eq!(ask(&mut server, 1, request), answer);
    }
    assert_eq!(ask(&mut server, 0, "cmd=init pmi_version=1 pmi_subversion=2").len(), greeting.len() - 1);
    let end = server.on_bytes(1, b"cmd=finalize\n");
    assert_eq!(end, [reply(1, "cmd=finalize_ack\n"), Action::Finalized { rank: 3 }]);
}

#[test]
fn environment_is_what_hydra_gives() {
    let environment = PmiServer::environment(&shape(1), 1, 9);
    let expected =
        [("PMI_FD", "9"), ("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
    assert_eq!(environment, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn barriers_carry_the_new_pairs() {
    let mut nodes = [PmiServer::new(shape(0)), PmiServer::new(shape(1))];
    for server in &mut nodes {
        for local in 0..2 {
            ask(server, local, "cmd=get_maxes");
        }
    }
    for round in 0..2 {
        let mut parts = Vec::new();
        for (node, server) in (0..).zip(&mut nodes) {
            ask(server, 0, &format!("cmd=put kvsname=job.1 key=k{node}.{round} value=v {node}"));
            assert_eq!(server.on_bytes(0, b"cmd=barrier_in\n"), []);
            let [Action::Barrier { blob }] = &server.on_bytes(1, b"cmd=barrier_in\n")[..] else { panic!() };
            parts.push((node, blob.clone()));
        }
        assert_eq!(ask(&mut nodes[0], 1, &format!("cmd=get kvsname=job.1 key=k1.{round}")).matches("rc=-1").count(), 1);
        for server in &mut nodes {
            // Nothing is sent twice: the second round's blobs are as short as the first's.
            assert_eq!(parts[0].1.len(), 4 + 4 + 4 + 3);
            let out = server.barrier_done(&parts).unwrap();
            assert_eq!(out, [reply(0, "cmd=barrier_out\n"), reply(1, "cmd=barrier_out\n")]);
            for node in 0..2 {
                let answer = ask(server, 1, &format!("cmd=get kvsname=job.1 key=k{node}.{round}"));
                assert_eq!(answer, format!("cmd=get_result rc=0 msg=success value=v {node}"));
            }
        }
    }
    assert_eq!(nodes[0].barrier_done(&[(0, vec![]), (1, vec![1, 2, 3])]), Err(1));
}

#[test]
fn aborts_and_services() {
    let mut server = PmiServer::new(shape(0));
    let _ = ask(&mut server, 0, "cmd=init pmi_version=1 pmi_subversion=1");
    let abort = server.on_bytes(0, b"cmd=abort exitcode=7 error_msg=out of luck\n");
    assert_eq!(abort, [Action::Abort { rank: 0, code: 7, message: "out of luck".into() }]);
    assert!(ask(&mut server, 0, "cmd=lookup_name service=s").contains("rc=-1"));
    assert!(ask(&mut server, 0, "cmd=publish_name service=s port=tag#0$host").contains("rc=0"));
    assert!(ask(&mut server, 0, "cmd=lookup_name service=s").ends_with("port=tag#0$host"));
    assert!(ask(&mut server, 0, "cmd=unpublish_name service=s").contains("rc=0"));
    let spawn = server.on_bytes(0, b"mcmd=spawn\nnprocs=2\nexecname=x\ncmd=abort\nendcmd\n");
    assert_eq!(spawn, [reply(0, "cmd=spawn_result rc=-1 errmsg=spawn_is_not_supported\n")]);
}

#[test]
fn any_split_of_the_stream_reads_the_same() {
    let text = b"cmd=init pmi_version=1 pmi_subversion=1\ncmd=get_maxes\ncmd=put kvsname=job.1 key=a value=b\n";
    let whole = PmiServer::new(shape(0)).on_bytes(0, text);
    let mut server = PmiServer::new(shape(0));
    let bytewise: Vec<Action> = text.iter().flat_map(|byte| server.on_bytes(0, &[*byte])).collect();
    assert_eq!(whole, bytewise);
    assert_eq!(whole.len(), 4);
}

fn violation(text: &[u8]) -> String {
    let mut server = PmiServer::new(shape(0));
    let actions = server.on_bytes(0, text);
    let Some(Action::Violation { rank: 0, message }) = actions.last() else { panic!("{actions:?}") };
    assert!(message.chars().all(|c| !c.is_control()) && message.len() < 200, "{message}");
    // It is not listened to any more, and the others are.
    assert_eq!(server.on_bytes(0, b"cmd=get_maxes\n"), []);
    assert_eq!(server.on_bytes(1, b"cmd=get_maxes\n").len(), 2);
    message.clone()
}

#[test]
fn hostile_clients_are_refused_once() {
    violation(b"\n");
    violation(b"cmd\n");
    violation(b"cmd=\x1b[2Jfire\n");
    violation(b"GET / HTTP/1.1\n");
    violation(b"cmd=init \xff\xfe\n");
    violation(b"cmd=barrier_in\ncmd=barrier_in\n");
    assert!(violation(&vec![b'x'; 100_000]).contains("without an end"));
    assert_eq!(PmiServer::new(shape(0)).on_bytes(7, b"cmd=get_maxes\n"), []);
    // Of another protocol's frames.
    let greeting: &[u8] = b"cmd=init pmi_version=2 pmi_subversion=0\n";
    for frame in [&b"      "[..], b"  -1  cmd", b"999999cmd=x", b"     1;", b"     0"] {
        violation(&[greeting, frame].concat());
    }
    // Odd, but answered.
    let mut server = PmiServer::new(shape(0));
    for line in ["cmd=put", "cmd=put kvsname=job.1", "cmd=put kvsname=job.1 key= value=x"] {
        assert!(ask(&mut server, 0, line).contains("rc=-1"), "{line}");
    }
    let long = format!("cmd=put kvsname=job.1 key=k value={}", "v".repeat(20_000));
    assert!(ask(&mut server, 0, &long).contains("rc=-1"));
    assert!(ask(&mut server, 0, "cmd=init pmi_version=9 pmi_subversion=9").contains("rc=-1"));
    assert!(ask(&mut server, 0, "cmd=get").contains("rc=-1"));
}

#[test]
fn random_bytes_never_panic() {
    // A fixed pseudo-random sequence, built from the words of the protocol so that it gets past the first check.
    let words: [&[u8]; 16] = [
        b"cmd=",
        b"init",
        b"put",
        b"get",
        b"barrier_in",
        b" key=",
        b" value=",
        b"\n",
        b";",
        b"    12",
        b"kvs-put",
        b"mcmd=",
        b"endcmd",
        b" kvsname=job.1",
        b"\xff",
        b" pmi_version=2 pmi_subversion=0",
    ];
    let mut state = 12_345_u32;
    for _ in 0..2000 {
        let mut server = PmiServer::new(shape(0));
        let mut text = Vec::new();
        for _ in 0..24 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend_from_slice(words[(state >> 24) as usize % words.len()]);
        }
        let actions = server.on_bytes(0, &text);
        assert!(actions.iter().filter(|action| matches!(action, Action::Violation { .. })).count() <= 1);
    }
}

fn frame(body: &str) -> Vec<u8> {
    format!("{:6}{body}", body.len()).into_bytes()
}

#[test]
fn a_pmi2_client_runs() {
    let mut server = PmiServer::new(JobShape::new("job.1", 0, vec![vec![0, 1]], vec![0, 0], 0).unwrap());
    let greeting = server.on_bytes(0, b"cmd=init pmi_version=2 pmi_subversion=0\n");
    let answer = "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0\n";
    assert_eq!(greeting, [Action::Connected { rank: 0 }, reply(0, answer)]);
    server.on_bytes(1, b"cmd=init pmi_version=2 pmi_subversion=0\n");
    let mut say = |local: usize, body: &str| -> Vec<(usize, String)> {
        let actions = server.on_bytes(local, &frame(body));
        let text = |action| match action {
            Action::Reply { local, bytes } => {
                let text = String::from_utf8(bytes).unwrap();
                assert_eq!(text[..6].trim().parse::<usize>().unwrap(), text.len() - 6);
                Some((local, text[6..].to_owned()))
            }
            Action::Barrier { blob } => {
                assert_eq!(blob.len(), 4 + 1 + 4 + 3);
                None
            }
            other => panic!("{other:?}"),
        };
        actions.into_iter().filter_map(text).collect()
    };
    let one = |replies: Vec<(usize, String)>| {
        let [(_, text)] = &replies[..] else { panic!("{replies:?}") };
        text.clone()
    };
    assert!(one(say(0, "cmd=fullinit;pmijobid=;pmirank=0;threaded=FALSE;")).contains("rank=0;size=2;appnum=0;"));
    assert_eq!(one(say(0, "cmd=job-getid;")), "cmd=job-getid-response;jobid=job.1;rc=0;");
    let mapping = one(say(0, "cmd=info-getjobattr;key=PMI_process_mapping;"));
    assert_eq!(mapping, "cmd=info-getjobattr-response;found=TRUE;value=(vector,(0,1,2));rc=0;");
    assert_eq!(say(1, "cmd=info-getnodeattr;key=shm;wait=TRUE;thrid=7;"), []);
    let put = say(0, "cmd=info-putnodeattr;key=shm;value=/x;");
    assert_eq!(put.len(), 2);
    assert!(put.contains(&(1, "cmd=info-getnodeattr-response;thrid=7;found=TRUE;value=/x;rc=0;".into())));
    assert!(one(say(0, "cmd=kvs-put;key=a;value=b;;c;")).contains("rc=0"));
    assert_eq!(say(0, "cmd=kvs-fence;thrid=1;"), []);
    assert_eq!(say(1, "cmd=kvs-fence;"), []);
    let got = one(say(1, "cmd=kvs-get;jobid=job.1;srcid=-1;key=a;"));
    assert_eq!(got, "cmd=kvs-get-response;found=TRUE;value=b;;c;rc=0;");
    let out = server.barrier_done(&[(0, vec![])]).unwrap();
    let fence = |thread: &str| String::from_utf8(frame(&format!("cmd=kvs-fence-response;{thread}rc=0;"))).unwrap();
    assert_eq!(out, [reply(0, &fence("thrid=1;")), reply(1, &fence(""))]);
    let end = server.on_bytes(0, &frame("cmd=finalize;"));
    assert!(end.contains(&Action::Finalized { rank: 0 }));
    let abort = server.on_bytes(1, &frame("cmd=abort;isworld=TRUE;msg=bad;"));
    assert_eq!(abort, [Action::Abort { rank: 1, code: 1, message: "bad".into() }]);
}
