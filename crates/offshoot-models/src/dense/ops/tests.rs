//! Each operation against finite differences in double precision and against the tensor library's own
//! operations.

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::Activation;
use crate::dense::primitives;

/// Fixed numbers, uniform in -1 to 1, from xorshift64*.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let numbers: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn number(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn dot(x: &Tensor, y: &Tensor) -> f64 {
    let of = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    number(&(of(x) * of(y)).unwrap().sum_all().unwrap())
}

/// Attention that remembers how it was made.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { shape })
}

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The value of `f` and the gradients of its product with fixed numbers.
fn gradients(f: Operation<'_>, at: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let variables: Vec<Var> = at.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let operands: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&operands).unwrap();
    let along = numbers(y.dims(), 99).to_dtype(y.dtype()).unwrap();
    let store = (&y * along).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |v: &Var| store.get(v).expect("every operand has a gradient").clone();
    (y, variables.iter().map(of).collect())
}

/// Holds the gradient of each operand of `f` to the slope of its product with fixed numbers.
fn check_slopes(name: &str, f: Operation<'_>, at: &[Tensor]) {
    let (y, found) = gradients(f, at);
    let along = numbers(y.dims(), 99);
    for (place, gradient) in found.iter().enumerate() {
        let direction = numbers(at[place].dims(), 7 + place as u64);
        let value = |step: f64| {
            let mut moved = at.to_vec();
            moved[place] = (&at[place] + (&direction * step).unwrap()).unwrap();
            dot(&f(&moved).unwrap(), &along)
        };
        let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
        let error = (slope - dot(gradient, &direction)).abs() / dot(gradient, gradient).sqrt();
        assert!(error < 1e-7, "{name}, operand {place}: off by {error}");
    }
}

/// Holds `f` and its gradients to those of `composed`, in both precisions.
fn check_same(name: &str, f: Operation<'_>, composed: Operation<'_>, at: &[Tensor]) {
    for (dtype, close) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
        let at: Vec<Tensor> = at.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let ((y, ours), (expected, theirs)) = (gradients(f, &at), gradients(composed, &at));
        for (ours, theirs) in
            [&y].into_iter().chain(&ours).zip([&expected].into_iter().chain(&theirs))
        {
            assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), theirs.dtype()));
            let off = (ours - theirs).unwrap();
            let error = (dot(&off, &off) / dot(theirs, theirs)).sqrt();
            assert!(error < close, "{name} in {dtype:?}: off by {error}");
        }
    }
}

fn check(name: &str, f: Operation<'_>, composed: Operation<'_>, at: &[Tensor]) {
    check_slopes(name, f, at);
    check_same(name, f, composed, at);
}

#[test]
fn norms_have_the_slopes_of_their_values_and_the_numbers_of_the_library() {
    // More rows than a thread takes, of whole rows and of heads.
    for shape in [vec![3, 37], vec![75, 5, 18]] {
        let width = *shape.last().unwrap();
        let at = [numbers(&shape, 1), numbers(&[width], 2)];
        let ours = |x: &[Tensor]| rms_norm(&x[0], &x[1], 1e-5);
        let composed = |x: &[Tensor]| {
            let mean = x[0].sqr()?.mean_keepdim(candle_core::D::Minus1)?;
            x[0].broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(&x[1])
        };
        check("rms_norm", &ours, &composed, &at);
    }
}

#[test]
fn rotations_have_the_slopes_of_their_values_and_the_numbers_of_the_library() {
    let angles = numbers(&[35, 4], 3);
    // Whole heads, and the first eight elements of each.
    for width in [8, 11] {
        rotation_of_heads(width, &angles);
    }
}

/// Checks the rotation of heads of this width by these angles.
fn rotation_of_heads(width: usize, angles: &Tensor) {
    let table = |x: &Tensor| {
        let of = |table: Tensor| table.to_dtype(x.dtype());
        Ok::<_, candle_core::Error>((of(angles.cos()?)?, of(angles.sin()?)?))
    };
    let ours = |x: &[Tensor]| {
        let (cos, sin) = table(&x[0])?;
        rope(&x[0], &cos, &sin)
    };
    let composed = |x: &[Tensor]| {
        let (cos, sin) = table(&x[0])?;
        let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
        let (a, b) = (x[0].narrow(2, 0, 4)?, x[0].narrow(2, 4, 4)?);
        let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[left, right, x[0].narrow(2, 8, width - 8)?], 2)
    };
    check("rope", &ours, &composed, &[numbers(&[35, 3, width], 4)]);
}

