//! What can be done with trajectories without their models.

use serde::Serialize;
use serde_json::Value;

use super::{Header, Parent, Part, Trajectory, TrajectoryError};
use crate::one_line;
use crate::tune::Hash;

/// A trajectory at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// The first part's header.
    pub header: Header,
    /// How many runs are added up.
    pub parts: usize,
    /// Steps of all parts.
    pub steps: usize,
    /// Steps that did nothing because a loss was not finite.
    pub skipped: usize,
    /// Numbers kept of all steps.
    pub numbers: usize,
    /// The largest magnitude among them.
    pub largest: f32,
    /// Times that the schedule's base rate was set anew.
    pub rates: usize,
    /// The SHA-256 of the weights after the last step of the last part, if it is known.
    pub end: Option<Hash>,
    /// Length in bytes.
    pub bytes: usize,
}

/// A field in which two trajectories differ, and what each has, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The field, with points between the names of nested ones.
    pub field: String,
    /// The first's.
    pub left: Value,
    /// The second's.
    pub right: Value,
}

/// How two trajectories differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Fields of the first parts' headers.
    pub header: Vec<Difference>,
    /// Steps of each, in the first part.
    pub steps: [usize; 2],
    /// The first step that is not the same in both, or that one of them has alone.
    pub first: Option<u32>,
    /// Further parts that are not the same in both.
    pub parts: bool,
    /// Whether they promise other weights at their ends.
    pub end: bool,
}

/// What to do with trajectories that do not belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mismatch {
    /// Refuse them, by the first field that differs.
    #[default]
    Refuse,
    /// Take them as they are.
    Allow,
}

impl Trajectory {
    /// The trajectory at a glance.
    ///
    /// # Errors
    /// If it has no parts or a header that cannot be written.
    pub fn info(&self) -> Result<Info, TrajectoryError> {
        let [first, ..] = &self.parts[..] else { return Err(TrajectoryError::Nothing) };
        let steps = || self.parts.iter().flat_map(|part| &part.steps);
        let numbers = || steps().flat_map(|step| &step.record.numbers);
        Ok(Info {
            header: first.header.clone(),
            parts: self.parts.len(),
            steps: steps().count(),
            skipped: steps().filter(|step| step.record.skipped).count(),
            numbers: numbers().count(),
            largest: numbers().fold(0.0, |most, number| most.max(number.abs())),
            rates: steps().filter(|step| step.rate.is_some()).count(),
            end: self.parts.last().and_then(|part| part.end),
            bytes: self.to_bytes()?.len(),
        })
    }

    /// The one part of a trajectory that is not merged.
    fn single(&self) -> Result<&Part, TrajectoryError> {
        match &self.parts[..] {
            [part] => Ok(part),
            parts => Err(TrajectoryError::Merged(parts.len())),
        }
    }
}

/// The steps `from..to` of a run. With `from` at the run's first step this is the run as it stood
/// before step `to`; a later slice is of use behind its beginning alone.
///
/// # Errors
/// [`TrajectoryError::Merged`] or [`TrajectoryError::Range`].
pub fn slice(trajectory: &Trajectory, from: u32, to: u32) -> Result<Trajectory, TrajectoryError> {
    let part = trajectory.single()?;
    let (first, end) = (part.header.first_step, part.next_step());
    if from < first || from > to || to > end {
        return Err(TrajectoryError::Range { from, to, first, end });
    }
    let mut header = part.header.clone();
    header.first_step = from;
    header.rate = if from == first { header.rate } else { part.base_rate(from - 1) };
    let steps = part.steps[(from - first) as usize..(to - first) as usize].to_vec();
    let end = part.end.filter(|_| to == end);
    Ok(Trajectory { parts: vec![Part { header, steps, end }] })
}

/// A run and its later steps as one: the inverse of cutting it with [`slice()`].
///
/// # Errors
/// [`TrajectoryError::Merged`], or [`TrajectoryError::Mismatch`] if `later` is not what comes next.
pub fn cat(earlier: &Trajectory, later: &Trajectory) -> Result<Trajectory, TrajectoryError> {
    let (a, b) = (earlier.single()?, later.single()?);
    let mut expected = a.header.clone();
    expected.first_step = a.next_step();
    expected.rate = match a.steps.len() {
        0 => a.header.rate,
        _ => a.base_rate(a.next_step() - 1),
    };
    refuse(differences(&expected, &b.header)?)?;
    let steps = [&a.steps[..], &b.steps[..]].concat();
    // Nothing behind the end leaves the end where it is.
    let end = if b.steps.is_empty() { b.end.or(a.end) } else { b.end };
    Ok(Trajectory { parts: vec![Part { header: a.header.clone(), steps, end }] })
}

