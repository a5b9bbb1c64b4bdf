//! A reader of event files of its own, which shares nothing with the writer.

use std::collections::BTreeMap;

use super::super::{EvalLine, StartLine, StepLine};
use super::*;

/// A field: number, kind's content as bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        let len = match key & 7 {
            0 => {
                found.push((key >> 3, number(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => number(&mut message) as usize,
            5 => 4,
            kind => panic!("kind {kind}"),
        };
        found.push((key >> 3, message[..len].to_vec()));
        message = &message[len..];
    }
    found
}

/// CRC-32C bit by bit, by the polynomial as the standard writes it, on reversed bits.
fn slow_crc(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let out = remainder >> 31;
            remainder = (remainder << 1) ^ (out * 0x1edc_6f41);
        }
    }
    !remainder.reverse_bits()
}

/// The messages of a file, whose sums are checked.
fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
    let unmask = |m: u32| m.wrapping_sub(0xa282_ead8).rotate_left(15);
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let mut all = Vec::new();
    while !file.is_empty() {
        let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(unmask(word(&file[8..])), slow_crc(&file[..8]));
        let message = &file[12..12 + len];
        assert_eq!(unmask(word(&file[12 + len..])), slow_crc(message));
        all.push(message.to_vec());
        file = &file[16 + len..];
    }
    all
}

/// Step, time and values of a message.
fn scalars(message: &[u8]) -> (u64, f64, BTreeMap<String, f32>) {
    let (mut step, mut time, mut values) = (0, 0.0, BTreeMap::new());
    for (field, content) in fields(message) {
        match field {
            1 => time = f64::from_le_bytes(content.try_into().unwrap()),
            2 => step = u64::from_le_bytes(content.try_into().unwrap()),
            5 => {
                for (_, value) in fields(&content) {
                    let parts: BTreeMap<_, _> = fields(&value).into_iter().collect();
                    let number = f32::from_le_bytes(parts[&2].clone().try_into().unwrap());
                    values.insert(String::from_utf8(parts[&1].clone()).unwrap(), number);
                }
            }
            _ => panic!("field {field}"),
        }
    }
    (step, time, values)
}

pub(crate) fn log() -> Vec<LogLine> {
    let start = StartLine {
        version: "1".into(),
        base: "b".into(),
        data: "d".into(),
        examples: 3,
        held_out: 1,
        steps: 300,
        config: serde_json::Value::Null,
        unix_s: 1e9,
    };
    let step = |step: u64, loss| StepLine {
        step,
        epoch: 0.5,
        loss,
        rate: 0.25,
        tokens: 7,
        tokens_total: 7 * step,
        tokens_per_s: Some(3.5),
        seconds: 2.0,
        elapsed_s: 2.0 * step as f64,
        peak_rss_bytes: Some(1 << 30),
        numbers: BTreeMap::from([("grad_norm".to_owned(), Some(1.5))]),
    };
    let metrics = BTreeMap::from([("loss".to_owned(), Some(2.5))]);
    let eval = EvalLine { step: 300, metrics, best: true, seconds: 1.0, elapsed_s: 601.0 };
    vec![
        LogLine::Start(start),
        LogLine::Step(step(1, Some(4.5))),
        LogLine::Step(step(300, None)),
        LogLine::Eval(eval),
    ]
}

#[test]
fn the_sum_is_that_of_the_standard() {
    // RFC 3720, B.4: 32 bytes of zeros, of ones, and ascending.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    let ascending: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&ascending), 0x46dd_794e);
}

#[test]
fn an_independent_reader_finds_every_number_of_the_log() {
    let all = messages(&event_file(&log()));
    let first: BTreeMap<_, _> = fields(&all[0]).into_iter().collect();
    assert_eq!(first[&3], b"brain.Event:2");
    assert_eq!(all.len(), 4);
    let (step, time, values) = scalars(&all[1]);
    assert_eq!((step, time), (1, 1e9 + 2.0));
    assert_eq!(values["train/loss"], 4.5);
    assert_eq!(values["train/learning_rate"], 0.25);
    assert_eq!(values["train/grad_norm"], 1.5);
    assert_eq!(values["train/peak_rss_bytes"], 1_073_741_824.0);
    let (step, _, values) = scalars(&all[2]);
    assert!(step == 300 && !values.contains_key("train/loss"), "a loss that is none has no point");
    let (step, _, values) = scalars(&all[3]);
    assert_eq!((step, values["eval/loss"]), (300, 2.5));
}

#[test]
fn a_file_that_grows_is_the_file_of_the_whole_log() {
    let log = log();
    // Of a new run not even the first line is there.
    for there in [0, 2] {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 1e9, &log[..there]).unwrap();
        log[there..].iter().for_each(|line| file.add(1e9, line).unwrap());
        assert_eq!(std::fs::read(&file.path).unwrap(), event_file(&log));
    }
}