#[test]
fn gates_have_the_slopes_of_their_values_and_the_numbers_of_the_library() {
    let at = [(numbers(&[90, 101], 5) * 6.0).unwrap(), numbers(&[90, 101], 6)];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let ours = |x: &[Tensor]| gate(&x[0], &x[1], activation);
        let composed = |x: &[Tensor]| match activation {
            Activation::Silu => x[0].silu()? * &x[1],
            Activation::GeluTanh => x[0].gelu()? * &x[1],
        };
        check_slopes("gate", &ours, &at);
        // The library takes the constants of GELU in single precision, and the slope of its gate of
        // them to no more.
        let far = activation == Activation::GeluTanh;
        let at: Vec<Tensor> = match far {
            true => at.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect(),
            false => at.to_vec(),
        };
        let (y, found) = gradients(&ours, &at);
        let (expected, theirs) = gradients(&composed, &at);
        for (ours, theirs) in [(&y, &expected), (&found[0], &theirs[0]), (&found[1], &theirs[1])] {
            let off = (ours - theirs).unwrap();
            let error = (dot(&off, &off) / dot(theirs, theirs)).sqrt();
            assert!(error < if far { 3e-6 } else { 1e-12 }, "{activation:?}: off by {error}");
        }
    }
}

fn shape(lengths: &[usize], window: usize) -> AttentionShape {
    let lengths = lengths.to_vec();
    AttentionShape { lengths, heads: 6, kv_heads: 2, head_dim: 8, scale: 0.3, window }
}

/// The same of the library's operations, text by text.
fn composed_attention(x: &[Tensor], shape: &AttentionShape) -> Result<Tensor> {
    let (mut all, mut first) = (Vec::new(), 0);
    for &rows in &shape.lengths {
        let of = |x: &Tensor| x.narrow(0, first, rows)?.reshape((rows, (), shape.head_dim));
        let by_head = |x: &Tensor| of(x)?.transpose(0, 1)?.contiguous();
        let mut mask = vec![f64::NEG_INFINITY; rows * rows];
        for row in 0..rows {
            for key in (row + 1).saturating_sub(shape.window)..=row {
                mask[row * rows + key] = 0.0;
            }
        }
        let mask = Tensor::from_vec(mask, (rows, rows), &Device::Cpu)?.to_dtype(x[0].dtype())?;
        let (q, k, v) = (of(&x[0])?, by_head(&x[1])?, by_head(&x[2])?);
        all.push(primitives::attend(&q, &k, &v, &mask, shape.scale)?);
        first += rows;
    }
    Tensor::cat(&all, 0)
}

#[test]
fn attention_has_the_slopes_of_its_values_and_the_numbers_of_the_library() {
    // Texts of a single row, of more rows than are scored at a time, and windows that end in both.
    for (lengths, window) in
        [(vec![1, 5, 9], usize::MAX), (vec![12, 1, 3], 4), (vec![150, 2], 100), (vec![300], 7)]
    {
        let rows: usize = lengths.iter().sum();
        let shape = shape(&lengths, window);
        let at = [numbers(&[rows, 48], 8), numbers(&[rows, 16], 9), numbers(&[rows, 16], 10)];
        let at: Vec<Tensor> = at.iter().map(|x| (x * 2.0).unwrap()).collect();
        let ours = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], shape.clone());
        let composed = |x: &[Tensor]| composed_attention(x, &shape);
        check(&format!("attention of {lengths:?}"), &ours, &composed, &at);
    }
}

#[test]
fn products_with_low_rank_matrices_have_the_slopes_of_their_values() {
    let weight = numbers(&[21, 13], 11);
    let bias = numbers(&[21], 12);
    let at = [numbers(&[17, 13], 13), numbers(&[3, 13], 14), numbers(&[21, 3], 15)];
    let of = |x: &Tensor| weight.to_dtype(x.dtype()).unwrap();
    let with_bias = |x: &[Tensor]| {
        let pair = LowRankPair { a: x[1].clone(), b: x[2].clone(), scale: 1.7 };
        let bias = bias.to_dtype(x[0].dtype())?;
        linear(&x[0], Frozen::Tensor(of(&x[0])), Some(&bias), Some(&pair))
    };
    let composed = |x: &[Tensor]| {
        let y = x[0].matmul(&of(&x[0]).t()?)?.broadcast_add(&bias.to_dtype(x[0].dtype())?)?;
        y + (x[0].matmul(&x[1].t()?)?.matmul(&x[2].t()?)? * 1.7)?
    };
    check("lora", &with_bias, &composed, &at);
    let alone = |x: &[Tensor]| linear(&x[0], Frozen::Tensor(of(&x[0])), None, None);
    let composed = |x: &[Tensor]| x[0].matmul(&of(&x[0]).t()?);
    check("frozen", &alone, &composed, &at[..1]);
}

