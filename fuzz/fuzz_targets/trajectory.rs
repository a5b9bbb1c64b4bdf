//! Parses bytes as a trajectory, as a trajectory's header and as a frame behind a sound one. The last
//! two get the checksums that a fuzzer does not guess.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_methods::tune::{
    Header, MethodChoice, Part, Reading, SpaceChoice, Trajectory, TrajectoryError, verify,
};

fuzz_target!(|bytes: &[u8]| {
    parse(bytes);
    parse(&summed([b"offtraj1", &length(bytes)[..], bytes].concat()));
    if let Some((kind, payload)) = bytes.split_first() {
        let (method, space) = (MethodChoice::default(), SpaceChoice::default());
        let part = Part { header: Header::new(method, space), steps: Vec::new(), end: None };
        let head = Trajectory { parts: vec![part] }.to_bytes().expect("a header of plain words");
        let frame = summed([&[*kind][..], &length(payload), payload].concat());
        parse(&[head, frame].concat());
    }
});

fn parse(bytes: &[u8]) {
    match Trajectory::read(bytes) {
        Ok(Reading { trajectory, .. }) => match trajectory.to_bytes() {
            // What is let through can be written and read again.
            Ok(written) => assert_eq!(Trajectory::from_bytes(&written), Ok(trajectory)),
            Err(error) => one_line(&error),
        },
        Err(error) => one_line(&error),
    }
    if let Err(error) = verify(bytes, None) {
        one_line(&error);
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    (bytes.len() as u32).to_le_bytes()
}

/// `bytes` and their CRC-32C.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut crc = !0_u32;
    for byte in &bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    bytes.extend((!crc).to_le_bytes());
    bytes
}

fn one_line(error: &TrajectoryError) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
}
