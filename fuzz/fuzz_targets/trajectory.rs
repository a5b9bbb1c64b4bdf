//! Parses bytes as a trajectory, whose checksums all pass here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_methods::tune::{Reading, Trajectory, TrajectoryError, verify};

fuzz_target!(|bytes: &[u8]| {
    match Trajectory::read(bytes) {
        Ok(Reading { trajectory, .. }) => {
            // What is let through can be written and read again.
            let written = match trajectory.to_bytes() {
                Ok(written) => written,
                Err(error) => return one_line(&error),
            };
            assert_eq!(Trajectory::from_bytes(&written), Ok(trajectory));
        }
        Err(error) => one_line(&error),
    }
    if let Err(error) = verify(bytes, None) {
        one_line(&error);
    }
});

fn one_line(error: &TrajectoryError) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
}