#[test]
fn a_frozen_matrix_of_a_narrower_type_is_widened_in_pieces_and_gives_the_same() {
    // Some pieces of 2^20 numbers, the last a short one.
    let (rows, cols) = (2500, 1024);
    let narrow = numbers(&[rows, cols], 16).to_dtype(DType::BF16).unwrap();
    let wide = narrow.to_dtype(DType::F32).unwrap();
    let at = [numbers(&[3, cols], 17).to_dtype(DType::F32).unwrap()];
    let of = |weight: &Tensor| {
        let weight = weight.clone();
        move |x: &[Tensor]| linear(&x[0], Frozen::Tensor(weight.clone()), None, None)
    };
    let (y, found) = gradients(&of(&narrow), &at);
    let (expected, theirs) = gradients(&of(&wide), &at);
    for (ours, theirs) in [(&y, &expected), (&found[0], &theirs[0])] {
        let off = (ours - theirs).unwrap();
        let error = (dot(&off, &off) / dot(theirs, theirs)).sqrt();
        assert!(error < 1e-6, "off by {error}");
    }
    assert!(dot(&y, &y) > 1.0);
}

/// Two targets of one row, a row without any, weights of both signs.
fn targets() -> Vec<Target> {
    [(0, 3, 0.5), (0, 70, -0.25), (1, 3, 1.0), (3, 99, 2.0), (4, 0, 0.75)]
        .map(|(row, token, weight)| Target { row, token, weight })
        .to_vec()
}

/// The loss of the library's operations.
fn composed_loss(x: &Tensor, head: &Tensor, cap: Option<f32>) -> Result<Tensor> {
    let mut logits = x.matmul(&head.t()?)?;
    if let Some(cap) = cap.map(f64::from) {
        logits = ((logits / cap)?.tanh()? * cap)?;
    }
    let logs = logits.broadcast_sub(&logits.log_sum_exp(1)?.unsqueeze(1)?)?;
    let mut weights = vec![0.0; logs.elem_count()];
    for target in targets() {
        weights[target.row * 100 + target.token as usize] -= target.weight;
    }
    let weights = Tensor::from_vec(weights, logs.shape(), &Device::Cpu)?.to_dtype(x.dtype())?;
    (logs * weights)?.sum_all()
}

#[test]
fn cross_entropy_has_the_slopes_of_its_values_and_the_numbers_of_the_library() {
    let (x, head) = (numbers(&[5, 12], 18), (numbers(&[100, 12], 19) * 2.0).unwrap());
    let targets = targets();
    for cap in [None, Some(1.5)] {
        let loss = |x: &Tensor, head: &Tensor, trained| {
            let head = Frozen::Tensor(head.clone());
            Ok(CrossEntropy { head, cap, targets: &targets }.loss(x, trained)?.0)
        };
        let of_both = |x: &[Tensor]| loss(&x[0], &x[1], true);
        let composed = |x: &[Tensor]| composed_loss(&x[0], &x[1], cap);
        check("cross_entropy", &of_both, &composed, &[x.clone(), head.clone()]);
        let frozen = |x: &[Tensor]| loss(&x[0], &head.to_dtype(x[0].dtype())?, false);
        let composed = |x: &[Tensor]| composed_loss(&x[0], &head.to_dtype(x[0].dtype())?, cap);
        check("cross_entropy", &frozen, &composed, std::slice::from_ref(&x));
    }
}

