//! pprof's gzipped `profile.proto`, for `go tool pprof`, Pyroscope, Parca and speedscope.
//!
//! - A sample is a stack of one thread, leaf first, with its count and, at the nominal period of
//!   the clock, its CPU time. Labels: `process`, `thread`, `pid`, `tid`, `end` (why the user part of
//!   the stack ended). Events that were all counted, and samples by cycles, have no period, and
//!   no CPU time.
//! - A location is an address with the functions inlined there as its lines, innermost first. An
//!   address is an ELF virtual address of its mapping's file; the kernel's are 0, since they would
//!   give away where it was loaded.
//! - A frame has the same name as in folded stacks, `[module+0x…]` where there is none. A stack
//!   that was cut has the frame `[truncated: reason]` at its root.
//! - `system_name` is left out: the mangled name is not kept, and a copy of the demangled one would
//!   make pprof shorten it again.
//!
//! Source: `proto/profile.proto` of github.com/google/pprof.

use std::hash::Hash;
use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::escape;
use super::intern::Interner;
use super::text;
use crate::profile::{Frame, FrameId, Profile, Space, Stack};
use crate::protobuf::Message;

/// The profile, gzipped.
pub(super) fn render(profile: &Profile) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&Writer::new(profile).write().into_bytes())?;
    gzip.finish()
}

/// A message under way, and the tables that its parts refer to.
struct Writer<'a> {
    profile: &'a Profile,
    message: Message,
    strings: Interner<String>,
    mappings: Interner<String>,
    functions: Interner<(String, Option<String>)>,
    locations: Interner<Code>,
}

/// What a location stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Code {
    /// Frames of one address, the physical function last.
    Frames(Vec<FrameId>),
    /// The frame that a cut stack has in place of what is missing.
    Truncated(String),
}

/// Ids begin at 1: 0 is none.
fn id<T: Clone + Eq + Hash>(table: &mut Interner<T>, value: T) -> u64 {
    table.index(value) as u64 + 1
}

impl<'a> Writer<'a> {
    fn new(profile: &'a Profile) -> Self {
        let mut writer = Self {
            profile,
            message: Message::default(),
            strings: Interner::default(),
            mappings: Interner::default(),
            functions: Interner::default(),
            locations: Interner::default(),
        };
        writer.strings.index(String::new());
        // The first mapping is the program to pprof.
        let program = profile.facts.targets.first().and_then(|it| it.exe.as_ref());
        if let Some(module) = profile.modules.iter().find(|it| Some(&it.path) == program) {
            writer.mappings.index(module.name.clone());
        }
        writer
    }

    fn write(mut self) -> Message {
        self.values();
        for stack in &self.profile.stacks {
            self.sample(stack);
        }
        self.write_locations();
        self.write_mappings();
        self.write_functions();
        let facts = &self.profile.facts;
        self.message
            .integer(9, facts.started.saturating_mul(1_000_000_000))
            .integer(10, (facts.duration_seconds * 1e9) as u64);
        self.comments();
        for text in &self.strings.list {
            self.message.bytes(6, text.as_bytes());
        }
        self.message
    }

