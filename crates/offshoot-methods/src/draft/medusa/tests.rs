use super::*;
use proptest::prelude::*;

/// Cumulative top-1 to top-5 accuracy of the five heads of a 7B model, from the reference's training
/// log, as shares of single ranks.
fn published_shares() -> Vec<Vec<f64>> {
    let cumulative = [
        [0.56039, 0.67172, 0.72714, 0.75994, 0.77995],
        [0.31635, 0.42358, 0.48509, 0.52821, 0.56250],
        [0.20104, 0.28790, 0.34754, 0.38345, 0.41687],
        [0.14737, 0.22502, 0.27373, 0.31088, 0.33971],
        [0.11754, 0.18663, 0.23459, 0.27212, 0.29983],
    ];
    let single = |sums: [f64; 5]| {
        (0..5).map(|i| if i == 0 { sums[0] } else { sums[i] - sums[i - 1] }).collect()
    };
    cumulative.into_iter().map(single).collect()
}

fn gain(tree: &[RankNode]) -> f64 {
    1.0 + tree.iter().map(|node| node.probability).sum::<f64>()
}

#[test]
fn the_published_accuracies_give_the_tree_worked_out_for_them() {
    let tree = search(&published_shares(), 63);
    let first: Vec<&[u16]> = tree.iter().take(8).map(|node| node.path.as_slice()).collect();
    let expected: [&[u16]; 8] = [&[0], &[0, 0], &[1], &[0, 1], &[2], &[0, 0, 0], &[1, 0], &[0, 2]];
    assert_eq!(first, expected);
    for (n, e) in [(1, 1.560), (3, 1.849), (8, 2.070), (16, 2.223), (32, 2.321), (63, 2.384)] {
        assert!((gain(&tree[..n]) - e).abs() < 6e-4, "{n}: {}", gain(&tree[..n]));
    }
    let at_depth = |d: usize| tree.iter().filter(|node| node.path.len() == d).count();
    assert_eq!([1, 2, 3, 4].map(at_depth), [5, 22, 29, 7]);
}

/// The best gain of any prefix-closed set of `n` paths, by trying them all.
fn exhaustive(shares: &[Vec<f64>], n: usize) -> f64 {
    // A set is a choice of children below each node; `open` holds the nodes not yet decided on.
    fn best(shares: &[Vec<f64>], open: &[(usize, usize, f64)], n: usize) -> f64 {
        let Some((&(depth, rank, above), rest)) = open.split_first() else { return 0.0 };
        let without = best(shares, rest, n);
        if n == 0 {
            return 0.0;
        }
        let here = above * shares[depth][rank];
        let mut open = rest.to_vec();
        if depth + 1 < shares.len() {
            open.extend((0..shares[depth + 1].len()).map(|rank| (depth + 1, rank, here)));
        }
        without.max(here + best(shares, &open, n - 1))
    }
    let open: Vec<_> = (0..shares[0].len()).map(|rank| (0, rank, 1.0)).collect();
    best(shares, &open, n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_search_finds_the_best_tree_of_each_size(
        shares in prop::collection::vec(prop::collection::vec(0.01f64..0.4, 1..5), 1..4),
        n in 1usize..9,
    ) {
        let tree = search(&shares, n);
        prop_assert!((gain(&tree) - 1.0 - exhaustive(&shares, n)).abs() < 1e-12);
        for (i, node) in tree.iter().enumerate() {
            let parent = &node.path[..node.path.len() - 1];
            let before = tree[..i].iter().any(|node| node.path == parent);
            prop_assert!(parent.is_empty() || before);
        }
    }

    #[test]
    fn a_tree_file_is_a_closed_tree_or_an_error_of_one_line(json in "[\\[\\], 0-9a\n]{0,30}") {
        match DraftTree::parse(&json, 4, 10) {
            Ok(tree) => for (i, path) in tree.paths().iter().enumerate() {
                let prefix = &path[..path.len() - 1];
                prop_assert!(prefix.is_empty() || tree.paths()[..i].iter().any(|p| p == prefix));
            },
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}

#[test]
fn lists_of_leaves_are_filled_up_and_what_does_not_fit_is_refused() {
    let tree = DraftTree::parse("[[0, 1, 0], [2]]", 3, 10).unwrap();
    let paths: Vec<&[u16]> = tree.paths().iter().map(Vec::as_slice).collect();
    assert_eq!(paths, [&[0][..], &[0, 1], &[0, 1, 0], &[2]]);
    for (json, why) in [
        ("[[0, 0, 0, 0]]", "1 to 3 ranks"),
        ("[[]]", "1 to 3 ranks"),
        ("[[10]]", "rank of 10 or more"),
        ("[[0], [70000]]", "list of lists"),
        ("{}", "list of lists"),
        ("[[0]", "list of lists"),
    ] {
        let error = DraftTree::parse(json, 3, 10).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{json}: {error}");
    }
    let many = (0..2000u16).map(|i| vec![i % 50, i / 50]).collect();
    assert!(DraftTree::new(many, 3, 60).is_err());
}

/// Two heads of two ranks. Head 1 is right with its first rank in three places of four.
fn counted() -> Calibration {
    let mut calibrator = Calibrator::new(2, 2);
    let lists = [(7, 0.5), (8, 0.25), (9, 0.5), (7, 0.25)];
    calibrator.observe(&lists, &[7, 9]);
    calibrator.observe(&lists, &[7, 7]);
    calibrator.observe(&lists, &[7, 1]);
    calibrator.observe(&lists, &[1, 9]);
    calibrator.observe(&lists, &[]);
    calibrator.finish()
}

#[test]
fn a_calibration_counts_ranks_paths_and_what_probabilities_were_worth() {
    let counted = counted();
    assert_eq!(counted.places, [4, 4]);
    assert_eq!(counted.hits, [[3, 0], [2, 1]]);
    let paths: Vec<(&[u16], u32)> = counted.paths.iter().map(|(p, n)| (&p[..], *n)).collect();
    assert_eq!(paths, [(&[0][..], 3), (&[0, 0], 1), (&[0, 1], 1)]);
    assert!((gain(&counted.counted_tree(2)) - 2.0).abs() < 1e-12);
    // Of head 2 only the three places count where head 1's first token was right.
    assert_eq!(counted.bins[1].iter().map(|bin| bin.right).sum::<u32>(), 2);
    // Three of four where the head said one half: more than it said, less than was seen.
    let corrected = counted.corrected(0, 0.5);
    assert!(0.5 < corrected && corrected < 0.75, "{corrected}");
    counted.validate(2).unwrap();
}

#[test]
fn counts_that_cannot_be_are_refused() {
    let wrong: [fn(&mut Calibration); 7] = [
        |c| c.places.clear(),
        |c| c.hits[0].push(0),
        |c| c.hits[1] = vec![u32::MAX; 2],
        |c| c.bins[0].truncate(3),
        |c| c.bins[1][2].given = f32::NAN,
        |c| c.paths.push((vec![0, 0, 0], 1)),
        |c| c.paths.push((vec![2], 1)),
    ];
    for (i, spoil) in wrong.into_iter().enumerate() {
        let mut calibration = counted();
        spoil(&mut calibration);
        assert!(calibration.validate(2).is_err(), "{i}");
    }
    assert!(counted().validate(3).is_err());
}
