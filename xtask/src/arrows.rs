//! Which package may depend on which.

use crate::Package;

/// The rooms from the lowest floor up; rooms on one floor do not know each other.
const FLOORS: [&[&str]; 6] = [
    &["offshoot-kernels"],
    &["offshoot-models"],
    &["offshoot-methods"],
    &["offshoot-engine"],
    &["offshoot-server", "offshoot-lab"],
    &["offshoot-cli"],
];

/// Rooms that stand beside the house: nothing depends on them.
const NOT_TO_BUILD_ON: [&str; 2] = ["offshoot-lab", "xtask"];

/// A room that depends on no other.
const ALONE: &str = "xtask";

/// Lists the dependencies between packages of the workspace that do not run down the floors.
pub fn forbidden_arrows(packages: &[Package]) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in packages {
        let from = package.name.as_str();
        if floor(from).is_none() && from != ALONE {
            breaches.push(format!("{from} has no floor: give it one in xtask/src/arrows.rs"));
        }
        for to in &package.dependencies {
            let ours = packages.iter().any(|p| p.name == *to);
            if ours && !may_depend(from, to) {
                breaches.push(format!("{from} depends on {to}"));
            }
        }
    }
    breaches
}

fn may_depend(from: &str, to: &str) -> bool {
    // An absent floor compares below all others, so `from` must have one.
    !NOT_TO_BUILD_ON.contains(&to) && floor(from).is_some() && floor(to) < floor(from)
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The breaches of a workspace with all rooms and one arrow.
    fn breaches(from: &str, to: &str) -> Vec<String> {
        let names = FLOORS.iter().flat_map(|floor| floor.iter().copied()).chain([ALONE]);
        let package = |name: &str| Package {
            name: name.into(),
            folder: format!("crates/{name}"),
            dependencies: if name == from { vec![to.into(), "serde".into()] } else { vec![] },
        };
        forbidden_arrows(&names.map(package).collect::<Vec<_>>())
    }

    #[test]
    fn arrows_down_the_floors_are_allowed() {
        for (from, to) in [
            ("offshoot-models", "offshoot-kernels"),
            ("offshoot-engine", "offshoot-kernels"),
            ("offshoot-server", "offshoot-engine"),
            ("offshoot-cli", "offshoot-server"),
        ] {
            assert_eq!(breaches(from, to), Vec::<String>::new());
        }
    }

    #[test]
    fn every_other_arrow_is_a_breach() {
        for (from, to) in [
            ("offshoot-kernels", "offshoot-models"),
            ("offshoot-methods", "offshoot-engine"),
            ("offshoot-server", "offshoot-lab"),
            ("offshoot-lab", "offshoot-server"),
            ("offshoot-cli", "offshoot-lab"),
            ("offshoot-lab", "offshoot-cli"),
            ("offshoot-models", "offshoot-models"),
            ("xtask", "offshoot-kernels"),
            ("offshoot-cli", "xtask"),
        ] {
            assert_eq!(breaches(from, to), [format!("{from} depends on {to}")]);
        }
    }

    #[test]
    fn a_room_without_a_floor_is_a_breach() {
        let cellar = Package {
            name: "offshoot-cellar".into(),
            folder: "crates/offshoot-cellar".into(),
            dependencies: vec![],
        };
        assert_eq!(forbidden_arrows(&[cellar]).len(), 1);
    }
}