    /// The place of a text in the string table, made safe to show.
    fn text(&mut self, text: &str) -> u64 {
        self.strings.index(escape::plain(text).into_owned()) as u64
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> Message {
        let mut message = Message::default();
        message
            .integer(1, self.text(kind))
            .integer(2, self.text(unit));
        message
    }

    /// The types of the values, and the period.
    fn values(&mut self) {
        let counted = match text::is_counted(self.profile) {
            true => self.profile.facts.event.replace(' ', "_"),
            false => "samples".to_owned(),
        };
        let counted = self.value_type(&counted, "count");
        self.message.message(1, &counted);
        if let Some(period) = self.profile.facts.period_ns() {
            let cpu = self.value_type("cpu", "nanoseconds");
            self.message
                .message(1, &cpu)
                .message(11, &cpu)
                .integer(12, period);
        }
    }

    fn sample(&mut self, stack: &Stack) {
        let mut groups: Vec<Vec<FrameId>> = Vec::new();
        for &id in &stack.frames {
            let inlined = (self.frame(id)).is_some_and(|frame| frame.inlined);
            match groups.last_mut() {
                Some(group) if inlined => group.insert(0, id),
                _ => groups.push(vec![id]),
            }
        }
        let truncated = text::truncated(stack.end).map(Code::Truncated);
        let codes = groups.into_iter().rev().map(Code::Frames).chain(truncated);
        let locations: Vec<u64> = codes.map(|code| id(&mut self.locations, code)).collect();

        let mut sample = Message::default();
        sample.integers(1, locations);
        let cpu = self.profile.facts.period_ns();
        let cpu = cpu.map(|period| stack.count.saturating_mul(period));
        sample.integers(2, [stack.count].into_iter().chain(cpu));
        let texts = [
            ("process", stack.comm.as_str()),
            ("thread", stack.thread.as_str()),
            ("end", stack.end.name()),
        ];
        for (key, value) in texts {
            let mut label = Message::default();
            label
                .integer(1, self.text(key))
                .integer(2, self.text(value));
            sample.message(3, &label);
        }
        for (key, value) in [("pid", stack.pid), ("tid", stack.tid)] {
            let mut label = Message::default();
            label
                .integer(1, self.text(key))
                .integer(3, u64::from(value));
            sample.message(3, &label);
        }
        self.message.message(2, &sample);
    }

    fn frame(&self, id: FrameId) -> Option<&'a Frame> {
        self.profile.frames.get(id as usize)
    }

    fn write_locations(&mut self) {
        for (index, code) in std::mem::take(&mut self.locations.list).iter().enumerate() {
            let mut location = Message::default();
            location.integer(1, index as u64 + 1);
            match code {
                Code::Truncated(name) => {
                    let function = id(&mut self.functions, (name.clone(), None));
                    location.message(4, Message::default().integer(1, function));
                }
                Code::Frames(ids) => self.write_frames(&mut location, ids),
            }
            self.message.message(4, &location);
        }
    }

    fn write_frames(&mut self, location: &mut Message, ids: &[FrameId]) {
        let frames = ids
            .iter()
            .filter_map(|&id| self.profile.frames.get(id as usize));
        for (depth, frame) in frames.enumerate() {
            if depth == 0 {
                if let Some(module) = &frame.module {
                    location.integer(2, id(&mut self.mappings, module.clone()));
                }
                if frame.space == Space::User {
                    location.integer(3, frame.address);
                }
            }
            let file = frame.file.clone();
            let function = id(&mut self.functions, (text::frame_name(frame), file));
            let mut line = Message::default();
            line.integer(1, function)
                .integer(2, frame.line.unwrap_or(0).into());
            location.message(4, &line);
        }
    }

    /// A file's name stands for all files of this name: it has a build id where they agree.
    fn write_mappings(&mut self) {
        for (index, name) in std::mem::take(&mut self.mappings.list).iter().enumerate() {
            let mut files = self.profile.modules.iter().filter(|it| it.name == *name);
            let first = files.next();
            let rest: Vec<_> = files.collect();
            let path = first.filter(|first| rest.iter().all(|it| it.path == first.path));
            let id = first.filter(|first| rest.iter().all(|it| it.build_id == first.build_id));
            let path = self.text(path.map_or(name, |file| &file.path));
            let id = self.text(id.and_then(|file| file.build_id.as_deref()).unwrap_or(""));
            let mut mapping = Message::default();
            mapping
                .integer(1, index as u64 + 1)
                .integer(3, self.limit(name))
                .integer(5, path)
                .integer(6, id);
            // There is nothing that a reader could add: functions, files, lines, inlined frames.
            for field in 7..=10 {
                mapping.integer(field, 1);
            }
            self.message.message(3, &mapping);
        }
    }

    /// The end of the page of the highest address in the file that a frame has.
    fn limit(&self, module: &str) -> u64 {
        let frames =
            self.profile.frames.iter().filter(|frame| {
                frame.space == Space::User && frame.module.as_deref() == Some(module)
            });
        frames
            .map(|frame| frame.address | 0xfff)
            .max()
            .map_or(0, |last| last.saturating_add(1))
    }

