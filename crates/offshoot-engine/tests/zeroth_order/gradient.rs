//! Differences of losses are slopes: `(l+ - l-) / (2 eps)` is the gradient along the direction, as
//! automatic differentiation of the dense executor has it in double precision.

use candle_core::{D, DType, Device, Tensor, Var};
use offshoot_engine::tune::zeroth_order::{CrossEntropy, FullOptions, Space, StepLimits};
use offshoot_engine::tune::{Example, Sequence};
use offshoot_kernels::{Distribution, Noise, Purpose, tensor_id};
use offshoot_models::{
    DenseCache, DenseHooks, DenseModel, Error, LinearId, LogitRows, RopeId, Segment, SegmentRows,
    VariantId, chain,
};

use crate::setting::{checkpoint, cpu, full, lora, probe, texts, trainer};

/// LoRA's factors as variables.
struct Factors {
    /// By matrix: `A`, `B`, and what their product is multiplied by.
    pairs: Vec<Option<(Var, Var)>>,
    scale: f64,
}

impl DenseHooks for Factors {
    fn addend(
        &mut self,
        linear: LinearId,
        _: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        let Some((a, b)) = &self.pairs[linear.index()] else { return Ok(None) };
        let inner = x.matmul(&a.t()?)?;
        Ok(Some((inner.matmul(&b.t()?)? * self.scale)?))
    }
}

