//! Variants of a model by LoRA adapters.

use offshoot_models::Checkpoint;
use serde_json::json;

use crate::home::{Home, run};

/// An adapter that changes one matrix of the small model: `down_proj` of the first layer, which turns
/// `inner` numbers into `hidden`.
pub(crate) fn adapter(home: &Home, (hidden, inner): (usize, usize), size: f32) {
    let name = "base_model.model.model.layers.0.mlp.down_proj";
    let numbers = |n: usize| (0..n).flat_map(move |i| (size * (1 + i % 7) as f32).to_le_bytes());
    let (a, b) = (8 * inner, 8 * (inner + hidden));
    let header = json!({
        (format!("{name}.lora_A.weight")):
            {"dtype": "F32", "shape": [2, inner], "data_offsets": [0, a]},
        (format!("{name}.lora_B.weight")):
            {"dtype": "F32", "shape": [hidden, 2], "data_offsets": [a, b]},
    })
    .to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(numbers(2 * (inner + hidden)));
    std::fs::create_dir_all(home.path().join("variant")).unwrap();
    home.file("variant/adapter_model.safetensors", file);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).to_string();
    home.file("variant/adapter_config.json", config);
}

#[test]
fn an_adapter_makes_another_model_of_the_same_file() {
    let home = Home::new();
    let base = Checkpoint::open(&home.tiny_with_context(2048)).unwrap();
    let shape = (base.config().hidden_size, base.config().intermediate_size);
    let score = |more: &[&str]| {
        let fixed = ["score", "long.gguf", "--prompt", "abab", "--json"];
        run(home.offshoot(fixed.iter().chain(more))).ended_with(0).json()
    };
    let base = score(&[]);
    adapter(&home, shape, 0.0);
    assert_eq!(score(&["--adapter", "variant"]), base, "a difference of nothing");
    adapter(&home, shape, 0.5);
    let variant = score(&["--adapter", "variant"]);
    assert_ne!(variant, base);
    // Drafted or not, a variant says the same.
    let answer = |spec: &str| {
        let fixed = ["run", "long.gguf", "abab", "-n", "24", "--temperature", "0"];
        let more = ["--adapter", "variant", "--spec", spec];
        run(home.offshoot(fixed.iter().chain(&more))).ended_with(0).stdout
    };
    assert_eq!(answer("off"), answer("suffix"));
    let dense = run(home.offshoot([
        "run",
        "long.gguf",
        "abab",
        "-n",
        "4",
        "--temperature",
        "0",
        "--adapter",
        "variant",
        "--executor",
        "dense",
    ]));
    dense.ended_with(0);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let home = Home::new();
    home.tiny_with_context(2048);
    adapter(&home, (24, 40), 1.0);
    let fixed = ["run", "long.gguf", "ab", "-n", "3", "--adapter"];
    let left = run(home.offshoot(fixed.iter().chain(&["variant"]))).ended_with(4);
    let told = &left.stderr;
    assert!(told.contains("down_proj") && told.contains("expected [r, "), "{told}");
    let left = run(home.offshoot(fixed.iter().chain(&["nowhere"]))).ended_with(1);
    assert!(left.stderr.contains("adapter_config.json"), "{}", left.stderr);
}