    fn write_functions(&mut self) {
        for (index, (name, file)) in std::mem::take(&mut self.functions.list).iter().enumerate() {
            let mut function = Message::default();
            function
                .integer(1, index as u64 + 1)
                .integer(2, self.text(name))
                .integer(4, self.text(file.as_deref().unwrap_or("")));
            self.message.message(5, &function);
        }
    }

    /// The circumstances and the losses.
    fn comments(&mut self) {
        let profile = self.profile;
        let facts = &profile.facts;
        let mut lines = vec![
            format!("agent {}, {}", facts.agent_version, facts.kernel),
            format!("command line: {}", facts.command_line.join(" ")),
            text::sampled(profile),
            text::account(profile),
            format!("clock: {} on {} CPUs", facts.event, facts.cpus),
        ];
        if let Some(complete) = text::complete_percent(profile) {
            lines.push(format!(
                "complete stacks {} %",
                text::show_percent(complete)
            ));
        }
        let notes = profile.accounting.notes.iter();
        lines.extend(notes.map(|(cause, count)| format!("{cause}: {count}")));
        let ids: Vec<u64> = lines.iter().map(|line| self.text(line)).collect();
        self.message.integers(13, ids);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::output::fixture;
    use crate::protobuf::{Fields, Value};

    fn message(profile: &Profile) -> Vec<u8> {
        Writer::new(profile).write().into_bytes()
    }

    /// The fields of this number, of the profile or of a message in it.
    fn all(bytes: &[u8], number: u64) -> Vec<Value<'_>> {
        Fields::new(bytes)
            .map(Result::unwrap)
            .filter(|(found, _)| *found == number)
            .map(|(_, value)| value)
            .collect()
    }

    fn integer(bytes: &[u8], number: u64) -> u64 {
        all(bytes, number)
            .first()
            .map_or(0, |value| value.integer().unwrap())
    }

    fn integers(bytes: &[u8], number: u64) -> Vec<u64> {
        let mut list = Vec::new();
        for value in all(bytes, number) {
            value.each_integer(|value| list.push(value)).unwrap();
        }
        list
    }

    fn strings(bytes: &[u8]) -> Vec<String> {
        let text = |value: Value<'_>| String::from_utf8(value.bytes().unwrap().to_vec()).unwrap();
        all(bytes, 6).into_iter().map(text).collect()
    }