/// Runs of one base added up, each with its weight: from the base, the changes of all steps of the
/// first, then of the second, and so on. Runs of weight 0 are left out; one run of weight 1 is
/// itself.
///
/// What is added is what the runs tuned: of LoRA the factors, whose sum is a sum of changes only
/// where one of the two was fixed and the same in all.
///
/// # Errors
/// If the runs have another base, space, first weights or tensors than the first, unless that is
/// allowed; if one has weight decay; if nothing is left or a weight is not finite.
pub fn merge(
    runs: &[(&Trajectory, f64)],
    mismatch: Mismatch,
) -> Result<Trajectory, TrajectoryError> {
    if let Some((_, weight)) = runs.iter().find(|(_, weight)| !weight.is_finite()) {
        return Err(TrajectoryError::Weight(*weight));
    }
    let runs: Vec<_> = runs.iter().filter(|(_, weight)| *weight != 0.0).collect();
    if let [(run, weight)] = &runs[..]
        && *weight == 1.0
    {
        return Ok((*run).clone());
    }
    let mut parts = Vec::new();
    let mut parents = Vec::new();
    for (run, weight) in runs {
        let trajectory = Hash::of(&run.to_bytes()?);
        parents.push(Parent { trajectory, weight: *weight });
        for part in &run.parts {
            let mut part = part.clone();
            part.header.weight *= weight;
            parts.push(part);
        }
    }
    check_parts(&parts, mismatch)?;
    parts.first_mut().ok_or(TrajectoryError::Nothing)?.header.parents = parents;
    Ok(Trajectory { parts })
}

fn check_parts(parts: &[Part], mismatch: Mismatch) -> Result<(), TrajectoryError> {
    let [first, others @ ..] = parts else { return Err(TrajectoryError::Nothing) };
    if parts.iter().any(|part| part.header.decay != 0.0) {
        return Err(TrajectoryError::Decay);
    }
    if let Some(part) = parts.iter().find(|part| part.header.first_step != 0) {
        return Err(TrajectoryError::Beginning(part.header.first_step));
    }
    for other in others.iter().filter(|_| mismatch == Mismatch::Refuse) {
        let shared = ["base", "initial_seeds", "space", "store", "tensors", "update"];
        let of_base = |difference: &Difference| {
            let name = difference.field.split('.').next().unwrap_or_default();
            shared.contains(&name)
        };
        let mut found = differences(&first.header, &other.header)?;
        found.retain(of_base);
        refuse(found)?;
    }
    Ok(())
}

/// The first of `differences` as an error.
fn refuse(differences: Vec<Difference>) -> Result<(), TrajectoryError> {
    match differences.into_iter().next() {
        None => Ok(()),
        Some(Difference { field, left, right }) => Err(TrajectoryError::Mismatch {
            field: one_line(&field),
            left: one_line(&left),
            right: one_line(&right),
        }),
    }
}

/// How two trajectories differ; `None` if they do not.
///
/// # Errors
/// If one has no parts or a header that cannot be written.
pub fn diff(a: &Trajectory, b: &Trajectory) -> Result<Option<Divergence>, TrajectoryError> {
    if a == b {
        return Ok(None);
    }
    let ([left, more_left @ ..], [right, more_right @ ..]) = (&a.parts[..], &b.parts[..]) else {
        return Err(TrajectoryError::Nothing);
    };
    let steps = [left.steps.len(), right.steps.len()];
    let pairs = left.steps.iter().zip(&right.steps);
    let same = pairs.take_while(|(a, b)| a == b).count();
    let is_whole = same == steps[0] && same == steps[1];
    Ok(Some(Divergence {
        header: differences(&left.header, &right.header)?,
        steps,
        first: (!is_whole).then(|| left.header.first_step + same as u32),
        parts: more_left != more_right,
        end: left.end != right.end,
    }))
}

/// The fields in which two headers differ, in ascending order of their names.
///
/// # Errors
/// [`TrajectoryError::Header`] if one cannot be written.
pub fn differences(a: &Header, b: &Header) -> Result<Vec<Difference>, TrajectoryError> {
    let tree = |header: &Header| {
        let text = header.text()?;
        let wrong = |e: serde_json::Error| TrajectoryError::Header(e.to_string());
        serde_json::from_str::<Value>(&text).map_err(wrong)
    };
    let mut found = Vec::new();
    compare("", &tree(a)?, &tree(b)?, &mut found);
    Ok(found)
}

fn compare(name: &str, a: &Value, b: &Value, found: &mut Vec<Difference>) {
    let (Value::Object(x), Value::Object(y)) = (a, b) else {
        if a != b {
            let (field, left, right) = (name.to_owned(), a.clone(), b.clone());
            found.push(Difference { field, left, right });
        }
        return;
    };
    let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let field = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        compare(&field, &of(x), &of(y), found);
    }
}
