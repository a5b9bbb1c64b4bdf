//! Orthonormal columns, the same on every machine.

/// The Q of a QR factorisation of `a`, row-major with `r` columns and at least as many rows:
/// modified Gram and Schmidt in double precision, every column made orthogonal to those before it
/// twice, which is enough (Giraud, Langou and Rozloznik 2005,
/// <https://doi.org/10.1016/j.camwa.2005.08.009>). Columns are visited in order and sums run down
/// the rows, so the bits depend on the input alone.
///
/// A column that is a combination of those before it is replaced by the first unit vector that is
/// not.
pub(crate) fn orthonormal_columns(a: Vec<f32>, r: usize) -> Vec<f32> {
    let rows = a.len() / r;
    let mut columns: Vec<Vec<f64>> =
        (0..r).map(|k| (0..rows).map(|i| f64::from(a[i * r + k])).collect()).collect();
    let mut spare = 0;
    for k in 0..r {
        while !normalize_beside(&mut columns, k) && spare < rows {
            columns[k].fill(0.0);
            columns[k][spare] = 1.0;
            spare += 1;
        }
    }
    (0..rows).flat_map(|i| columns.iter().map(move |column| column[i] as f32)).collect()
}

/// Makes column `k` orthogonal to those before it, and of length 1; false if nothing of it is left.
fn normalize_beside(columns: &mut [Vec<f64>], k: usize) -> bool {
    let (before, rest) = columns.split_at_mut(k);
    let column = &mut rest[0];
    let length = dot(column, column).sqrt();
    for _ in 0..2 {
        for other in before.iter() {
            let share = dot(column, other);
            column.iter_mut().zip(other).for_each(|(x, y)| *x -= share * y);
        }
    }
    let left = dot(column, column).sqrt();
    if left <= 1e-10 * length || left == 0.0 {
        return false;
    }
    column.iter_mut().for_each(|x| *x /= left);
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_orthonormal(q: &[f32], r: usize) {
        for a in 0..r {
            for b in 0..r {
                let dot: f64 = q.chunks(r).map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
                let expected = if a == b { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 1e-6, "{a} {b}: {dot}");
            }
        }
    }

    #[test]
    fn columns_become_orthonormal_and_span_what_they_did() {
        let a = [2.0, 1.0, 0.0, 1.0, 1.0, -1.0, 3.0, 0.5];
        let q = orthonormal_columns(a.to_vec(), 2);
        assert_orthonormal(&q, 2);
        // The second column of the input is what its shares along the two columns add up to.
        let share = |k: usize| -> f32 { (0..4).map(|i| a[2 * i + 1] * q[2 * i + k]).sum() };
        for i in 0..4 {
            let sum = share(0) * q[2 * i] + share(1) * q[2 * i + 1];
            assert!((sum - a[2 * i + 1]).abs() < 1e-5);
        }
    }

    #[test]
    fn dependent_columns_are_replaced() {
        let q = orthonormal_columns(vec![1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0], 3);
        assert_orthonormal(&q, 3);
    }
}
