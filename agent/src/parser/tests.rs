//! The two sides with each other, and the agent's side with parsers that have been taken over.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{Seek, Write};
use std::os::unix::net::UnixStream;

use super::answers::{names, table};
use super::wire::{Function, MAX_BLOCKS, MAX_FUNCTIONS, MAX_TEXT};
use super::*;
use crate::symbolize::debug_files::NoDebugFiles;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn own_program() -> File {
    File::open(std::env::current_exe().unwrap()).unwrap()
}

/// What the agent makes of a parser that behaves like this.
fn with<T>(parser: impl FnOnce(&Channel<'_>) + Send, agent: impl FnOnce(&Channel<'_>) -> T) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let patience = soon();
    std::thread::scope(|scope| {
        scope.spawn(move || parser(&Channel::of_parser(theirs.as_fd())));
        let answer = agent(&Channel::of_agent(ours.as_fd(), &patience));
        drop(ours);
        answer
    })
}

fn serve(channel: &Channel<'_>) {
    let _ = child::serve(channel);
}

fn want_table(channel: &Channel<'_>, file: &File) {
    let nothing = Writer::default();
    channel
        .send(Kind::WantTable, &nothing, Some(file.as_fd()))
        .unwrap();
}

/// Some addresses of functions of this test program, in ascending order.
fn addresses(file: &File) -> Vec<u64> {
    let headers = elf::Headers::read(file).unwrap();
    let text = headers.section(".text").unwrap();
    (0..200)
        .map(|at| text.vaddr + at * text.size / 200)
        .collect()
}

#[test]
fn a_table_is_the_one_that_is_built_here() {
    let file = own_program();
    let mut segments = None;
    let mut told = Some(|found| segments = Some(found));
    let theirs = with(serve, |channel| {
        want_table(channel, &file);
        table(channel, &mut told)
    })
    .unwrap();
    let (theirs, ours) = (theirs.unwrap(), unwind::build(&file).unwrap());
    assert_eq!(theirs.module, ours.module);
    assert_eq!(theirs.report, ours.report);
    assert!(theirs.blocks == ours.blocks);
    assert_eq!(segments, elf::segments(&file).ok());
}

#[test]
fn what_is_no_program_is_refused_with_the_reason() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"#!/bin/sh").unwrap();
    let refused = with(serve, |channel| {
        want_table(channel, &file);
        table(channel, &mut Some(|_| ()))
    });
    let here = unwind::build(&file).unwrap_err().to_string();
    assert_eq!(refused.unwrap().unwrap_err(), here);
}

#[test]
fn names_are_those_that_are_found_here() {
    // Without debug information, of which a test program has too much.
    let file = own_program();
    let budget = Budget::rest(Duration::ZERO, Duration::from_secs(60));
    let addresses = addresses(&file);
    let ours = symbolize::module(&file, "me", &NoDebugFiles, &addresses, &budget);
    let request = NamesRequest {
        details_ms: 0,
        total_ms: 60_000,
        addresses: addresses.clone(),
    };
    let theirs = with(serve, |channel| {
        let content = written(&request);
        channel
            .send(Kind::WantNames, &content, Some(file.as_fd()))
            .unwrap();
        names(channel, "me", &NoDebugFiles, &addresses).unwrap()
    });
    assert_eq!(theirs.frames, ours);
    assert_eq!(theirs.build_id, symbolize::build_id(&file));
}

/// Offers these files whatever is wanted.
struct Files(Vec<File>);

impl DebugFiles for Files {
    fn find(&self, _: &Wanted<'_>, accept: &mut dyn FnMut(&File) -> bool) -> Option<File> {
        let found = self.0.iter().find(|file| accept(file))?;
        found.try_clone().ok()
    }
}

#[test]
fn only_programs_are_handed_to_a_parser_that_asks_for_files() {
    let mut secret = tempfile::tempfile().unwrap();
    secret
        .write_all(b"root:secret of more than eighteen bytes")
        .unwrap();
    let mut core = tempfile::tempfile().unwrap();
    core.write_all(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0memory")
        .unwrap();
    secret.rewind().unwrap();
    let files = Files(vec![secret, core, own_program()]);
    let got = std::sync::Mutex::new(Vec::new());
    let ask = |channel: &Channel<'_>| {
        let mut content = Writer::default();
        content.wanted(&Wanted::Path("/etc/shadow"));
        channel.send(Kind::Find, &content, None).unwrap();
        let answer = channel.receive().unwrap();
        let size = answer.file.map(|file| file.metadata().unwrap().len());
        got.lock().unwrap().push(size);
        let refuse = Writer(vec![0]);
        channel.send(Kind::Verdict, &refuse, None).unwrap();
        assert_eq!(channel.receive().unwrap().kind, Kind::NoCandidate);
    };
    let lost = with(ask, |channel| names(channel, "m", &files, &[1]));
    assert_eq!(lost.unwrap_err(), Lost::Closed);
    let size = own_program().metadata().unwrap().len();
    assert_eq!(got.into_inner().unwrap(), [Some(size)]);
}

/// What the agent says to one message about the name of address 1.
fn answer_to(kind: Kind, bytes: Vec<u8>) -> Result<Named, Lost> {
    let say = |channel: &Channel<'_>| {
        let _ = channel.send(kind, &Writer(bytes), None);
    };
    with(say, |channel| names(channel, "m", &NoDebugFiles, &[1]))
}

fn one(function: &Function) -> Vec<u8> {
    let mut content = Writer::default();
    content.functions(std::slice::from_ref(function));
    content.0
}

