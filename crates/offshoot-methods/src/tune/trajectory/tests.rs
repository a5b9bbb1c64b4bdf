use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tune::{
    Layout, METHODS, MethodCard, Schedule, Setting, TensorSpec, Weights, apply_update,
};

fn layout() -> Arc<Layout> {
    let tensor = |name: &str, layer| TensorSpec {
        name: name.to_owned(),
        rows: 3,
        cols: 2,
        layer,
        vector: false,
    };
    Arc::new(Layout {
        tensors: vec![tensor("a", Some(0)), tensor("b", Some(1)), tensor("c", None)],
    })
}

fn header_of(name: &str) -> Header {
    let card = MethodCard::named(name).unwrap();
    let method = MethodChoice { name: name.to_owned(), options: card.defaults() };
    let space = SpaceChoice { name: "full".to_owned(), options: json!({}) };
    let mut header = Header::new(method, space);
    header.base = Hash::of(b"base");
    header.tensors = layout().hash();
    header.distribution = card.distribution;
    header.rate = 0.1 + 0.2; // no short decimal
    header.seed = u64::MAX;
    header.initial_seeds.insert("lora_a".to_owned(), 3);
    header
}

fn trajectory(steps: Vec<Step>) -> Trajectory {
    Trajectory { parts: vec![Part { header: header_of("mezo"), steps, end: None }] }
}

fn plain(numbers: &[f32]) -> Step {
    Step { record: Record { skipped: false, numbers: numbers.to_vec() }, rate: None }
}

