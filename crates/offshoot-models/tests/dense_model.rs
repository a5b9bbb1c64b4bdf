//! A dense model's weights: where they come from, and which are refused.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use logits::{MODELS, checkpoint};
use offshoot_models::{DenseModel, Error};

fn load(name: &str) -> DenseModel {
    DenseModel::load(&checkpoint(name), &Device::Cpu, DType::F32).unwrap()
}

fn tensors(model: &DenseModel) -> BTreeMap<String, Tensor> {
    let names = model.names().map(str::to_owned);
    names.map(|name| (name.clone(), model.tensor(&name).unwrap().clone())).collect()
}

#[test]
fn norms_of_gemma_keep_what_half_precision_would_take_from_a_weight_near_1() {
    for (name, norm) in [("gemma3_linear", DType::F32), ("qwen3_tied", DType::BF16)] {
        let checkpoint = checkpoint(name);
        let model = DenseModel::load(&checkpoint, &Device::Cpu, DType::BF16).unwrap();
        assert_eq!(model.dtype(), DType::BF16);
        for stored in checkpoint.tensors().filter(|t| t.name.ends_with("norm.weight")) {
            let weights = model.tensor(stored.name).unwrap();
            assert_eq!(weights.dtype(), norm, "{name}: {}", stored.name);
            let mut expected = vec![0.0; stored.len()];
            stored.read_row(0, &mut expected).unwrap();
            if norm == DType::F32 {
                assert_eq!(weights.to_vec1::<f32>().unwrap(), expected);
            }
        }
        // A model of tensors that exist is held to the same.
        let mut tensors = tensors(&model);
        let rounded = tensors["model.norm.weight"].to_dtype(DType::F16).unwrap();
        DenseModel::from_tensors(model.config().clone(), tensors.clone()).unwrap();
        tensors.insert("model.norm.weight".to_owned(), rounded);
        let error = DenseModel::from_tensors(model.config().clone(), tensors).unwrap_err();
        let expected = format!("type f16, expected {}", norm.as_str());
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn the_weights_are_those_of_the_checkpoint() {
    for name in MODELS {
        let (model, checkpoint) = (load(name), checkpoint(name));
        let names: Vec<_> = checkpoint.tensors().map(|t| t.name).collect();
        assert_eq!(model.names().collect::<Vec<_>>(), names);
        for stored in checkpoint.tensors() {
            let weights = model.tensor(stored.name).unwrap();
            assert_eq!(weights.dims(), stored.info.shape);
            let weights: Vec<f32> = weights.flatten_all().unwrap().to_vec1().unwrap();
            let mut row = vec![0.0; stored.cols()];
            for (index, weights) in weights.chunks(stored.cols()).enumerate() {
                stored.read_row(index, &mut row).unwrap();
                assert_eq!(weights, row);
            }
        }
    }
}

#[test]
fn a_model_of_given_tensors_needs_each_in_its_form() {
    let model = load("qwen2_untied");
    let refuse = |name: &str, tensor: Option<Tensor>, expected: &str| {
        let mut given = tensors(&model);
        match tensor {
            Some(tensor) => given.insert(name.to_owned(), tensor),
            None => given.remove(name),
        };
        let error = DenseModel::from_tensors(model.config().clone(), given).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor {name}: {expected}"));
    };
    let zeros = |shape: &[usize], dtype| Some(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
    let bias = "model.layers.1.self_attn.k_proj.bias";
    refuse(bias, None, "the model has none of that name");
    refuse(bias, zeros(&[17], DType::F32), "shape [17], expected [16]");
    refuse(bias, zeros(&[16], DType::F16), "type f16, expected f32");
    refuse("lm_head.weight", zeros(&[48, 101], DType::F32), "shape [48, 101], expected [101, 48]");
    let embedding = "model.embed_tokens.weight";
    let integers = "is of type u32, expected a float type";
    refuse(embedding, zeros(&[101, 48], DType::U32), integers);

    let mut given = tensors(&model);
    given.insert("left.over".to_owned(), zeros(&[1], DType::F32).unwrap());
    let same = DenseModel::from_tensors(model.config().clone(), given).unwrap();
    assert!(same.tensor("left.over").is_err());
    assert_eq!(same.names().count(), model.names().count());
}

#[test]
fn replaced_weights_keep_their_form() {
    let mut model = load("llama_biases");
    let name = "model.norm.weight";
    let ones = Tensor::ones(40, DType::F32, &Device::Cpu).unwrap();
    model.set(name, ones.clone()).unwrap();
    assert_eq!(model.tensor(name).unwrap().to_vec1::<f32>().unwrap(), [1.0; 40]);
    for wrong in [ones.reshape((1, 40)).unwrap(), ones.to_dtype(DType::F64).unwrap()] {
        let error = model.set(name, wrong).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }), "{error}");
    }
    assert!(model.set("lm_head.weight", ones.clone()).is_err(), "a tied head has no weights");
    assert!(model.variable("lm_head.weight").is_err());
    // Made a variable twice, it is one variable.
    let first = model.variable(name).unwrap();
    first.set(&(ones * 2.0).unwrap()).unwrap();
    assert_eq!(model.tensor(name).unwrap().to_vec1::<f32>().unwrap(), [2.0; 40]);
    assert_eq!(model.variable(name).unwrap().as_tensor().id(), first.as_tensor().id());
}