/// The sum of the losses of the trained tokens.
fn loss(model: &DenseModel, factors: &mut Factors, text: &Sequence) -> Tensor {
    let n = text.tokens.len() - 1;
    let mut cache = DenseCache::new(model.config());
    let segment = Segment {
        cache: &mut cache,
        tokens: &text.tokens[..n],
        parents: &chain(n),
        positions: &(0..n as u32).collect::<Vec<_>>(),
        rope: RopeId::default(),
        variant: VariantId(1),
        logits: LogitRows::All,
    };
    let logits = model.step(&mut [segment], factors).unwrap();
    let targets = Tensor::new(&text.tokens[1..], &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let chosen = logits.gather(&targets, D::Minus1).unwrap().squeeze(1).unwrap();
    let surprise = (logits.log_sum_exp(D::Minus1).unwrap() - chosen).unwrap();
    let trained: Vec<f64> = text.trained[1..].iter().map(|&t| f64::from(u8::from(t))).collect();
    let trained = Tensor::new(trained, &Device::Cpu).unwrap();
    (surprise * trained).unwrap().sum_all().unwrap()
}

/// The loss of `batch` and its gradient in each tensor of the space, row by row.
fn gradient(name: &str, space: &dyn Space, scale: f64, batch: &[Example]) -> (f64, Vec<Vec<f64>>) {
    let model = DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F64).unwrap();
    let blueprint = model.blueprint();
    let mut pairs: Vec<Option<(Var, Var)>> = blueprint.linears.iter().map(|_| None).collect();
    let variable = |tensor: &str| {
        let at = space.layout().tensors.iter().position(|spec| spec.name == tensor).unwrap();
        let spec = &space.layout().tensors[at];
        let mut values = vec![0.0; spec.rows * spec.cols];
        space.read(at, &mut values).unwrap();
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let tensor = Tensor::from_vec(values, (spec.rows, spec.cols), &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    let mut variables = vec![None; space.layout().tensors.len()];
    for (linear, pair) in blueprint.linears.iter().zip(&mut pairs) {
        let b = format!("{}.lora_B.weight", linear.name);
        if let Some(at) = space.layout().tensors.iter().position(|spec| spec.name == b) {
            let a = format!("{}.lora_A.weight", linear.name);
            let (va, vb) = (variable(&a), variable(&b));
            let at_a = space.layout().tensors.iter().position(|spec| spec.name == a).unwrap();
            (variables[at_a], variables[at]) = (Some(va.clone()), Some(vb.clone()));
            *pair = Some((va, vb));
        }
    }
    mean_gradient(&model, &mut Factors { pairs, scale }, &variables, batch)
}

/// The mean loss of `batch` and its gradient in `variables`.
fn mean_gradient(
    model: &DenseModel,
    factors: &mut Factors,
    variables: &[Option<Var>],
    batch: &[Example],
) -> (f64, Vec<Vec<f64>>) {
    let (mut total, mut count) = (Tensor::new(0f64, &Device::Cpu).unwrap(), 0);
    for example in batch {
        let Example::Text(text) = example else { unreachable!() };
        total = (total + loss(model, factors, text)).unwrap();
        count += text.targets();
    }
    let mean = (total / count as f64).unwrap();
    let found = mean.backward().unwrap();
    let of = |variable: &Option<Var>| {
        let gradient = found.get(variable.as_ref().unwrap()).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    (mean.to_scalar().unwrap(), variables.iter().map(of).collect())
}

/// `z` of a step's first direction times the gradient.
fn along(space: &dyn Space, gradient: &[Vec<f64>], step: u32) -> f64 {
    let mut sum = 0.0;
    for (spec, gradient) in space.layout().tensors.iter().zip(gradient) {
        let noise = Noise {
            seed: 7,
            tensor: tensor_id(&spec.name),
            step,
            index: 0,
            purpose: Purpose::Direction,
            distribution: Distribution::GaussQ8,
        };
        for (element, g) in gradient.iter().enumerate() {
            sum += g * f64::from(noise.at(element as u64));
        }
    }
    sum
}

/// The loss of `batch` and its gradient in each weight of the model.
fn full_gradient(name: &str, space: &dyn Space, batch: &[Example]) -> (f64, Vec<Vec<f64>>) {
    let mut model = DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F64).unwrap();
    let names = space.layout().tensors.iter().map(|spec| spec.name.clone());
    let variables: Vec<Option<Var>> = names.map(|name| model.variable(&name).ok()).collect();
    let pairs = model.blueprint().linears.iter().map(|_| None).collect();
    mean_gradient(&model, &mut Factors { pairs, scale: 0.0 }, &variables, batch)
}

/// Asserts that slopes by losses are those of `gradient` along 50 directions: within a thousandth, and
/// 2e-4 of their usual size. A flat 1e-4 would not hold of slopes near zero: a loss in single precision
/// is off by about 6e-8 of itself, which over this eps is several times that.
fn slopes_are_those_of(
    name: &str,
    space: impl Space + 'static,
    (expected, gradient): (f64, Vec<Vec<f64>>),
    batch: &[Example],
    eps: f32,
) {
    let cpu = cpu(2);
    let slopes: Vec<f64> = (0..50).map(|step| along(&space, &gradient, step)).collect();
    let size = (slopes.iter().map(|s| s * s).sum::<f64>() / 50.0).sqrt();
    let mut trainer = trainer(&cpu, space, CrossEntropy, StepLimits::default());
    let batch: Vec<&Example> = batch.iter().collect();
    let loss = trainer.losses(&[probe(0, 0.0)], &batch).unwrap()[0];
    assert!((loss - expected).abs() < 1e-6 * expected, "{loss}, expected {expected}");
    for (step, slope) in slopes.iter().enumerate() {
        // Of three widths, so that the third and fifth derivatives fall out: g(eps) = slope + c eps^6 ...
        let widths = [1.0, -1.0, 2.0, -2.0, 3.0, -3.0];
        let points = widths.map(|k| probe(step as u32, k * eps));
        let l = trainer.losses(&points, &batch).unwrap();
        let g = 45.0 * (l[0] - l[1]) - 9.0 * (l[2] - l[3]) + (l[4] - l[5]);
        let off = (g / (60.0 * f64::from(eps)) - slope).abs();
        let bound = 1e-3 * slope.abs() + 2e-4 * size;
        assert!(off < bound, "{name}, direction {step}: off by {off}, slope {slope}");
    }
}

/// Of a matrix and a norm: the mean of many estimates is the gradient, their size is that of theory, and
/// the cosine of one with the gradient is small, as it should be.
#[test]
fn estimates_are_the_gradient_in_the_mean_and_as_large_as_they_should_be() {
    const N: usize = 20_000;
    let cpu = cpu(2);
    let batch = texts(2);
    for distribution in [Distribution::GaussQ8, Distribution::Rademacher] {
        let some = FullOptions {
            train: Some(r"layers\.0\.self_attn\.k_proj\.weight|model\.norm".to_owned()),
            distribution,
            ..FullOptions::default()
        };
        let space = full("llama_linear", &cpu, &some);
        let (_, gradient) = full_gradient("llama_linear", &space, &batch);
        let gradient: Vec<f64> = gradient.concat();
        let specs = space.layout().tensors.clone();
        let draws = |step: usize, tensor: &str, n: usize| -> Vec<f64> {
            let noise = Noise {
                seed: 7,
                tensor: tensor_id(tensor),
                step: step as u32,
                index: 0,
                purpose: Purpose::Direction,
                distribution,
            };
            (0..n).map(|i| f64::from(noise.at(i as u64))).collect()
        };
        let mut trainer = trainer(&cpu, space, CrossEntropy, StepLimits::default());
        let batch: Vec<&Example> = batch.iter().collect();
        let d = gradient.len();
        let square: f64 = gradient.iter().map(|g| g * g).sum();
        let dot = |a: &[f64]| a.iter().zip(&gradient).map(|(a, g)| a * g).sum::<f64>();
        let (mut mean, mut size) = (vec![0.0; d], 0.0);
        // Estimates of 1, 4 and 16 directions, and their cosines.
        let mut some: [(usize, Vec<f64>, Vec<f64>); 3] =
            [1, 4, 16].map(|n| (n, vec![0.0; d], Vec::new()));
        for step in 0..N {
            let both = [probe(step as u32, 1e-2), probe(step as u32, -1e-2)];
            let losses = trainer.losses(&both, &batch).unwrap();
            let slope = (losses[0] - losses[1]) / 2e-2;
            let z = specs.iter().flat_map(|spec| draws(step, &spec.name, spec.rows * spec.cols));
            let z: Vec<f64> = z.collect();
            size += slope * slope * z.iter().map(|z| z * z).sum::<f64>() / N as f64;
            for (sum, z) in mean.iter_mut().zip(&z) {
                *sum += slope * z / N as f64;
            }
            for (n, sum, cosines) in &mut some {
                sum.iter_mut().zip(&z).for_each(|(sum, z)| *sum += slope * z);
                if (step + 1).is_multiple_of(*n) {
                    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
                    cosines.push(dot(sum) / (length * square.sqrt()));
                    sum.fill(0.0);
                }
            }
        }
        let off = mean.iter().zip(&gradient).map(|(m, g)| (m - g) * (m - g)).sum::<f64>();
        let bound = 1.3 * ((d + 1) as f64 / N as f64).sqrt();
        assert!((off / square).sqrt() < bound, "d = {d}: {}", (off / square).sqrt());
        let expected = match distribution {
            Distribution::Rademacher => d as f64,
            _ => (d + 2) as f64,
        };
        assert!((size / (expected * square) - 1.0).abs() < 0.05, "{}", size / (expected * square));
        // Of one direction the cosine is that of z itself, half-normal in size.
        for (n, _, cosines) in &some {
            let root = (cosines.iter().map(|c| c * c).sum::<f64>() / cosines.len() as f64).sqrt();
            let theory = (*n as f64 / (d + n) as f64).sqrt();
            assert!((root / theory - 1.0).abs() < 0.25, "n = {n}: {root}, expected {theory}");
        }
    }
}

#[test]
fn projected_gradients_of_lora_are_those_of_automatic_differentiation() {
    let cpu = cpu(2);
    for name in ["llama_linear", "qwen2_tied", "gemma3_linear", "llama_biases"] {
        let (space, batch) = (lora(name, &cpu), texts(5));
        let gradient = gradient(name, &space, 2.0, &batch);
        slopes_are_those_of(name, space, gradient, &batch, 3e-3);
    }
}

#[test]
fn projected_gradients_of_all_weights_are_those_of_automatic_differentiation() {
    let cpu = cpu(2);
    for name in ["llama_linear", "qwen2_tied", "llama_biases"] {
        let (space, batch) = (full(name, &cpu, &FullOptions::default()), texts(5));
        let gradient = full_gradient(name, &space, &batch);
        slopes_are_those_of(name, space, gradient, &batch, 1e-3);
    }
}
