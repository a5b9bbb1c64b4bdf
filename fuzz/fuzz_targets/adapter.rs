//! Parses bytes as the two files of an adapter, the first ending with a zero byte.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use offshoot_models::huggingface::peft;
use offshoot_models::{Adapter, ModelConfig, gguf};

/// A base whose folder keeps several matrices in one.
const BASE: &[u8] =
    include_bytes!("../../crates/offshoot-models/tests/data/logits/phi3_short.gguf");

fn base() -> &'static ModelConfig {
    static CONFIG: OnceLock<ModelConfig> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let contents = gguf::parse(BASE).and_then(|file| file.contents());
        contents.expect("a file of the tests is sound").config
    })
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (config, weights) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    match peft::parse(config, weights, base()) {
        Ok(Adapter::Lora(adapter)) => {
            for (name, low) in &adapter.matrices {
                assert!(low.rank > 0 && low.scale.is_finite(), "{name}");
                assert!(low.a.len() % low.rank == 0 && low.b.len() % low.rank == 0, "{name}");
            }
        }
        Ok(Adapter::Virtual(tokens)) => {
            assert!(tokens.tokens() > 0 && tokens.numbers().iter().all(|x| x.is_finite()));
        }
        Ok(Adapter::Scales(factors)) => {
            for (name, factors) in &factors.matrices {
                assert!(factors.values.iter().all(|x| *x >= 0.0), "{name}");
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(['\n', '\r', '\u{1b}']), "one line: {text:?}");
        }
    }
});