fn skipped() -> Step {
    Step { record: Record { skipped: true, numbers: vec![] }, rate: None }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = -1e6_f32..1e6;
    let numbers = prop_oneof![
        8 => proptest::collection::vec(number.clone(), 1),
        1 => proptest::collection::vec(number, 1..5),
    ];
    let rate = prop_oneof![9 => Just(None), 1 => (1e-9..1.0_f64).prop_map(Some)];
    let step = (numbers, 0..8, rate).prop_map(|(numbers, skip, rate)| {
        let step = if skip == 0 { skipped() } else { plain(&numbers) };
        Step { rate, ..step }
    });
    proptest::collection::vec(step, 0..700)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(steps in steps(), end in any::<Option<u8>>()) {
        let mut t = trajectory(steps);
        t.parts[0].end = end.map(|byte| Hash([byte; 32]));
        let bytes = t.to_bytes().unwrap();
        prop_assert_eq!(Trajectory::from_bytes(&bytes), Ok(t));
    }

    /// A cut keeps all steps of the frames before it.
    #[test]
    fn a_cut_keeps_the_longest_whole_prefix(steps in steps(), share in 0.0..1.0_f64) {
        let t = trajectory(steps);
        let bytes = t.to_bytes().unwrap();
        let cut = &bytes[..(share * bytes.len() as f64) as usize];
        let head = trajectory(vec![]).to_bytes().unwrap().len();
        match Trajectory::read(cut) {
            Err(_) => prop_assert!(cut.len() < head),
            Ok(Reading { trajectory: read, damage }) => {
                let kept = &read.parts[0].steps;
                prop_assert_eq!(kept, &t.parts[0].steps[..kept.len()]);
                let whole = read.to_bytes().unwrap().len();
                prop_assert_eq!(damage.map_or(cut.len(), |d| d.offset), whole);
                // The next block would not have fitted.
                let more = (kept.len() + 256).min(t.parts[0].steps.len());
                let next = trajectory(t.parts[0].steps[..more].to_vec()).to_bytes().unwrap().len();
                prop_assert!(more == kept.len() || next > cut.len());
            }
        }
    }

    /// A flipped bit never panics and never changes a step that is still read: it loses the frame
    /// that it stands in and those behind.
    #[test]
    fn a_flipped_bit_loses_its_frame_and_no_more(
        steps in steps(), share in 0.0..1.0_f64, bit in 0..8_u32,
    ) {
        let t = trajectory(steps);
        let mut bytes = t.to_bytes().unwrap();
        let at = (share * bytes.len() as f64) as usize;
        bytes[at] ^= 1_u8 << bit;
        let head = trajectory(vec![]).to_bytes().unwrap().len();
        match Trajectory::read(&bytes) {
            Err(_) => prop_assert!(at < head),
            Ok(Reading { trajectory: read, damage }) => {
                let damage = damage.unwrap();
                prop_assert!(damage.offset <= at);
                let kept = &read.parts[0].steps;
                prop_assert_eq!(kept, &t.parts[0].steps[..kept.len()]);
                prop_assert!(kept.len() % 256 == 0);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Trajectory::read(&bytes);
        let head = trajectory(vec![]).to_bytes().unwrap();
        let read = Trajectory::read(&[&head[..], &bytes[..]].concat()).unwrap();
        prop_assert!(read.damage.is_some() || bytes.is_empty());
    }

    /// Whole frames with any payload: the checksum does not keep nonsense out.
    #[test]
    fn arbitrary_payloads_do_not_panic(
        kind in 0..5_u8, payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut frame = vec![kind];
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend(&payload);
        frame.extend(super::crc32c::crc32c(&frame).to_le_bytes());
        let head = trajectory(vec![]).to_bytes().unwrap();
        let bytes = [head, frame].concat();
        let read = Trajectory::read(&bytes).unwrap();
        if read.damage.is_none() {
            prop_assert_eq!(read.trajectory.to_bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn cutting_and_joining_is_nothing(steps in steps(), share in 0.0..1.0_f64) {
        let mut t = trajectory(steps);
        t.parts[0].end = Some(Hash::of(b"end"));
        let end = t.parts[0].next_step();
        let at = (share * f64::from(end)) as u32;
        let (a, b) = (slice(&t, 0, at).unwrap(), slice(&t, at, end).unwrap());
        prop_assert_eq!(cat(&a, &b).unwrap().to_bytes().unwrap(), t.to_bytes().unwrap());
    }

    #[test]
    fn merging_with_weight_zero_is_nothing(a in steps(), b in steps()) {
        let (a, b) = (trajectory(a), trajectory(b));
        let merged = merge(&[(&a, 1.0), (&b, 0.0)], Mismatch::Refuse).unwrap();
        prop_assert_eq!(merged.to_bytes().unwrap(), a.to_bytes().unwrap());
        let both = merge(&[(&a, 0.5), (&b, -0.25)], Mismatch::Refuse).unwrap();
        prop_assert_eq!(Trajectory::from_bytes(&both.to_bytes().unwrap()), Ok(both));
    }

    /// However a run is interrupted and gone on with, its file is the same.
    #[test]
    fn a_file_does_not_depend_on_interruptions(
        steps in steps(), stops in proptest::collection::vec(0.0..1.0_f64, 0..4),
    ) {
        let t = trajectory(steps);
        let all = &t.parts[0].steps;
        let mut stops: Vec<usize> = stops.iter().map(|s| (s * all.len() as f64) as usize).collect();
        stops.sort_unstable();
        let mut file = Vec::new();
        let put = |file: &mut Vec<u8>, chunk: Chunk| {
            file.truncate(chunk.offset as usize);
            file.extend(chunk.bytes);
        };
        let (mut writer, chunk) = TrajectoryWriter::start(&t.parts[0].header).unwrap();
        put(&mut file, chunk);
        for (at, step) in all.iter().enumerate() {
            if stops.contains(&at) {
                put(&mut file, writer.tail());
                file.extend(b"torn");
                let (again, chunk) = TrajectoryWriter::resume(&file, at as u32).unwrap();
                put(&mut file, chunk);
                writer = again;
            }
            prop_assert_eq!(writer.next_step(), at as u32);
            if let Some(chunk) = writer.push(step.clone()) {
                put(&mut file, chunk);
            }
        }
        put(&mut file, writer.finish(&Hash::of(b"end")));
        let mut expected = t.clone();
        expected.parts[0].end = Some(Hash::of(b"end"));
        prop_assert_eq!(file, expected.to_bytes().unwrap());
    }
}

#[test]
fn twenty_thousand_steps_take_less_than_a_hundred_kilobytes() {
    let mut steps: Vec<Step> = (0..20_000).map(|i| plain(&[(i as f32).sin()])).collect();
    (0..40).for_each(|i| steps[500 * i].rate = Some(1e-6));
    (0..100).for_each(|i| steps[200 * i + 7] = skipped());
    let length = trajectory(steps).to_bytes().unwrap().len();
    assert!(length < 90_000, "{length}");
}

#[test]
fn a_header_is_canonical_json_and_survives() {
    let header = header_of("fzoo");
    let text = header.text().unwrap();
    assert_eq!(Header::parse(text.as_bytes()).unwrap(), header);
    let keys: Vec<usize> = ["\"base\"", "\"data\"", "\"decay\"", "\"weight\""]
        .map(|key| text.find(key).unwrap())
        .to_vec();
    assert!(keys.is_sorted());
    assert!(text.contains("0.30000000000000004") && text.contains("18446744073709551615"));
    assert!(!text.contains(' ') || text.contains("offshoot "));
}

#[test]
fn headers_that_cannot_be_read_back_are_refused() {
    let mut header = header_of("mezo");
    header.decay = f64::NAN;
    assert!(matches!(header.text(), Err(TrajectoryError::Header(_))));
}

#[test]
fn later_versions_are_named_and_other_files_refused() {
    let text = header_of("mezo").text().unwrap().replace("\"format\":1", "\"format\":9,\"new\":0");
    let error = Header::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    assert_eq!(Trajectory::read(b"PK\x03\x04"), Err(TrajectoryError::Magic));
    assert_eq!(Trajectory::read(b""), Err(TrajectoryError::Magic));
    let text = header_of("mezo").text().unwrap().replace("\"seed\"", "\"se\\u001bed\"");
    let error = Header::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error.bytes().all(|b| b != 0x1b) && error.lines().count() == 1, "{error}");
}

#[test]
fn steps_out_of_order_and_frames_behind_the_end_are_damage() {
    let t = trajectory(vec![plain(&[1.0])]);
    let bytes = t.to_bytes().unwrap();
    let again = [&bytes[..], &blocks::steps_frame(0, &[plain(&[1.0])])[..]].concat();
    assert_eq!(Trajectory::read(&again).unwrap().damage.unwrap().offset, bytes.len());
    let next = blocks::steps_frame(1, &[plain(&[2.0])]);
    let good = [&bytes[..], &next[..]].concat();
    assert_eq!(Trajectory::read(&good).unwrap().damage, None);
    let behind = [&bytes[..], &blocks::end_frame(&Hash::default())[..], &next[..]].concat();
    assert!(Trajectory::read(&behind).unwrap().damage.unwrap().reason.contains("end"));
    let error = Trajectory::from_bytes(&again).unwrap_err().to_string();
    assert!(error.contains("the 1 steps before are whole"), "{error}");
}

/// Few bytes that claim many steps or numbers are refused before memory is taken for them.
#[test]
fn claims_are_not_believed() {
    let frame = blocks::steps_frame(0, &[plain(&[1.0])]);
    let mut payload = frame[5..frame.len() - 4].to_vec();
    assert!(blocks::read_steps(&payload).is_some());
    payload[6..10].copy_from_slice(&(u32::MAX - 1).to_le_bytes());
    assert_eq!(blocks::read_steps(&payload), None);
    let empty = [&0_u32.to_le_bytes()[..], &256_u16.to_le_bytes(), &[0; 6]].concat();
    assert_eq!(blocks::read_steps(&empty), None);
}

#[test]
fn numbers_that_are_not_finite_are_no_steps() {
    let frame = blocks::steps_frame(0, &[plain(&[f32::NAN])]);
    assert_eq!(blocks::read_steps(&frame[5..frame.len() - 4]), None);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let a = trajectory(vec![plain(&[1.0]); 3]);
    let mut b = a.clone();
    b.parts[0].header.base = Hash::of(b"other");
    let error = merge(&[(&a, 1.0), (&b, 1.0)], Mismatch::Refuse).unwrap_err();
    assert!(error.to_string().contains("base"), "{error}");
    assert_eq!(merge(&[(&a, 1.0), (&b, 1.0)], Mismatch::Allow).unwrap().parts.len(), 2);
    b = a.clone();
    b.parts[0].header.decay = 0.1;
    let error = merge(&[(&a, 1.0), (&b, 1.0)], Mismatch::Allow);
    assert_eq!(error, Err(TrajectoryError::Decay));
    assert_eq!(merge(&[(&a, 0.0)], Mismatch::Refuse), Err(TrajectoryError::Nothing));
    assert!(merge(&[(&a, f64::NAN)], Mismatch::Refuse).is_err());
    let late = slice(&a, 1, 3).unwrap();
    assert!(matches!(cat(&late, &a), Err(TrajectoryError::Mismatch { .. })));
    assert_eq!(late.replay(&layout()).unwrap_err(), TrajectoryError::Beginning(1));
    assert!(matches!(slice(&a, 2, 9), Err(TrajectoryError::Range { end: 3, .. })));
    let merged = merge(&[(&a, 0.5), (&a, 0.5)], Mismatch::Refuse).unwrap();
    assert_eq!(slice(&merged, 0, 1), Err(TrajectoryError::Merged(2)));
    let other = Arc::new(Layout::default());
    assert!(matches!(a.replay(&other), Err(TrajectoryError::Layout { .. })));
}

#[test]
fn a_diff_names_fields_and_the_first_step() {
    let a = trajectory(vec![plain(&[1.0]), plain(&[2.0]), plain(&[3.0])]);
    assert_eq!(diff(&a, &a), Ok(None));
    let mut b = a.clone();
    b.parts[0].steps[1] = plain(&[2.5]);
    b.parts[0].header.method.options["probe"]["eps"] = json!(0.5);
    let found = diff(&a, &b).unwrap().unwrap();
    assert_eq!(found.first, Some(1));
    let fields: Vec<&str> = found.header.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["method.options.probe.eps"]);
    let shorter = slice(&a, 0, 2).unwrap();
    let found = diff(&a, &shorter).unwrap().unwrap();
    assert_eq!((found.first, found.steps), (Some(2), [3, 2]));
}

#[test]
fn info_counts() {
    let mut steps = vec![plain(&[1.0]), skipped(), plain(&[-3.0])];
    steps[2].rate = Some(0.5);
    let t = trajectory(steps);
    let info = t.info().unwrap();
    assert_eq!((info.steps, info.skipped, info.numbers, info.rates), (3, 1, 2, 1));
    assert_eq!(info.largest, 3.0);
    assert_eq!(info.bytes, t.to_bytes().unwrap().len());
    assert_eq!(serde_json::to_value(&info).unwrap()["header"]["seed"], json!(u64::MAX));
}

/// Losses that follow from the step, the direction and the weights.
fn losses(probes: &[crate::tune::Probe], weights: &Weights) -> Vec<f64> {
    let loss = |probe| -> f64 {
        let w = (0..3).flat_map(|tensor| weights.at(probe, tensor));
        w.map(|w| (f64::from(w) - 0.3).powi(2)).sum()
    };
    probes.iter().map(loss).collect()
}

/// Runs a method for `count` steps, through a file at the end of each block.
fn live(header: &Header, count: u32) -> (Weights, Vec<u8>) {
    let card = MethodCard::named(&header.method.name).unwrap();
    let setting = Setting { seed: header.seed, layout: layout(), decay: header.decay };
    let mut method = card.start(&header.method.options, &setting).unwrap();
    let mut weights = first_weights(header);
    let (mut writer, head) = TrajectoryWriter::start(header).unwrap();
    let mut file = head.bytes;
    let mut base = header.rate;
    for step in 0..count {
        let change = (step % 50 == 20).then_some(base * 0.5);
        base = change.unwrap_or(base);
        let mut plan = method.begin(step, header.schedule.rate(base, step));
        let update = loop {
            match plan {
                crate::tune::Plan::Update(update) => break update,
                crate::tune::Plan::Evaluate(probes) => {
                    let mut losses = losses(&probes, &weights);
                    if step % 41 == 40 {
                        losses[0] = f64::NAN;
                    }
                    plan = method.answer(&losses);
                }
            }
        };
        apply_update(&update, &mut weights);
        let kept = Step { record: method.record().clone(), rate: change };
        file.extend(writer.push(kept).into_iter().flat_map(|chunk| chunk.bytes));
    }
    file.extend(writer.tail().bytes);
    (weights, file)
}

fn first_weights(header: &Header) -> Weights {
    let tensors = vec![vec![0.5, -0.25, 0.125, 1.0, -1.0, 0.75]; 3];
    Weights::new(header.seed, header.distribution, (*layout()).clone(), tensors)
}

/// Every method through its file: base and trajectory give the bits of the run, with decay, a
/// schedule, rates set anew and skipped steps; and a method resumed at any step goes on as the run
/// did.
#[test]
fn the_file_and_the_base_give_the_runs_bits_for_every_method() {
    for card in METHODS {
        let mut header = header_of(card.name);
        header.decay = 0.01;
        header.schedule = Schedule { warmup: 5, steps: 130, ..Schedule::default() };
        header.schedule.curve = crate::tune::Curve::Cosine;
        header.rate = 0.02;
        let (end, file) = live(&header, 130);
        let t = Trajectory::from_bytes(&file).unwrap();
        let mut weights = first_weights(&header);
        let mut count = 0;
        for replayed in t.replay(&layout()).unwrap() {
            let replayed = replayed.unwrap();
            assert_eq!(replayed.skipped, replayed.step % 41 == 40);
            apply_update(&replayed.update, &mut weights);
            count += 1;
        }
        assert_eq!(count, 130);
        let bits =
            |w: &Weights| -> Vec<u32> { w.tensors.iter().flatten().map(|w| w.to_bits()).collect() };
        assert_eq!(bits(&weights), bits(&end), "{}", card.name);
        let head = slice(&t, 0, 77).unwrap();
        let mut resumed = head.parts[0].resume(&layout()).unwrap();
        let rate = header.schedule.rate(t.parts[0].base_rate(77), 77);
        let next = resumed.replay(77, rate, &t.parts[0].steps[77].record).unwrap();
        let straight = t.replay(&layout()).unwrap().nth(77).unwrap().unwrap();
        assert_eq!(next, straight.update, "{}", card.name);
    }
}

#[test]
fn a_merge_adds_the_weighted_changes() {
    let (a, b) = (header_of("mezo"), Header { seed: 5, ..header_of("lozo") });
    let [a, b] = [a, b].map(|header| Header { rate: 0.02, ..header });
    let runs = [live(&a, 20), live(&b, 30)];
    let read = runs.each_ref().map(|(_, file)| Trajectory::from_bytes(file).unwrap());
    let merged = merge(&[(&read[0], 0.5), (&read[1], 2.0)], Mismatch::Refuse).unwrap();
    assert_eq!(merged.parts[0].header.parents.len(), 2);
    assert_eq!(merged.parts[0].header.parents[1].weight, 2.0);
    let mut weights = first_weights(&a);
    for replayed in merged.replay(&layout()).unwrap() {
        let replayed = replayed.unwrap();
        let header = &merged.parts[replayed.part].header;
        (weights.seed, weights.distribution) = (header.seed, header.distribution);
        apply_update(&replayed.update, &mut weights);
    }
    let first = first_weights(&a);
    for tensor in 0..3 {
        for element in 0..6 {
            let w = first.tensors[tensor][element];
            let change = |run: &Weights| run.tensors[tensor][element] - w;
            let expected = w + 0.5 * change(&runs[0].0) + 2.0 * change(&runs[1].0);
            assert!((weights.tensors[tensor][element] - expected).abs() < 1e-5);
        }
    }
}

#[test]
fn a_record_that_the_method_cannot_have_made_ends_the_replay() {
    let t = trajectory(vec![plain(&[1.0]), plain(&[1.0, 2.0]), plain(&[1.0])]);
    let replayed: Vec<_> = t.replay(&layout()).unwrap().collect();
    assert_eq!(replayed.len(), 2);
    let error = replayed[1].as_ref().unwrap_err();
    assert!(error.to_string().contains("step 1"), "{error}");
    assert!(error.as_method().is_some());
}

#[test]
fn an_unknown_method_is_an_error_and_no_panic() {
    let mut t = trajectory(vec![plain(&[1.0])]);
    t.parts[0].header.method.name = "newer".to_owned();
    assert!(t.replay(&layout()).unwrap_err().to_string().contains("newer"));
}

#[test]
fn a_check_counts_what_is_whole_and_what_can_be_made_again() {
    let bytes = trajectory(vec![plain(&[1.0]); 300]).to_bytes().unwrap();
    let whole = verify(&bytes, Some(&layout())).unwrap();
    assert_eq!(whole, Verification { steps: 300, damage: None, replayed: Some(300) });
    let cut = verify(&bytes[..bytes.len() - 1], None).unwrap();
    assert_eq!((cut.steps, cut.replayed), (256, None));
    assert!(cut.damage.is_some());
    let wrong = trajectory(vec![plain(&[1.0, 2.0])]).to_bytes().unwrap();
    assert_eq!(verify(&wrong, None).unwrap().steps, 1);
    assert!(verify(&wrong, Some(&layout())).is_err());
}