#[test]
fn cross_entropy_in_many_chunks_is_that_of_each_row() {
    // 2^22 logits at a time are 128 rows of these.
    let (rows, vocab) = (300, 100);
    let (x, head) = (numbers(&[rows, 12], 20), numbers(&[vocab, 12], 21));
    let of = |row: usize| Target { row, token: (row * 7 % vocab) as u32, weight: 1.0 };
    let all: Vec<Target> = (0..rows).map(of).collect();
    let frozen = Frozen::Tensor(head.clone());
    let scores = log_probabilities(&x, &frozen, None, &all).unwrap();
    let logits = x.matmul(&head.t().unwrap()).unwrap().to_vec2::<f64>().unwrap();
    let mut sum = 0.0;
    for (row, (logits, (log, best))) in logits.iter().zip(&scores).enumerate() {
        let token = row * 7 % vocab;
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        assert!((logits[token] - total.ln() - log).abs() < 1e-12);
        assert_eq!(*best, logits.iter().all(|l| *l <= logits[token]));
        sum -= log;
    }
    let found = CrossEntropy { head: frozen, cap: None, targets: &all }.loss(&x, false).unwrap();
    assert!((found.1 - sum).abs() < 1e-9 * sum && (number(&found.0) - sum).abs() < 1e-9 * sum);
}

#[test]
fn targets_out_of_bounds_or_order_are_refused() {
    let (x, head) = (numbers(&[2, 3], 22), numbers(&[5, 3], 23));
    let refused = |places: &[(usize, u32)]| {
        let targets: Vec<_> =
            places.iter().map(|&(row, token)| Target { row, token, weight: 1.0 }).collect();
        log_probabilities(&x, &Frozen::Tensor(head.clone()), None, &targets).is_err()
    };
    assert!(refused(&[(2, 0)]) && refused(&[(0, 5)]) && refused(&[(1, 0), (0, 0)]));
    assert!(!refused(&[(0, 0), (0, 4), (1, 1)]));
}

/// Two states, each with its head, and weights of the rows, one of them none.
fn scorings() -> (Scoring, Scoring, [f64; 5]) {
    let scoring = |d: usize, seed: u64| Scoring {
        x: numbers(&[5, d], seed),
        head: Frozen::Tensor((numbers(&[100, d], seed + 1) * 2.0).unwrap()),
    };
    (scoring(12, 24), scoring(9, 26), [0.5, 1.0, 0.0, 0.25, 2.0])
}

#[test]
fn a_divergence_has_the_slopes_of_its_values_and_is_none_from_itself() {
    let (model, teacher, weights) = scorings();
    let Frozen::Tensor(head) = &model.head else { panic!("a tensor") };
    for cap in [None, Some(1.5)] {
        let at = |x: &Tensor, head: &Tensor| {
            let moved = Scoring { x: x.clone(), head: Frozen::Tensor(head.clone()) };
            divergence(&moved, &teacher, cap, &weights, true).unwrap()
        };
        let found = at(&model.x, head);
        assert!(found.value > 0.5, "{}", found.value);
        let (along_x, along_head) = (numbers(&[5, 12], 7), numbers(&[100, 12], 8));
        let moved = |x: &Tensor, by: &Tensor, step: f64| (x + (by * step).unwrap()).unwrap();
        let slope = |f: &dyn Fn(f64) -> f64| (f(1e-5) - f(-1e-5)) / 2e-5;
        let of_x = slope(&|step| at(&moved(&model.x, &along_x, step), head).value);
        let of_head = slope(&|step| at(&model.x, &moved(head, &along_head, step)).value);
        let dw = found.dw.unwrap();
        for (gradient, along, slope) in [(&found.dx, along_x, of_x), (&dw, along_head, of_head)] {
            let error = (dot(gradient, &along) - slope).abs() / dot(gradient, gradient).sqrt();
            assert!(error < 1e-7, "off by {error}");
        }
        let none = divergence(&teacher, &teacher, cap, &weights, false).unwrap();
        assert!(none.value.abs() < 1e-12 && dot(&none.dx, &none.dx) == 0.0 && none.dw.is_none());
    }
}

