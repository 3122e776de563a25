//! The shares in the profile are the program's own.

use crate::harness::{Agent, Profile, Target, alone, in_vm};

/// Fails unless each function's self time is within two percentage points of its share. In an
/// emulated machine there are fewer samples, which chance alone moves by as much: there five.
fn assert_split(profile: &Profile) {
    let tolerance = if in_vm() { 0.05 } else { 0.02 };
    for (function, share) in [("half", 0.5), ("third", 0.3), ("fifth", 0.2)] {
        let measured = profile.self_share(function);
        let off = (measured - share).abs();
        assert!(
            off <= tolerance,
            "{function}: {measured:.4} instead of {share}\n{}",
            profile.explain()
        );
    }
    assert!(
        profile.total_share("main") >= 0.995,
        "{}",
        profile.explain()
    );
}

/// So many samples that chance moves a share by less than a percentage point.
fn sample(target: &Target) -> Profile {
    let (duration, frequency) = if in_vm() {
        ("24s", "199")
    } else {
        ("6s", "997")
    };
    let pid = target.pid().to_string();
    let arguments = [
        "--pid",
        &pid,
        "--duration",
        duration,
        "--frequency",
        frequency,
    ];
    Agent::profile()
        .args(arguments)
        .args(["-o", "profile.json"])
        .run_to_profile()
}

macro_rules! split {
    ($($test:ident: $program:literal),* $(,)?) => { $(
        #[test]
        fn $test() {
            let _alone = alone();
            let target = Target::spawn($program, &[]);
            assert_split(&sample(&target));
        }
    )* };
}

split! {
    self_time_of_a_pie: "split",
    self_time_of_a_static_program: "split-static",
    self_time_of_an_lld_linked_program: "split-lld",
}
