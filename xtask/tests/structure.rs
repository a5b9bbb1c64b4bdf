//! The rules of the house, applied to this tree.

use xtask::{Tree, test_command};

fn tree() -> Tree {
    Tree::read().expect("cargo and git can read this workspace")
}

/// Fails with all breaches at once, one a line.
#[track_caller]
fn assert_none(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn the_tree_was_read() {
    let tree = tree();
    let rooms = tree.packages.iter().filter(|p| p.folder.starts_with("crates/")).count();
    assert!(rooms >= 5, "{rooms} rooms");
    assert!(tree.text("xtask/tests/structure.rs").unwrap().contains("fn the_tree_was_read"));
}

#[test]
fn arrows_run_down_the_floors() {
    assert_none(xtask::forbidden_arrows(&tree().packages));
}

#[test]
fn the_code_map_names_every_room_and_no_other() {
    let tree = tree();
    let architecture = tree.text("ARCHITECTURE.md").unwrap();
    assert_none(xtask::code_map_gaps(architecture, &tree.packages));
}

#[test]
fn every_room_says_what_it_is_for() {
    let tree = tree();
    assert_none(xtask::missing_readmes(&tree.packages, &tree.files));
}

#[test]
fn only_the_kernels_are_unsafe() {
    assert_none(xtask::unsafe_rooms(&tree().files));
}

#[test]
fn files_can_be_read_at_one_sitting() {
    assert_none(xtask::long_files(&tree().files));
}

#[test]
fn every_test_and_every_example_runs() {
    assert_none(xtask::skipped_checks(&tree().files));
}

#[test]
fn no_line_depends_on_one_machine_or_names_a_registry() {
    assert_none(xtask::outside_world(&tree().files));
}

#[test]
fn methods_reach_for_nothing_outside() {
    assert_none(xtask::impure_methods(&tree().files));
}

#[test]
fn files_are_named_for_what_they_hold() {
    assert_none(xtask::catch_all_names(&tree().files));
}

#[test]
fn the_readme_names_the_command_that_runs_every_test() {
    let tree = tree();
    let command = test_command(tree.text("README.md").unwrap()).unwrap();
    assert!(command.starts_with("cargo test") && command.contains("--workspace"), "{command}");
}
