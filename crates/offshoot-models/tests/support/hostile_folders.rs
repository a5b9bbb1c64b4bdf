//! Folders that lie: in the configuration, in headers of safetensors, in the index of several files,
//! in the tokenizer and in what lies beside it.

use serde_json::{Value, json};

use super::folder::{Folder, Sections, Stored, fuse, with_header};
use super::tokenizer_files::{tokenizer_config, tokenizer_json};
use offshoot_models::{PreTokenizer, TokenKind, TokenizerModel, TokenizerSpec};

/// A folder and a part of the error that it must end in.
pub(crate) struct HostileFolder {
    pub(crate) name: &'static str,
    pub(crate) sections: Sections,
    pub(crate) error: &'static str,
}

type Case = (&'static str, Sections, &'static str);

/// A folder of one layer and few weights. `qwen2` has biases and an output head of its own.
pub(crate) fn smallest(qwen2: bool) -> Folder {
    const TOKENS: [&str; 6] = ["<|end|>", "a", "b", "ab", "c", "<t>"];
    let (hidden, heads, kv_heads, head_dim, inner) = (8, 2, 1, 4, 16);
    let family = if qwen2 { "qwen2" } else { "llama" };
    let mut folder = Folder {
        config: json!({
            "architectures": [if qwen2 { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": family, "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "vocab_size": TOKENS.len(),
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": !qwen2, "eos_token_id": 0,
        }),
        tensors: Default::default(),
        files: Default::default(),
    };
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let layer = |part: &str| format!("model.layers.0.{part}");
    folder.half("model.embed_tokens.weight", &[TOKENS.len(), hidden]);
    folder.half("model.norm.weight", &[hidden]);
    for (part, rows, cols) in [
        ("self_attn.q_proj", q, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, q),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    ] {
        folder.half(&layer(&format!("{part}.weight")), &[rows, cols]);
        if qwen2 && ["q_proj", "k_proj", "v_proj"].iter().any(|qkv| part.ends_with(qkv)) {
            folder.half(&layer(&format!("{part}.bias")), &[rows]);
        }
    }
    folder.half(&layer("input_layernorm.weight"), &[hidden]);
    folder.half(&layer("post_attention_layernorm.weight"), &[hidden]);
    if qwen2 {
        folder.half("lm_head.weight", &[TOKENS.len(), hidden]);
    }
    let kinds = [3, 1, 1, 1, 1, 4].map(|kind| match kind {
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        _ => TokenKind::Normal,
    });
    let spec = TokenizerSpec {
        tokens: TOKENS.map(str::to_owned).to_vec(),
        kinds: kinds.to_vec(),
        model: TokenizerModel::ByteLevel {
            merges: vec![("a".to_owned(), "b".to_owned())],
            pre: if qwen2 { PreTokenizer::Qwen2 } else { PreTokenizer::SmolLm },
        },
        matching: Vec::new(),
        bos: None,
        eos: Some(0),
        pad: None,
        unk: None,
        add_bos: false,
        add_eos: false,
        end_of_turn: Vec::new(),
    };
    folder.put("tokenizer.json", &tokenizer_json(&spec));
    let mut config = tokenizer_config(&spec);
    config["chat_template"] = "{{ messages }}".into();
    folder.put("tokenizer_config.json", &config);
    folder.put("generation_config.json", &json!({ "eos_token_id": [0] }));
    folder
}

/// The same with 3 experts, of which a row goes through 2; `fused` keeps them in one tensor for gates
/// and ups and one for downs.
pub(crate) fn of_experts(fused: bool) -> Folder {
    const EXPERTS: usize = 3;
    let (hidden, inner, head_dim) = (8, 4, 4);
    let mut folder = smallest(false);
    let fields = [
        ("architectures", json!(["Qwen3MoeForCausalLM"])),
        ("model_type", "qwen3_moe".into()),
        ("num_experts", EXPERTS.into()),
        ("num_experts_per_tok", 2.into()),
        ("moe_intermediate_size", inner.into()),
    ];
    fields.into_iter().for_each(|(name, value)| folder.set(name, value));
    folder.tensors.retain(|name, _| !name.contains(".mlp."));
    let layer = |part: &str| format!("model.layers.0.{part}");
    folder.half(&layer("self_attn.q_norm.weight"), &[head_dim]);
    folder.half(&layer("self_attn.k_norm.weight"), &[head_dim]);
    folder.half(&layer("mlp.gate.weight"), &[EXPERTS, hidden]);
    if fused {
        folder.half(&layer("mlp.experts.gate_up_proj"), &[EXPERTS, 2 * inner, hidden]);
        folder.half(&layer("mlp.experts.down_proj"), &[EXPERTS, hidden, inner]);
        return folder;
    }
    for expert in 0..EXPERTS {
        for (part, rows, cols) in
            [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)]
        {
            let name = layer(&format!("mlp.experts.{expert}.{part}_proj.weight"));
            folder.half(&name, &[rows, cols]);
        }
    }
    folder
}

/// The families whose folders have what Llama's have not, or have it otherwise.
pub(crate) const FAMILIES: [&str; 4] = ["gemma3", "mistral", "phi3", "qwen3"];

/// The same of one of [`FAMILIES`].
pub(crate) fn of_family(family: &str) -> Folder {
    let (hidden, head_dim) = (8, 4);
    let mut folder = smallest(false);
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let (class, fields) = match family {
        "gemma3" => (
            "Gemma3ForCausalLM",
            vec![
                ("hidden_act", Value::Null),
                ("hidden_activation", "gelu_pytorch_tanh".into()),
                ("query_pre_attn_scalar", head_dim.into()),
                ("rope_local_base_freq", 10_000.0.into()),
                ("sliding_window", 3.into()),
                ("layer_types", json!(["sliding_attention"])),
                ("head_dim", head_dim.into()),
            ],
        ),
        "mistral" => ("MistralForCausalLM", vec![("sliding_window", 3.into())]),
        "phi3" => (
            "Phi3ForCausalLM",
            vec![
                ("sliding_window", 3.into()),
                ("original_max_position_embeddings", 32.into()),
                (
                    "rope_scaling",
                    json!({ "type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0] }),
                ),
            ],
        ),
        _ => ("Qwen3ForCausalLM", vec![("head_dim", head_dim.into())]),
    };
    folder.set("architectures", json!([class]));
    folder.set("model_type", if family == "gemma3" { "gemma3_text" } else { family });
    fields.into_iter().for_each(|(name, value)| folder.set(name, value));
    if ["gemma3", "qwen3"].contains(&family) {
        folder.half(&layer("self_attn.q_norm"), &[head_dim]);
        folder.half(&layer("self_attn.k_norm"), &[head_dim]);
    }
    match family {
        "gemma3" => ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
            .iter()
            .for_each(|part| folder.half(&layer(part), &[hidden])),
        "phi3" => fuse(&mut folder.tensors),
        _ => {}
    }
    folder
}

/// A folder with a tokenizer of pieces.
pub(crate) fn smallest_of_pieces() -> Folder {
    let mut folder = smallest(false);
    let added = |id: u32, content: &str, special: bool| json!({ "id": id, "content": content, "special": special, "rstrip": special, "normalized": !special });
    let space = "\u{2581}";
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let json = json!({
        "added_tokens": [added(0, "<s>", true), added(5, "ba", false)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": space }, replace(" ", space),
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            replace(space, " "), { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<s>",
            "vocab": { "<s>": 0, space: 1, "a": 2, "\u{2581}a": 3, "<0x0A>": 4, "ba": 5 },
            "merges": [[space, "a"]],
        },
    });
    folder.put("tokenizer.json", &json);
    folder
}

/// The sound folders: of several families, in one file and in two, and one with pieces.
pub(crate) fn sound() -> Vec<(&'static str, Sections)> {
    let (llama, qwen2) = (smallest(false), smallest(true));
    vec![
        ("sound-gemma3", of_family("gemma3").sections()),
        ("sound-mistral", of_family("mistral").sections()),
        ("sound-phi3", of_family("phi3").sections()),
        (
            "sound-gemma3-vision",
            of_family("gemma3").beside_vision("model.language_model.", "model.").sections(),
        ),
        ("sound-qwen3", of_family("qwen3").sections()),
        ("sound-pieces", smallest_of_pieces().sections()),
        ("sound-llama", llama.sections()),
        ("sound-qwen2", qwen2.sections()),
        ("sound-llama-shards", llama.sections_of_shards(2)),
        ("sound-qwen2-shards", qwen2.sections_of_shards(3)),
        ("sound-experts", of_experts(false).sections()),
        ("sound-experts-fused", of_experts(true).sections()),
    ]
}

/// All hostile folders; `repeats` is how often deep texts repeat what they repeat.
pub(crate) fn all(repeats: usize) -> Vec<HostileFolder> {
    let deep = "[".repeat(repeats);
    let cases = [
        configs(&deep),
        architectures(),
        families(),
        ropes(),
        headers(&deep),
        places(),
        weights(),
        indices(&deep),
        tokenizers(&deep),
        rest(&deep),
    ];
    let cases = cases.into_iter().flatten();
    cases.map(|(name, sections, error)| HostileFolder { name, sections, error }).collect()
}

/// The smallest folder after `change`.
fn changed(change: impl FnOnce(&mut Folder)) -> Sections {
    let mut folder = smallest(false);
    change(&mut folder);
    folder.sections()
}

/// With another field of `config.json`.
fn set(name: &str, value: impl Into<Value>) -> Sections {
    changed(|folder| folder.set(name, value))
}

/// With a `config.json` of this text.
fn config(text: &str) -> Sections {
    Sections { config: text.as_bytes().to_vec(), ..smallest(false).sections() }
}

fn configs(deep: &str) -> Vec<Case> {
    let sound = smallest(false).config.to_string();
    let with = |name: &str, text: &str| {
        let field = format!("\"{name}\":");
        let start = sound.find(&field).expect("a field of the file") + field.len();
        let end = start + sound[start..].find([',', '}']).expect("its end");
        config(&format!("{}{text}{}", &sound[..start], &sound[end..]))
    };
    vec![
        ("config-empty", config(""), "config.json: EOF while parsing"),
        ("config-cut", config(&sound[..40]), "config.json: EOF while parsing"),
        ("config-list", config("[]"), "config.json: expected a JSON object"),
        ("config-deep", config(deep), "config.json: recursion limit exceeded"),
        ("config-bytes", config("\u{0}\n\u{1b}"), "config.json: expected value"),
        ("config-long", config(&" ".repeat((1 << 20) + 1)), "config.json: more than 1048576 bytes"),
        ("hidden-null", set("hidden_size", Value::Null), "config.json: hidden_size: missing"),
        ("hidden-0", set("hidden_size", 0), "config.json: hidden_size is 0, expected 1 to"),
        ("hidden-negative", set("hidden_size", -8), r#"hidden_size: "-8", expected a whole"#),
        ("hidden-half", set("hidden_size", 8.5), r#"hidden_size: "8.5", expected a whole"#),
        ("hidden-text", set("hidden_size", "8\n"), "config.json: hidden_size: "),
        ("hidden-2-64", with("hidden_size", "18446744073709551616"), "config.json: hidden_size: "),
        ("hidden-1e400", with("hidden_size", "1e400"), "config.json: number out of range"),
        ("hidden-2-63", with("hidden_size", "9223372036854775808"), "hidden_size is 92233720368"),
        ("hidden-odd", set("hidden_size", 9), "hidden_size: 9 is no multiple of num_attention_hea"),
        ("heads-0", set("num_attention_heads", 0), "hidden_size: 8 is no multiple of"),
        ("kv-heads-3", set("num_key_value_heads", 3), "num_attention_heads 2 is no multiple of"),
        ("head-dim-odd", set("head_dim", 3), "config.json: head_dim 3 is odd"),
        ("head-dim-big", set("head_dim", 1u64 << 40), "config.json: head_dim is 1099511627776"),
        ("layers-2-40", set("num_hidden_layers", 1u64 << 40), "num_hidden_layers is 109951162777"),
        ("layers-4096", set("num_hidden_layers", 4096), r#"tensor "model.layers.1.self_attn.q_pr"#),
        ("vocab-0", set("vocab_size", 0), "config.json: vocab_size is 0"),
        ("context-0", set("max_position_embeddings", 0), "max_position_embeddings is 0"),
        ("context-missing", set("max_position_embeddings", Value::Null), "embeddings: missing"),
        ("eps-0", set("rms_norm_eps", 0.0), "config.json: rms_norm_eps is 0"),
        ("eps-text", set("rms_norm_eps", "1e-5"), "config.json: rms_norm_eps: "),
        ("eps-missing", set("rms_norm_eps", Value::Null), "config.json: rms_norm_eps: missing"),
        ("tied-text", set("tie_word_embeddings", "yes"), "tie_word_embeddings: "),
        (
            "eos-6",
            set("eos_token_id", 6),
            r#"config.json: eos_token_id: "6", expected ids below 6"#,
        ),
        ("eos-list", set("eos_token_id", json!([0, -1])), r#"eos_token_id: "-1", expected ids"#),
        ("eos-deep", set("eos_token_id", json!([[0]])), r#"eos_token_id: "[0]", expected ids"#),
        ("bos-2-40", set("bos_token_id", 1u64 << 40), "bos_token_id: 1099511627776, but the voca"),
        ("pad-text", set("pad_token_id", "<pad>"), "config.json: pad_token_id: "),
    ]
}

/// Absurd numbers in the fields of one family alone, and its tensors amiss.
fn families() -> Vec<Case> {
    let set = |family: &str, name: &str, value: Value| {
        let mut folder = of_family(family);
        folder.set(name, value);
        folder.sections()
    };
    let without = |family: &str, part: &str| {
        let mut folder = of_family(family);
        folder.tensors.remove(&format!("model.layers.0.{part}.weight"));
        folder.sections()
    };
    let vision = json!(["Gemma3ForConditionalGeneration"]);
    let beside_vision = |field: &[&str], value: Value| {
        let mut folder = of_family("gemma3").beside_vision("language_model.model.", "");
        *field.iter().fold(&mut folder.config, |inner, name| &mut inner[*name]) = value;
        folder.sections()
    };
    let long = |short: Value, long: Value| json!({ "type": "longrope", "short_factor": short, "long_factor": long });
    let many: Vec<f32> = vec![1.0; 1_000_000];
    let window = "sliding_window: ";
    let few = "short_factor: 0 of them, expected 2";
    vec![
        ("gemma3-window-0", set("gemma3", "sliding_window", 0.into()), window),
        ("gemma3-window-2-64", set("gemma3", "sliding_window", json!(1.8e19)), window),
        ("gemma3-window-less", set("gemma3", "sliding_window", (-1).into()), window),
        ("gemma3-pattern-0", set("gemma3", "sliding_window_pattern", 0.into()), "0, expected 1"),
        ("gemma3-local-below-1", set("gemma3", "rope_local_base_freq", 0.5.into()), "is below 1"),
        ("gemma3-local-less", set("gemma3", "rope_local_base_freq", (-1.0).into()), "rope_local_b"),
        ("gemma3-scalar-0", set("gemma3", "query_pre_attn_scalar", 0.into()), "query_pre_attn_sc"),
        ("gemma3-cap-less", set("gemma3", "final_logit_softcapping", json!(-1.0)), "final_logit_s"),
        ("gemma3-cap-0", set("gemma3", "final_logit_softcapping", json!(1e-300)), "final_logit_s"),
        ("gemma3-cap-2-128", set("gemma3", "final_logit_softcapping", json!(1e39)), "final_logit_"),
        ("gemma3-no-q-norm", without("gemma3", "self_attn.q_norm"), "q_norm.weight\": missing"),
        (
            "gemma3-no-norm",
            without("gemma3", "post_feedforward_layernorm"),
            "post_feedforward_layernorm.weight\": missing",
        ),
        ("mistral-window-0", set("mistral", "sliding_window", 0.into()), window),
        ("mistral-window-text", set("mistral", "sliding_window", "4096".into()), window),
        ("phi3-factors-none", set("phi3", "rope_scaling", long(json!([]), json!([]))), few),
        (
            "phi3-factors-many",
            set("phi3", "rope_scaling", long(json!(many), json!(many))),
            "more than",
        ),
        (
            "phi3-factors-less",
            set("phi3", "rope_scaling", long(json!([1.0, -1.0]), json!([1.0, 2.0]))),
            "short_factor",
        ),
        (
            "phi3-factors-text",
            set("phi3", "rope_scaling", long(json!([1.0, "NaN"]), json!([1.0, 2.0]))),
            "short_factor",
        ),
        ("phi3-trained-1", set("phi3", "original_max_position_embeddings", 1.into()), "magnitude"),
        ("phi3-trained-0", set("phi3", "original_max_position_embeddings", 0.into()), "original_"),
        ("phi3-partial", set("phi3", "partial_rotary_factor", 0.75.into()), "partial_rotary_fact"),
        ("phi3-partial-0", set("phi3", "partial_rotary_factor", json!(1e-300)), "partial_rotary_f"),
        ("phi3-partial-less", set("phi3", "partial_rotary_factor", json!(-0.5)), "partial_rotary_"),
        ("phi3-partial-big", set("phi3", "partial_rotary_factor", json!(1e300)), "partial_rotary_"),
        ("gemma3-vision-bare", set("gemma3", "architectures", vision), "architectures: "),
        ("gemma3-vision-list", beside_vision(&["text_config"], json!([])), "architectures: "),
        (
            "gemma3-vision-0",
            beside_vision(&["text_config", "hidden_size"], 0.into()),
            "hidden_size",
        ),
        ("phi3-no-qkv", without("phi3", "self_attn.qkv_proj"), "q_proj.weight\": missing"),
        ("qwen3-no-k-norm", without("qwen3", "self_attn.k_norm"), "k_norm.weight\": missing"),
        ("qwen3-head-odd", set("qwen3", "head_dim", 3.into()), "head_dim 3 is odd"),
    ]
}

fn architectures() -> Vec<Case> {
    let classes = |value: Value| set("architectures", value);
    let nameless = changed(|folder| {
        folder.set("architectures", Value::Null);
        folder.set("model_type", Value::Null);
    });
    let experts = "mixtures of experts are not supported";
    let of = |fused, change: fn(&mut Folder)| {
        let mut folder = of_experts(fused);
        change(&mut folder);
        folder.sections()
    };
    let moe = |fields: &[(&str, Value)]| {
        changed(|folder| {
            folder.set("architectures", json!(["Qwen3MoeForCausalLM"]));
            folder.set("model_type", "qwen3_moe");
            fields.iter().for_each(|(name, value)| folder.set(name, value.clone()));
        })
    };
    vec![
        ("arch-none", nameless, "config.json: architectures: missing"),
        (
            "arch-mixtral",
            classes(json!(["MixtralForCausalLM"])),
            r#"architectures: "MixtralForCaus"#,
        ),
        ("arch-classifier", classes(json!(["LlamaForSequenceClassification"])), "is not supported"),
        (
            "arch-two",
            classes(json!(["LlamaForCausalLM", "B"])),
            "architectures: expected a list of",
        ),
        ("arch-number", classes(json!([7])), "architectures: expected a list of one name"),
        ("arch-text", classes("LlamaForCausalLM".into()), "architectures: "),
        ("arch-escape", classes(json!(["\u{1b}[2J\n"])), "architectures: "),
        (
            "type-other",
            set("model_type", "qwen2"),
            r#"model_type: "qwen2", expected that of Llama"#,
        ),
        ("type-unknown", set("model_type", "gemma3"), r#"model_type: "gemma3" is not supported"#),
        ("quantised", set("quantization_config", json!({"bits": 4})), "quantised weights are not"),
        ("mlx", set("quantization", json!({"group_size": 64})), "quantization: quantised weights"),
        ("window", set("use_sliding_window", true), "use_sliding_window: attention within a"),
        (
            "layer-types",
            set("layer_types", json!(["sliding_attention"])),
            r#"layer_types: layer 0 is "sliding_attention", expected "full_attention""#,
        ),
        (
            "layer-types-two",
            set("layer_types", json!(["full_attention", "full_attention"])),
            "layer_types: 2 of",
        ),
        (
            "layer-types-other",
            set("layer_types", json!(["chunked_attention"])),
            "is not supported, only full_attention and sliding_attention",
        ),
        ("window-0", set("sliding_window", 0), "sliding_window: 0, expected 1 or more"),
        ("window-text", set("sliding_window", "all"), "sliding_window: "),
        ("experts", set("num_local_experts", 8), experts),
        ("experts-0", moe(&[("num_experts", 0.into())]), "num_experts is 0, expected 1 to 4096"),
        (
            "experts-2-40",
            moe(&[("num_experts", (1u64 << 40).into())]),
            "num_experts is 1099511627776, expected 1 to 4096",
        ),
        (
            "experts-all-layers",
            moe(&[("num_experts", 4096.into()), ("num_hidden_layers", 4096.into())]),
            "num_experts is 4096, of all layers 16777216, expected at most 65536",
        ),
        (
            "experts-two",
            moe(&[("num_experts", 8.into()), ("num_local_experts", 9.into())]),
            "num_local_experts: 9, but num_experts is 8",
        ),
        (
            "experts-top-5",
            moe(&[("num_experts", 4.into()), ("num_experts_per_tok", 5.into())]),
            "num_experts_per_tok is 5, expected 1 to 4",
        ),
        (
            "experts-step-0",
            moe(&[("decoder_sparse_step", 0.into())]),
            "decoder_sparse_step: 0, expected 1 or more",
        ),
        (
            "experts-layer",
            moe(&[("mlp_only_layers", json!([1]))]),
            r#"mlp_only_layers: "1", expected layers below 1"#,
        ),
        (
            "experts-layer-negative",
            moe(&[("mlp_only_layers", json!([-1]))]),
            r#"mlp_only_layers: "-1", expected layers below 1"#,
        ),
        (
            "experts-width-0",
            moe(&[("moe_intermediate_size", 0.into())]),
            "moe_intermediate_size is 0, expected 1 to 16777216",
        ),
        ("experts-norm", moe(&[("norm_topk_prob", "yes".into())]), "norm_topk_prob: "),
        (
            "experts-one-less",
            of(false, |folder| {
                folder.tensors.remove("model.layers.0.mlp.experts.2.up_proj.weight");
            }),
            r#""model.layers.0.mlp.experts.2.up_proj.weight": missing, expected shape [4, 8]"#,
        ),
        (
            "experts-one-more",
            of(false, |folder| {
                folder.half("model.layers.0.mlp.experts.3.up_proj.weight", &[4, 8]);
            }),
            r#""model.layers.0.mlp.experts.3.up_proj.weight": not one of a qwen3_moe model"#,
        ),
        (
            "experts-wide",
            of(false, |folder| {
                folder.half("model.layers.0.mlp.experts.1.down_proj.weight", &[8, 5]);
            }),
            "experts.1.down_proj.weight\": shape [8, 5], expected [8, 4]",
        ),
        (
            "experts-router",
            of(true, |folder| folder.half("model.layers.0.mlp.gate.weight", &[4, 8])),
            "mlp.gate.weight\": shape [4, 8], expected [3, 8]",
        ),
        (
            "experts-fused-turned",
            of(true, |folder| {
                folder.half("model.layers.0.mlp.experts.gate_up_proj", &[3, 8, 7]);
            }),
            r#""model.layers.0.mlp.experts.0.gate_proj.weight": missing, expected shape [4, 8]"#,
        ),
        (
            "experts-missing",
            moe(&[("num_experts", 4096.into())]),
            r#"tensor "model.layers.0.mlp.gate.weight": missing, expected shape [4096, 8]"#,
        ),
        ("experts-text", set("num_experts", "8"), experts),
        ("gelu", set("hidden_act", "gelu"), r#"hidden_act: "gelu" is not supported"#),
        ("own-code", set("auto_map", json!({"AutoModelForCausalLM": "a.B"})), "code of its own"),
        ("interleaved", set("rope_interleaved", true), "rope_interleaved: interleaved rotary"),
        ("encoder", set("is_encoder_decoder", true), "is_encoder_decoder: models with an encoder"),
    ]
}

fn ropes() -> Vec<Case> {
    let scaling = |value: Value| set("rope_scaling", value);
    let llama3 = |change: fn(&mut Value)| {
        let mut rule = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        change(&mut rule);
        scaling(rule)
    };
    let both = changed(|folder| {
        folder.set("rope_scaling", json!({"type": "linear", "factor": 2.0}));
        folder.set("rope_parameters", json!({"rope_type": "default"}));
    });
    let conflict = json!({"type": "linear", "rope_type": "llama3", "factor": 2.0});
    let nested = json!({"full_attention": {"rope_type": "default"}});
    vec![
        ("theta-0", set("rope_theta", 0), "config.json: rope_theta is 0"),
        ("theta-big", set("rope_theta", 1e300), "config.json: rope_theta is inf"),
        ("theta-list", set("rope_theta", json!([1e4])), "config.json: rope_theta: "),
        (
            "yarn",
            scaling(json!({"type": "yarn", "factor": 0.0})),
            "factor: 0, expected a number above 0",
        ),
        (
            "yarn-mscale",
            scaling(json!({
                "type": "yarn", "factor": 4.0, "mscale": -1e9, "mscale_all_dim": 1.0,
            })),
            "mscale: -",
        ),
        ("ntk", scaling(json!({"type": "ntk", "factor": 4.0})), r#"rope_scaling.type: "ntk" is"#),
        (
            "dynamic",
            scaling(json!({"rope_type": "dynamic"})),
            r#"rope_scaling.rope_type: "dynamic""#,
        ),
        ("rope-list", scaling(json!([1])), "config.json: rope_scaling: "),
        (
            "rope-unknown",
            scaling(json!({"mrope_section": [8]})),
            "mrope_section\": is not supported",
        ),
        ("rope-nested", set("rope_parameters", nested), "full_attention\": is not supported"),
        ("rope-both", both, "rope_scaling: given beside rope_parameters"),
        ("rope-types", scaling(conflict), r#"rope_scaling.type: "linear", but rope_type is"#),
        ("rope-typeless", scaling(json!({"factor": 2.0})), "rope_scaling.rope_type: missing"),
        ("linear-bare", scaling(json!({"type": "linear"})), "rope_scaling.factor: missing"),
        ("linear-0", scaling(json!({"type": "linear", "factor": 0})), "rope scaling factor is 0"),
        ("partial", set("partial_rotary_factor", 0.5), "partial_rotary_factor: 0.5 is not"),
        ("llama3-bare", llama3(|r| r["factor"] = Value::Null), "rope_scaling.factor: missing"),
        ("llama3-0", llama3(|r| r["low_freq_factor"] = 0.into()), "low_freq_factor: 0, expected"),
        ("llama3-big", llama3(|r| r["factor"] = 1e300.into()), "factor: inf, expected a number"),
        ("llama3-equal", llama3(|r| r["high_freq_factor"] = 1.into()), "more than low_freq_factor"),
        (
            "llama3-context",
            llama3(|r| r["original_max_position_embeddings"] = Value::Null),
            "original_max_position_embeddings: missing",
        ),
    ]
}

/// With weights of these bytes.
fn file(bytes: Vec<u8>) -> Sections {
    let weights = vec![("model.safetensors".to_owned(), bytes)];
    Sections { weights, ..smallest(false).sections() }
}

/// A file with this header and 64 bytes of data.
fn header(text: &str) -> Sections {
    file(with_header(text, &[0; 64]))
}

fn headers(deep: &str) -> Vec<Case> {
    let length = |n: u64| file([n.to_le_bytes().as_slice(), b"{}", &[0; 64]].concat());
    let long = with_header(&" ".repeat((16 << 20) + 1), &[0; 64]);
    let mut not_utf8 = with_header(r#"{"aa":1}"#, &[0; 64]);
    not_utf8[10] = 0xff;
    let deep = format!("{{\"a\":{{\"b\":{deep}");
    let same = r#"{"dtype":"F16","shape":[16],"data_offsets":[0,32]}"#;
    vec![
        ("weights-empty", file(Vec::new()), "model.safetensors: 0 bytes, expected a header"),
        ("weights-short", file(vec![0; 7]), "model.safetensors: 7 bytes, expected a header"),
        ("header-max", length(u64::MAX), "header: 18446744073709551615 bytes long, expected at"),
        ("header-2-40", length(1 << 40), "header: 1099511627776 bytes long, expected at most 66"),
        ("header-past-end", length(67), "header: 67 bytes long, expected at most 66"),
        ("header-0", length(0), r#"header: begins with "", expected {"#),
        ("header-long", file(long), "header: 16777217 bytes long, expected at most 16777216"),
        ("header-list", header("[]"), r#"model.safetensors: header: begins with "[]", expected {"#),
        ("header-cut", header(r#"{"a":{"#), "model.safetensors: EOF while parsing"),
        ("header-not-utf8", file(not_utf8), "model.safetensors: header: not UTF-8 from byte 2"),
        ("metadata-list", header(r#"{"__metadata__":[]}"#), "model.safetensors: invalid type: seq"),
        ("header-deep", header(&deep), "model.safetensors: EOF while parsing a list"),
        ("header-number", header(r#"{"a":1}"#), "model.safetensors: invalid type: integer"),
        ("header-bare", header(r#"{"a":{}}"#), "model.safetensors: missing field `dtype`"),
        ("tensor-twice", header(&format!(r#"{{"a":{same},"a":{same}}}"#)), r#""a": given twice"#),
        ("header-empty", header("{}"), "the tensors end at byte 0, the data at byte 64"),
    ]
}

fn places() -> Vec<Case> {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        header(&format!(
            r#"{{"a\n":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#
        ))
    };
    let two = |first: &str, second: &str| {
        let place =
            |offsets: &str| format!(r#"{{"dtype":"F16","shape":[16],"data_offsets":{offsets}}}"#);
        header(&format!(r#"{{"a":{},"b":{}}}"#, place(first), place(second)))
    };
    vec![
        ("dtype-f64", one("F64", "[8]", "[0,64]"), r#"dtype "F64" is not read, only F32, F16 and"#),
        ("dtype-fp8", one("F8_E4M3", "[64]", "[0,64]"), r#"tensor "a\n": dtype "F8_E4M3" is not"#),
        ("dtype-escape", one("\\u001b", "[64]", "[0,64]"), "is not read, only"),
        ("shape-empty", one("F32", "[]", "[0,4]"), "0 axes, expected 1 to 4"),
        ("shape-5", one("F32", "[1,1,1,1,16]", "[0,64]"), "5 axes, expected 1 to 4"),
        ("shape-0", one("F32", "[16,0]", "[0,0]"), "shape [16, 0] has no or too many weights"),
        ("shape-wraps", one("F16", "[4294967296,4294967296]", "[0,0]"), "no or too many weights"),
        ("shape-2-61", one("F32", "[2305843009213693952]", "[0,64]"), "no or too many weights"),
        ("shape-negative", one("F32", "[-16]", "[0,64]"), "model.safetensors: invalid value: int"),
        ("shape-half", one("F32", "[1.5]", "[0,64]"), "model.safetensors: invalid type: floating"),
        ("offsets-three", one("F32", "[16]", "[0,64,1]"), "model.safetensors: "),
        ("offsets-reversed", one("F32", "[16]", "[64,0]"), "bytes 64 to 0, but the file has 64 of"),
        ("offsets-past-end", one("F32", "[17]", "[0,68]"), "bytes 0 to 68, but the file has 64"),
        (
            "offsets-max",
            one("F32", "[16]", "[18446744073709551615,18446744073709551615]"),
            "bytes 18446744073709551615 to 18446744073709551615",
        ),
        ("size-small", one("F32", "[16]", "[0,60]"), "60 bytes, but shape [16] of F32 takes 64"),
        ("size-large", one("BF16", "[16]", "[0,64]"), "64 bytes, but shape [16] of BF16 takes 32"),
        ("overlap", two("[0,32]", "[16,48]"), r#"tensor "b": begins at byte 16, expected 32"#),
        ("same-place", two("[0,32]", "[0,32]"), r#"tensor "b": begins at byte 0, expected 32"#),
        ("hole", two("[0,32]", "[33,65]"), r#"tensor "b": bytes 33 to 65, but the file has 64"#),
        ("hole-first", two("[1,33]", "[33,65]"), r#"tensor "b": bytes 33 to 65, but the file"#),
        ("hole-before", two("[8,40]", "[16,48]"), r#"tensor "a": begins at byte 8, expected 0"#),
        ("bytes-behind", one("F16", "[16]", "[0,32]"), "the tensors end at byte 32, the data at"),
    ]
}

fn weights() -> Vec<Case> {
    let up = "model.layers.0.mlp.up_proj.weight";
    let removed = changed(|folder| drop(folder.tensors.remove(up)));
    let flipped = changed(|folder| {
        if let Some(tensor) = folder.tensors.get_mut(up) {
            tensor.shape.reverse();
        }
    });
    let further = |name: &'static str| changed(move |folder| folder.half(name, &[8]));
    let mut cut = smallest(false).weights();
    cut.pop();
    let behind = [smallest(false).weights(), vec![0]].concat();
    let no_bias = {
        let mut folder = smallest(true);
        folder.tensors.remove("model.layers.0.self_attn.k_proj.bias");
        folder.sections()
    };
    vec![
        ("weights-cut", file(cut), "model.safetensors: tensor \"model.norm.weight\": bytes "),
        ("weights-behind", file(behind), "model.safetensors: the tensors end at byte "),
        ("tensor-missing", removed, r#"model.safetensors: tensor "model.layers.0.mlp.up_proj.wei"#),
        ("tensor-flipped", flipped, "up_proj.weight\": shape [8, 16], expected [16, 8]"),
        ("bias-missing", no_bias, "k_proj.bias\": missing, expected shape [4]"),
        (
            "norm-of-q",
            further("model.layers.0.self_attn.q_norm.weight"),
            "not one of a llama model",
        ),
        (
            "layer-more",
            further("model.layers.1.input_layernorm.weight"),
            "not one of a llama model",
        ),
        ("no-prefix", further("norm.weight"), r#"tensor "norm.weight": not one of a llama model"#),
        ("name-escape", further("\u{1b}[2J\n"), "not one of a llama model"),
        ("untied", set("tie_word_embeddings", false), r#"tensor "lm_head.weight": missing, expec"#),
        ("biases", set("attention_bias", true), "q_proj.bias\": missing"),
        ("biases-mlp", set("mlp_bias", true), "gate_proj.bias\": missing"),
        ("vocab-7", set("vocab_size", 7), "embed_tokens.weight\": shape [6, 8], expected [7, 8]"),
    ]
}

fn indices(deep: &str) -> Vec<Case> {
    const INDEX: &str = "model.safetensors.index.json: ";
    let sound = || smallest(false).sections_of_shards(2);
    let index = |text: String| Sections { index: Some(text.into_bytes()), ..sound() };
    let one = |name: &str| index(json!({ "weight_map": { "a": name } }).to_string());
    let map = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut value = smallest(false).shards(2).1;
        change(value["weight_map"].as_object_mut().expect("a map"));
        index(value.to_string())
    };
    let many: serde_json::Map<_, _> =
        (0..1025).map(|i| (i.to_string(), format!("{i}.safetensors").into())).collect();
    let both = {
        let mut sections = sound();
        let tensor = smallest(false).tensors.remove("model.norm.weight").expect("a norm");
        let norm = [("model.norm.weight", &tensor)];
        let first = super::folder::safetensors(norm.into_iter());
        sections.weights.insert(0, ("a.safetensors".to_owned(), first));
        sections
    };
    let (norm, two) = ("model.norm.weight", "model-00002-of-00002.safetensors");
    let elsewhere = "is no name of a .safetensors file beside the index";
    vec![
        ("index-empty", index("{}".into()), "index.json: missing field `weight_map`"),
        ("index-cut", index("{\"weight_map\": {".into()), "index.json: EOF while parsing"),
        ("index-deep", index(deep.to_owned()), INDEX),
        ("index-no-files", index(r#"{"weight_map": {}}"#.into()), "0 files, expected 1 to 1024"),
        ("index-many", index(json!({ "weight_map": many }).to_string()), "1025 files, expected 1"),
        ("index-number", index(r#"{"weight_map": {"a": 1}}"#.into()), "index.json: invalid type"),
        (
            "index-twice",
            index(r#"{"weight_map": {"a": "a.safetensors", "a": "a.safetensors"}}"#.into()),
            r#"weight_map: tensor "a" is given twice"#,
        ),
        ("shard-absolute", one("/etc/a.safetensors"), elsewhere),
        ("shard-upwards", one("../a.safetensors"), elsewhere),
        ("shard-in-a-folder", one("a/b.safetensors"), elsewhere),
        ("shard-windows", one("C:\\a.safetensors"), elsewhere),
        ("shard-hidden", one(".safetensors"), elsewhere),
        ("shard-new-line", one("a\n.safetensors"), elsewhere),
        ("shard-nul", one("a\0.safetensors"), elsewhere),
        ("shard-other-kind", one("pytorch_model.bin"), elsewhere),
        ("shard-nameless", one(""), elsewhere),
        ("shard-long", one(&format!("{}.safetensors", "a".repeat(100))), elsewhere),
        ("shard-swapped", map(&|map| drop(map.insert(norm.into(), swap(map, norm).into()))), norm),
        ("shard-unlisted", map(&|map| drop(map.remove(norm))), "index.json does not list it"),
        ("shard-lacks", map(&|map| drop(map.insert("a".into(), two.into()))), "\"a\": missing, mo"),
        ("shard-twice", both, "index.json places it in model-0000"),
    ]
}

/// The other of the two files.
fn swap(map: &serde_json::Map<String, Value>, tensor: &str) -> &'static str {
    match map[tensor].as_str() {
        Some("model-00001-of-00002.safetensors") => "model-00002-of-00002.safetensors",
        _ => "model-00001-of-00002.safetensors",
    }
}

fn tokenizers(deep: &str) -> Vec<Case> {
    let text = |text: String| Sections {
        tokenizer: Some(text.into_bytes()),
        ..smallest(false).sections()
    };
    let json = |change: fn(&mut Value)| {
        let folder = smallest(false);
        let mut value = serde_json::from_slice(&folder.files["tokenizer.json"]).expect("JSON");
        change(&mut value);
        text(value.to_string())
    };
    let merges = |merges: Value| {
        let folder = smallest(false);
        let mut value: Value =
            serde_json::from_slice(&folder.files["tokenizer.json"]).expect("JSON");
        value["model"]["merges"] = merges;
        text(value.to_string())
    };
    vec![
        ("tokenizer-empty", text(" ".into()), "tokenizer.json: EOF while parsing"),
        ("tokenizer-list", text("[]".into()), "tokenizer.json: "),
        ("tokenizer-deep", text(deep.to_owned()), "tokenizer.json: "),
        ("tokenizer-bare", text("{}".into()), "tokenizer.json: missing field `model`"),
        (
            "token-outside",
            json(|j| j["model"]["vocab"]["z"] = 6.into()),
            r#""z" has id 6, but the"#,
        ),
        ("token-negative", json(|j| j["model"]["vocab"]["z"] = (-1).into()), "tokenizer.json: inv"),
        (
            "token-2-40",
            json(|j| j["model"]["vocab"]["z"] = (1u64 << 40).into()),
            "tokenizer.json: ",
        ),
        ("token-clash", json(|j| j["model"]["vocab"]["z"] = 1.into()), r#"has the id of "#),
        ("added-clash", json(|j| j["added_tokens"][0]["id"] = 1.into()), r#"has the id of "a", 1"#),
        (
            "added-elsewhere",
            json(|j| j["model"]["vocab"]["<t>"] = 1.into()),
            r#"model.vocab: "<t>" has id 1, added_tokens say 5"#,
        ),
        ("added-nameless", json(|j| j["added_tokens"][0] = json!({"id": 0})), "field `content`"),
        ("vocab-text", json(|j| j["model"]["vocab"] = "a".into()), "tokenizer.json: invalid type"),
        ("merge-of-one", merges(json!(["ab"])), r#"merge "ab": expected two tokens"#),
        ("merge-of-three", merges(json!(["a b c"])), r#"merge "a b c": expected two tokens"#),
        ("merge-empty", merges(json!([" "])), r#"merge " ": expected two tokens"#),
        ("merge-single", merges(json!([["a"]])), "a merge of other than two tokens"),
        ("merge-triple", merges(json!([["a", "b", "c"]])), "a merge of other than two tokens"),
        ("merge-number", merges(json!([1])), "expected a merge of two tokens"),
        (
            "steps-many",
            json(|j| {
                let step = json!({ "type": "NFC" });
                j["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![step; 17] });
            }),
            "tokenizer.json: more than 16 entries",
        ),
    ]
}

fn rest(deep: &str) -> Vec<Case> {
    let sound = || smallest(false).sections();
    let names =
        |text: &str| Sections { tokenizer_config: Some(text.as_bytes().to_vec()), ..sound() };
    let ends =
        |text: &str| Sections { generation_config: Some(text.as_bytes().to_vec()), ..sound() };
    let template = Sections { chat_template: Some(b"ab\xff".to_vec()), ..sound() };
    vec![
        ("names-cut", names("{"), "tokenizer_config.json: EOF while parsing"),
        ("names-deep", names(deep), "tokenizer_config.json: "),
        ("names-number", names(r#"{"bos_token": 1}"#), "expected a token's text or an object"),
        ("names-flag", names(r#"{"add_bos_token": "yes"}"#), "tokenizer_config.json: invalid type"),
        ("names-twice", names(r#"{"bos_token":"a","bos_token":"b"}"#), "duplicate field `bos_tok"),
        ("template-number", names(r#"{"chat_template": 1}"#), "chat_template: expected a text or"),
        ("template-not-utf8", template, "chat_template.jinja: not UTF-8 from byte 2 on"),
        ("ends-cut", ends("{"), "generation_config.json: EOF while parsing"),
        ("ends-text", ends(r#"{"eos_token_id": "\n"}"#), "generation_config.json: eos_token_id: "),
    ]
}

impl Folder {
    /// A tensor of half-precision numbers that differ from name to name.
    fn half(&mut self, name: &str, shape: &[usize]) {
        let mut state = name.bytes().fold(17u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let bytes = (0..2 * shape.iter().product::<usize>()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as u8) & 0x3b
        });
        let stored = Stored { dtype: "F16", shape: shape.to_vec(), bytes: bytes.collect() };
        self.tensors.insert(name.to_owned(), stored);
    }
}