#[test]
fn a_divergence_is_the_mean_gap_of_logarithms_in_many_chunks_too() {
    let (rows, vocab) = (300, 100);
    let scoring = |seed: u64| Scoring {
        x: numbers(&[rows, 12], seed),
        head: Frozen::Tensor(numbers(&[vocab, 12], seed + 1)),
    };
    let (model, teacher) = (scoring(30), scoring(32));
    let logs = |scoring: &Scoring| {
        let Frozen::Tensor(head) = &scoring.head else { panic!("a tensor") };
        let logits = scoring.x.matmul(&head.t().unwrap()).unwrap();
        let sums = logits.log_sum_exp(1).unwrap().unsqueeze(1).unwrap();
        logits.broadcast_sub(&sums).unwrap()
    };
    let (p, q) = (logs(&model), logs(&teacher));
    let expected = dot(&q.exp().unwrap(), &(&q - &p).unwrap()) / rows as f64;
    let weights = vec![1.0 / rows as f64; rows];
    let found = divergence(&model, &teacher, None, &weights, false).unwrap();
    assert!((found.value - expected).abs() < 1e-12, "{} {expected}", found.value);
    assert!(divergence(&model, &teacher, None, &weights[1..], false).is_err());
}

/// Of 300 rows, which the library's forms take in two pieces; every token twice, so that all tie.
#[test]
fn losses_of_the_librarys_operations_are_those_of_our_own() {
    let (rows, vocab) = (300, 100);
    let (x, once) = (numbers(&[rows, 12], 40), numbers(&[vocab, 12], 41));
    let head = Frozen::Tensor(Tensor::cat(&[&once, &once], 0).unwrap());
    let of = |(row, token): (usize, u32)| Target { row, token, weight: 0.5 - row as f64 / 400.0 };
    let likeliest = |row: usize| {
        let logits = x.get(row).unwrap().unsqueeze(0).unwrap().matmul(&once.t().unwrap());
        logits.unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap()[0]
    };
    let places = (0..rows).filter(|row| row % 7 != 3).flat_map(|row| {
        let best = likeliest(row);
        [(row, (row * 7 % 200) as u32), (row, best), (row, best + 100)]
    });
    let targets: Vec<Target> = places.map(of).collect();
    for cap in [None, Some(1.5)] {
        let ours = log_probabilities(&x, &head, cap, &targets).unwrap();
        let theirs = composed::log_probabilities(&x, &head, cap, &targets).unwrap();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours.0 - theirs.0).abs() < 1e-12 && ours.1 == theirs.1, "{ours:?} {theirs:?}");
        }
        assert!(ours.iter().filter(|(_, best)| *best).count() >= rows / 2);
        let loss = |own: bool| {
            let variable = |x: &Tensor| Var::from_tensor(x).unwrap();
            let Frozen::Tensor(head) = &head else { panic!("a tensor") };
            let (x, head) = (variable(&x), variable(head));
            let of = CrossEntropy {
                head: Frozen::Tensor(head.as_tensor().clone()),
                cap,
                targets: &targets,
            };
            let (loss, exact) = of.by(own, &x, true).unwrap();
            let store = (&loss * 3.0).unwrap().backward().unwrap();
            let of = |v: &Var| store.get(v).unwrap().clone();
            assert!((number(&loss) - exact).abs() < 1e-12 * exact.abs());
            (exact, [of(&x), of(&head)])
        };
        let (ours, theirs) = (loss(true), loss(false));
        assert!((ours.0 - theirs.0).abs() < 1e-12 * ours.0.abs(), "{} {}", ours.0, theirs.0);
        for (ours, theirs) in ours.1.iter().zip(&theirs.1) {
            let off = (ours - theirs).unwrap();
            assert!(dot(&off, &off).sqrt() < 1e-12 * dot(ours, ours).sqrt());
        }
        let model = Scoring { x: x.clone(), head: head.clone() };
        let other = numbers(&[2 * vocab, 9], 43);
        let teacher = Scoring { x: numbers(&[rows, 9], 42), head: Frozen::Tensor(other) };
        let weights: Vec<f64> = (0..rows).map(|row| 1.0 / (1 + row) as f64).collect();
        let ours = divergence(&model, &teacher, cap, &weights, true).unwrap();
        let theirs = composed::divergence(&model, &teacher, cap, &weights, true).unwrap();
        assert!((ours.value - theirs.value).abs() < 1e-12 * ours.value);
        let (dw, other) = (ours.dw.unwrap(), theirs.dw.unwrap());
        for (ours, theirs) in [(&ours.dx, &theirs.dx), (&dw, &other)] {
            let off = (ours - theirs).unwrap();
            assert!(dot(&off, &off).sqrt() < 1e-12 * dot(ours, ours).sqrt());
        }
    }
    assert!(composed::log_probabilities(&x, &head, None, &[of((300, 0))]).is_err());
    assert!(composed::log_probabilities(&x, &head, None, &[of((0, 200))]).is_err());
}
