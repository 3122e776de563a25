#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::time::Instant;

#[test]
#[ignore = "prints speed"]
fn speed() {
    let paths = std::env::var("TABLE_FILES").unwrap_or("/lib/x86_64-linux-gnu/libc.so.6".into());
    for path in paths.split(':') {
        let file = File::open(path).unwrap();
        let begin = Instant::now();
        let table = super::build(&file);
        let elapsed = begin.elapsed();
        match table {
            Ok(table) => {
                let mb = table.report.eh_frame_bytes as f64 / 1e6;
                println!(
                    "{path}: {elapsed:?} {:.0} MB/s {} blocks {:?} {:?}",
                    mb / elapsed.as_secs_f64(),
                    table.blocks.len(),
                    table.report,
                    table.module
                );
            }
            Err(error) => println!("{path}: {error}"),
        }
    }
}