    /// The names on each sample's stack, leaf first, a `|` between locations; and its values.
    fn samples(bytes: &[u8]) -> Vec<(String, Vec<u64>)> {
        let strings = strings(bytes);
        let functions = all(bytes, 5);
        let locations = all(bytes, 4);
        let name = |id: u64| {
            let function = functions[id as usize - 1].bytes().unwrap();
            strings[integer(function, 2) as usize].clone()
        };
        let lines = |id: u64| {
            let location = locations[id as usize - 1].bytes().unwrap();
            assert_eq!(integer(location, 1), id);
            let lines = all(location, 4).into_iter();
            let names = lines.map(|line| name(integer(line.bytes().unwrap(), 1)));
            names.collect::<Vec<_>>().join(";")
        };
        let sample = |sample: Value<'_>| {
            let sample = sample.bytes().unwrap();
            let stack: Vec<_> = integers(sample, 1).into_iter().map(lines).collect();
            (stack.join("|"), integers(sample, 2))
        };
        all(bytes, 2).into_iter().map(sample).collect()
    }

    #[test]
    fn stacks_are_leaf_first_and_inlined_functions_share_a_location() {
        let period = 10_101_010;
        let of = |stack: &str, count: u64| (stack.to_owned(), vec![count, count * period]);
        assert_eq!(
            samples(&message(&fixture::profile())),
            [
                of("hash<std::vector<int>>;main|_start", 60),
                of("walk|walk|walk|main|_start", 25),
                of("vfs_read|main|_start", 10),
                of("[libz.so.1+0x1200]|[truncated: no_row]", 4),
                of("[libz.so.1+0x1200]|[unknown]|[truncated: read_fault]", 1),
            ]
        );
    }

    #[test]
    fn mappings_have_paths_and_build_ids_and_the_kernel_no_address() {
        let profile = fixture::profile();
        let bytes = message(&profile);
        let strings = strings(&bytes);
        let mappings: Vec<_> = all(&bytes, 3)
            .into_iter()
            .map(|mapping| {
                let text =
                    |field| strings[integer(mapping.bytes().unwrap(), field) as usize].as_str();
                (text(5), text(6), integer(mapping.bytes().unwrap(), 3))
            })
            .collect();
        assert_eq!(
            mappings,
            [
                ("/usr/bin/server", "8f0c1d", 0x2000),
                ("[kernel]", "", 0),
                ("/usr/lib/libz.so.1", "", 0x2000),
            ]
        );
        let kernel = all(&bytes, 4)
            .into_iter()
            .map(|location| location.bytes().unwrap())
            .find(|location| integer(location, 2) == 2)
            .unwrap();
        assert_eq!(integer(kernel, 3), 0);
    }

    #[test]
    fn files_of_one_name_keep_what_they_agree_on() {
        let mut profile = fixture::profile();
        let mut other = profile.modules[0].clone();
        other.build_id = Some("ff".to_owned());
        profile.modules.push(other);
        let strings = strings(&message(&profile));
        assert!(strings.iter().any(|text| text == "/usr/bin/server"));
        assert!(!strings.iter().any(|text| text == "8f0c1d" || text == "ff"));
    }

    #[test]
    fn labels_say_whose_sample_it_is() {
        let bytes = message(&fixture::profile());
        let strings = strings(&bytes);
        let first = all(&bytes, 2)[0].bytes().unwrap();
        let labels: Vec<_> = all(first, 3)
            .into_iter()
            .map(|label| {
                let label = label.bytes().unwrap();
                let text = |field| strings[integer(label, field) as usize].as_str();
                (text(1), text(2), integer(label, 3))
            })
            .collect();
        assert_eq!(
            labels,
            [
                ("process", "server", 0),
                ("thread", "worker-1", 0),
                ("end", "root", 0),
                ("pid", "", 4242),
                ("tid", "", 4243),
            ]
        );
    }

    #[test]
    fn facts_and_losses_are_comments() {
        let bytes = message(&fixture::profile());
        let strings = strings(&bytes);
        let comments: Vec<_> = integers(&bytes, 13)
            .into_iter()
            .map(|index| strings[index as usize].as_str())
            .collect();
        assert!(
            comments.contains(&"100 samples over 2.0 s at 99 Hz"),
            "{comments:?}"
        );
        assert!(
            comments
                .iter()
                .any(|line| line.ends_with("1 lost (ring full 1)"))
        );
        assert_eq!(integer(&bytes, 9), 1_795_258_700_000_000_000);
        assert_eq!(integer(&bytes, 10), 2_000_000_000);
        assert_eq!(integer(&bytes, 12), 10_101_010);
    }

    #[test]
    fn counted_events_have_no_period() {
        let mut profile = fixture::profile();
        profile.facts.frequency = 0;
        profile.facts.event = "failed system calls".to_owned();
        let bytes = message(&profile);
        assert!(strings(&bytes).contains(&"failed_system_calls".to_owned()));
        assert_eq!((all(&bytes, 1).len(), integer(&bytes, 12)), (1, 0));
        assert_eq!(samples(&bytes)[0].1, [60]);
    }

    #[test]
    fn samples_by_cycles_have_no_cpu_time() {
        let mut profile = fixture::profile();
        profile.facts.event = "cycles".to_owned();
        let bytes = message(&profile);
        assert!(!strings(&bytes).contains(&"nanoseconds".to_owned()));
        assert_eq!((all(&bytes, 1).len(), integer(&bytes, 12)), (1, 0));
        assert_eq!(samples(&bytes)[0].1, [60]);
    }

    #[test]
    fn hostile_names_are_escaped() {
        let strings = strings(&message(&fixture::hostile()));
        assert_eq!(strings[0], "");
        assert!(
            !strings
                .iter()
                .any(|text| text.chars().any(escape::is_unsafe))
        );
    }

    #[test]
    fn an_empty_run_is_a_profile() {
        let bytes = message(&fixture::empty());
        assert!(samples(&bytes).is_empty());
        assert_eq!(integer(&bytes, 12), 10_101_010);
        assert_eq!(&render(&fixture::empty()).unwrap()[..2], &[0x1f, 0x8b]);
    }
}