#[test]
fn hostile_names_are_refused() {
    let good = Function {
        name: Ok("main".to_owned()),
        file: Some("/a.c".to_owned()),
        line: Some(3),
        start: None,
    };
    let bytes = one(&good);
    // As it should be; then nothing more comes.
    assert_eq!(
        answer_to(Kind::Names, bytes.clone()).unwrap_err(),
        Lost::Closed
    );
    let mut wrong = vec![
        // Cut short, anywhere.
        bytes[..bytes.len() - 1].to_vec(),
        bytes[..7].to_vec(),
        // More than one address has.
        bytes.repeat(2),
        // No function, and too many.
        0_u32.to_le_bytes().to_vec(),
        (MAX_FUNCTIONS + 1).to_le_bytes().to_vec(),
    ];
    let mut not_utf8 = bytes.clone();
    not_utf8[9] = 0xff;
    wrong.push(not_utf8);
    let mut unknown_bits = bytes.clone();
    unknown_bits[4] |= 0x40;
    wrong.push(unknown_bits);
    let mut too_long = 1_u32.to_le_bytes().to_vec();
    too_long.push(1);
    too_long.extend((MAX_TEXT as u32 + 1).to_le_bytes());
    too_long.resize(MAX_TEXT + 100, b'a');
    wrong.push(too_long);
    // A reason that is not the parser's to give.
    wrong.push(vec![1, 0, 0, 0, 0, 9]);
    for bytes in wrong {
        let shown = bytes[..bytes.len().min(40)].to_vec();
        let lost = answer_to(Kind::Names, bytes);
        assert_eq!(lost.unwrap_err(), Lost::Garbled, "{shown:?}");
    }
    for kind in [Kind::Done, Kind::Table, Kind::WantTable, Kind::Verdict] {
        assert_eq!(answer_to(kind, Vec::new()).unwrap_err(), Lost::Garbled);
    }
    let long_id = [65_u32.to_le_bytes().as_slice(), &[7; 65]].concat();
    assert_eq!(
        answer_to(Kind::BuildId, long_id).unwrap_err(),
        Lost::Garbled
    );
}

#[test]
fn a_parser_does_not_ask_for_files_for_ever() {
    let ask = |channel: &Channel<'_>| {
        let mut content = Writer::default();
        content.wanted(&Wanted::Link("x"));
        while channel.send(Kind::Find, &content, None).is_ok() && channel.receive().is_ok() {}
    };
    let lost = with(ask, |channel| names(channel, "m", &NoDebugFiles, &[1]));
    assert_eq!(lost.unwrap_err(), Lost::Garbled);
}

#[test]
fn hostile_tables_are_refused() {
    let block = vec![0_u8; 4096];
    let table_of = |buckets, rows, extended| {
        let mut content = Writer::default();
        let module = agent_ebpf::unwind::Module {
            base: 0x1000,
            buckets,
            rows,
            extended,
            table: 77,
        };
        content.table(&module, &unwind::Report::default());
        content.0
    };
    let answer = |messages: Vec<(Kind, Vec<u8>)>| {
        let say = |channel: &Channel<'_>| {
            for (kind, bytes) in messages {
                let _ = channel.send(kind, &Writer(bytes), None);
            }
        };
        with(say, |channel| table(channel, &mut Some(|_| ())))
    };
    let two = vec![(Kind::Blocks, block.repeat(2))];
    let fine = [two.clone(), vec![(Kind::Table, table_of(1, 1, 2))]].concat();
    let taken = answer(fine).unwrap().unwrap();
    assert_eq!((taken.blocks.len(), taken.module.table), (2, 0));
    // Directory, rows and rules each within the blocks, in this order; at least one bucket.
    for (buckets, rows, extended) in [
        (0, 1, 2),
        (1, 1, 3),
        (2000, 1, 2),
        (1, 2, 1),
        (u32::MAX, 1, 2),
    ] {
        let bad = [
            two.clone(),
            vec![(Kind::Table, table_of(buckets, rows, extended))],
        ]
        .concat();
        assert_eq!(
            answer(bad).unwrap_err(),
            Lost::Garbled,
            "{buckets} {rows} {extended}"
        );
    }
    assert_eq!(
        answer(vec![(Kind::Blocks, vec![0; 4095])]).unwrap_err(),
        Lost::Garbled
    );
    let piece = block.repeat(2048);
    let much = vec![(Kind::Blocks, piece); MAX_BLOCKS as usize / 2048 + 1];
    assert_eq!(answer(much).unwrap_err(), Lost::Garbled);
    let many = 1171_u32.to_le_bytes().to_vec();
    assert_eq!(
        answer(vec![(Kind::Segments, many)]).unwrap_err(),
        Lost::Garbled
    );
    let none = 0_u32.to_le_bytes().to_vec();
    let twice = vec![(Kind::Segments, none); 2];
    assert_eq!(answer(twice).unwrap_err(), Lost::Garbled);
}

#[test]
fn only_files_of_the_system_share_a_parser() {
    let system = File::open("/bin/sh").unwrap();
    let mine = tempfile::tempfile().unwrap();
    let shares = Cell::new(true);
    let see = |file: File| {
        let files = Files(vec![file]);
        let watched = Watched {
            files: &files,
            shares: &shares,
        };
        watched.find(&Wanted::Link("x"), &mut |_| true);
        shares.get()
    };
    if regular::is_of_the_system(&system) {
        assert!(see(system));
    }
    mine.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    assert!(!see(mine));
    assert!(
        !see(File::open("/bin/sh").unwrap()),
        "what was tainted stays so"
    );
}
