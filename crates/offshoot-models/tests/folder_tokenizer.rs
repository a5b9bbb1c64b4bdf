//! Tokenizers, templates and ends of Hugging Face folders: those of the GGUF file, and those that
//! the `tokenizers` library reads.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod support;

use offshoot_models::gguf::Array;
use offshoot_models::{
    ChatTemplate, Checkpoint, Message, PreTokenizer, RenderOptions, Special, TemplateId, TokenKind,
    Tokenizer, TokenizerId, TokenizerModel, TokenizerSpec,
};
use serde_json::{Value, json};
use support::assert_one_line;
use support::byte_level;
use support::folder::Folder;
use support::tiny::{TOKENS, Tiny};
use support::tokenizer_files::{tokenizer_config, tokenizer_json};

/// GGUF's names of the rules.
const RULES: [(&str, PreTokenizer); 11] = [
    ("gpt-2", PreTokenizer::Gpt2),
    ("smollm", PreTokenizer::SmolLm),
    ("command-r", PreTokenizer::CommandR),
    ("qwen2", PreTokenizer::Qwen2),
    ("llama-bpe", PreTokenizer::Llama3),
    ("tekken", PreTokenizer::Tekken),
    ("gpt-4o", PreTokenizer::Gpt4o),
    ("qwen35", PreTokenizer::Qwen35),
    ("deepseek-llm", PreTokenizer::DeepSeekLlm),
    ("deepseek-coder", PreTokenizer::DeepSeekCoder),
    ("deepseek-v3", PreTokenizer::DeepSeekV3),
];

fn gguf(tiny: &Tiny) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny.bytes()).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// The model of `tiny` with its tokenizer in the folder's files.
fn folder(tiny: &Tiny) -> Folder {
    let checkpoint = gguf(tiny);
    let mut folder = Folder::of(&checkpoint);
    let spec = checkpoint.tokenizer().unwrap();
    folder.put("tokenizer.json", &tokenizer_json(spec));
    let mut config = tokenizer_config(spec);
    config["chat_template"] = checkpoint.chat_template().into();
    folder.put("tokenizer_config.json", &config);
    folder
}

/// `tiny` with another cutting rule and no begin-of-text token before a text.
fn with_rule(mut tiny: Tiny, name: &'static str) -> Tiny {
    tiny.set("tokenizer.ggml.pre", name);
    tiny.set("tokenizer.ggml.add_bos_token", false);
    tiny
}

#[test]
fn a_folder_has_the_tokenizer_template_and_ends_of_the_gguf_file() {
    for (name, pre) in RULES {
        let tiny = with_rule(Tiny::llama(), name);
        let (gguf, folder) = (gguf(&tiny), folder(&tiny).open().unwrap());
        let (ours, theirs) = (folder.tokenizer().unwrap(), gguf.tokenizer().unwrap());
        assert_eq!(ours, theirs);
        assert_eq!(byte_level::pre(ours), pre);
        assert_eq!(TokenizerId::of(ours), TokenizerId::of(theirs));
        assert_eq!(folder.stop_tokens(), gguf.stop_tokens());
        let template = folder.chat_template().unwrap();
        assert_eq!(TemplateId::of(template), TemplateId::of(gguf.chat_template().unwrap()));
        let template = ChatTemplate::new(template, Some("<|im_start|>"), None).unwrap();
        let text = template.render(&[Message::new("user", "ab")], &RenderOptions::default());
        assert_eq!(text.unwrap(), "ab");
    }
}

/// A vocabulary of all bytes, some words, and added tokens of both kinds.
fn rich(pre: PreTokenizer) -> TokenizerSpec {
    let letter = |byte: u8, next: &mut u32| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        *next += u32::from(!printable);
        char::from_u32(if printable { byte.into() } else { *next }).unwrap().to_string()
    };
    let mut next = 255;
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte, &mut next)).collect();
    let merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("12", "3"), ("Ã", "©")];
    tokens.extend(merges.map(|(left, right)| format!("{left}{right}")));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for (text, kind) in [
        ("<|start|>", TokenKind::Control),
        ("<tool>", TokenKind::UserDefined),
        ("<s>", TokenKind::Control),
    ] {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    TokenizerSpec {
        tokens,
        kinds,
        model: TokenizerModel::ByteLevel {
            merges: merges.map(|(left, right)| (left.to_owned(), right.to_owned())).to_vec(),
            pre,
        },
        matching: Vec::new(),
        bos: None,
        eos: Some(262),
        pad: None,
        unk: None,
        add_bos: false,
        add_eos: false,
        end_of_turn: Vec::new(),
    }
}

/// A folder with this tokenizer, its embedding as large as that needs.
fn folder_of(spec: &TokenizerSpec, json: &Value) -> Folder {
    let mut folder = folder(&Tiny::smallest("llama"));
    let embedding = folder.tensors.get_mut("model.embed_tokens.weight").unwrap();
    let row = embedding.bytes.len() / embedding.shape[0];
    embedding.shape[0] = spec.tokens.len();
    embedding.bytes.resize(spec.tokens.len() * row, 0);
    folder.set("vocab_size", spec.tokens.len());
    folder.put("tokenizer.json", json);
    folder.put("tokenizer_config.json", &tokenizer_config(spec));
    folder
}

#[test]
fn the_library_reads_the_same_files_to_the_same_ids_and_writes_them_back() {
    let text = "the 12345 <tool> é\u{301} e\u{301} The\n\n  <|start|>don't 'LL \u{3000}12 the<s>";
    for (_, pre) in RULES {
        let spec = rich(pre);
        let json = tokenizer_json(&spec);
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        let read = folder_of(&spec, &json).open().unwrap();
        assert_eq!(read.tokenizer().unwrap(), &spec);
        let ours = Tokenizer::new(read.tokenizer().unwrap()).unwrap();
        let theirs = library.encode(text, false).unwrap();
        assert_eq!(ours.encode(text, Special::Parse).unwrap(), theirs.get_ids(), "{pre:?}");
        // The library writes merges as pairs.
        let written: Value = serde_json::from_str(&library.to_string(false).unwrap()).unwrap();
        assert!(written["model"]["merges"][0].is_array());
        assert_eq!(folder_of(&spec, &written).open().unwrap().tokenizer().unwrap(), &spec);
    }
}

/// What becomes of the tiny tokenizer after changes of its two files.
fn changed(change: impl FnOnce(&mut Value, &mut Value)) -> Checkpoint {
    let mut folder = folder(&Tiny::smallest("llama"));
    let read = |name: &str| serde_json::from_slice(&folder.files[name]).unwrap();
    let (mut json, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    change(&mut json, &mut config);
    folder.put("tokenizer.json", &json);
    folder.put("tokenizer_config.json", &config);
    folder.open().unwrap()
}

#[test]
fn a_begin_of_text_token_is_put_where_template_or_configuration_say_so() {
    let template = |first: &str, last: &str| {
        let token = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let single =
            [token(first), json!({ "Sequence": { "id": "A", "type_id": 0 } }), token(last)];
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {} })
    };
    let flags = |post: Value, config: Value| {
        let checkpoint = changed(|json, names| {
            json["post_processor"] = post;
            names["add_bos_token"] = config;
        });
        let spec = checkpoint.tokenizer().unwrap();
        (spec.add_bos, spec.add_eos)
    };
    let both = template("<|im_start|>", "<|im_end|>");
    assert_eq!(flags(both.clone(), Value::Null), (true, true));
    assert_eq!(flags(both.clone(), false.into()), (false, true));
    assert_eq!(flags(template("<|pad|>", "<|pad|>"), Value::Null), (false, false));
    let sequence = json!({ "type": "Sequence", "processors": [{ "type": "ByteLevel" }, both] });
    assert_eq!(flags(sequence, Value::Null), (true, true));
    assert_eq!(flags(Value::Null, true.into()), (true, false));
    assert_eq!(flags(Value::Null, Value::Null), (false, false));
}

#[test]
fn special_tokens_come_from_names_and_else_from_the_model() {
    let ids = |checkpoint: &Checkpoint| {
        let spec = checkpoint.tokenizer().unwrap();
        (spec.bos, spec.eos, spec.pad, spec.unk)
    };
    assert_eq!(ids(&changed(|_, _| {})), (Some(1), Some(2), Some(0), None));
    let mut folder = folder(&Tiny::smallest("llama"));
    folder.files.remove("tokenizer_config.json");
    assert_eq!(ids(&folder.open().unwrap()), (None, None, None, None));
    folder.set("bos_token_id", 0);
    folder.set("eos_token_id", 1);
    folder.set("pad_token_id", -1);
    folder.set("unk_token_id", 2);
    assert_eq!(ids(&folder.open().unwrap()), (Some(0), Some(1), None, Some(2)));
    folder.set("eos_token_id", json!([1, 2]));
    assert_eq!(ids(&folder.open().unwrap()).1, None);
}

#[test]
fn added_tokens_that_look_special_are_control_tokens_and_the_rest_text() {
    let checkpoint = changed(|json, _| {
        for added in json["added_tokens"].as_array_mut().unwrap() {
            added["special"] = false.into();
        }
        json["added_tokens"][0]["content"] = "<tool_call>".into();
    });
    let spec = checkpoint.tokenizer().unwrap();
    let control = TokenKind::Control;
    assert_eq!(spec.kinds[..3], [TokenKind::UserDefined, control, control]);
    assert_eq!(spec.tokens[0], "<tool_call>");
}

#[test]
fn ends_are_those_of_all_files_and_the_known_markers() {
    let mut folder = folder(&Tiny::smallest("llama"));
    assert_eq!(folder.open().unwrap().stop_tokens(), [2]);
    folder.set("eos_token_id", json!([2, 9]));
    folder.put("generation_config.json", &json!({ "eos_token_id": [0, 3, 99], "top_p": 0.9 }));
    // The model's own files are believed, though 3 is no control token; 99 is no token.
    assert_eq!(folder.open().unwrap().stop_tokens(), [0, 2, 3, 9]);
    folder.files.clear();
    let bare = folder.open().unwrap();
    assert_eq!(bare.stop_tokens(), [2, 9]);
    let error = bare.tokenizer().unwrap_err().to_string();
    assert!(error.ends_with("the folder has no tokenizer.json"), "{error}");
}

#[test]
fn the_template_in_a_file_of_its_own_goes_before_the_configurations() {
    let template = |change: &dyn Fn(&mut Folder)| {
        let mut folder = folder(&Tiny::smallest("llama"));
        change(&mut folder);
        folder.open().unwrap().chat_template().map(str::to_owned)
    };
    let config = |template: Value| {
        move |folder: &mut Folder| {
            folder.put("tokenizer_config.json", &json!({ "chat_template": template }));
        }
    };
    assert_eq!(template(&|_| {}).as_deref(), Some("{{ messages[0].content }}"));
    assert_eq!(template(&config(Value::Null)), None);
    assert_eq!(template(&config("".into())), None);
    let named = json!([
        { "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" },
    ]);
    assert_eq!(template(&config(named)).as_deref(), Some("plain"));
    let other = json!([{ "name": "rag", "template": "documents" }]);
    assert_eq!(template(&config(other)), None);
    let file = template(&|folder| {
        folder.files.insert("chat_template.jinja".to_owned(), b"{{ bos_token }}\n".to_vec());
    });
    assert_eq!(file.as_deref(), Some("{{ bos_token }}\n"));
}

#[test]
fn ids_without_a_token_are_holes_as_in_the_gguf_file() {
    let mut tiny = with_rule(Tiny::llama(), "smollm");
    let mut texts = TOKENS;
    texts[11] = "[PAD11]";
    tiny.set("tokenizer.ggml.tokens", texts.into_iter().collect::<Array<'_>>());
    let kinds = [3i32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 5];
    tiny.set("tokenizer.ggml.token_type", kinds.into_iter().collect::<Array<'_>>());
    let folder = folder(&tiny).open().unwrap();
    assert_eq!(folder.tokenizer().unwrap(), gguf(&tiny).tokenizer().unwrap());
}

#[test]
fn a_tokenizer_that_cannot_be_built_is_an_error_only_when_asked_for() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 16] = [
        (|json| json["model"]["type"] = "Unigram".into(), r#"model.type: "Unigram""#),
        (
            |json| json["model"] = json!({"type": "Unigram", "vocab": [["a", 0.5]]}),
            "model.type: \"Uni",
        ),
        (|json| json["model"]["byte_fallback"] = true.into(), "model.byte_fallback: not"),
        (|json| json["model"]["dropout"] = 0.1.into(), "model.dropout: not supported"),
        (|json| json["model"]["unk_token"] = "<unk>".into(), "model.unk_token: not supported"),
        (|json| json["model"]["end_of_word_suffix"] = "</w>".into(), "end_of_word_suffix: not"),
        (|json| json["model"]["ignore_merges"] = true.into(), "model.ignore_merges: not"),
        (|json| json["normalizer"] = json!({"type": "NFKC"}), r#"normalizer: "NFKC" is not"#),
        (
            |json| {
                json["normalizer"] = json!({"type": "NFC"});
                json["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false});
            },
            "NFC is not supported for Gpt2",
        ),
        (|json| json["pre_tokenizer"] = Value::Null, "pre_tokenizer: cuts text by a rule"),
        (|json| json["pre_tokenizer"]["type"] = "Metaspace".into(), "pre_tokenizer: cuts text"),
        (
            |json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into(),
            "pre_tokenizer: cuts text",
        ),
        (
            |json| json["post_processor"] = json!({"type": "RobertaProcessing"}),
            r#"post_processor: "RobertaProcessing" is not supported"#,
        ),
        (|json| json["decoder"] = Value::Null, "decoder: missing, expected ByteLevel"),
        (|json| json["decoder"]["type"] = "WordPiece".into(), r#"decoder: "WordPiece""#),
        (
            |json| json["added_tokens"][0]["single_word"] = true.into(),
            r#"added_tokens: "<|pad|>" tak"#,
        ),
    ];
    for (change, expected) in cases {
        let checkpoint = changed(|json, _| change(json));
        assert!(checkpoint.get("model.norm.weight").is_some());
        let error = checkpoint.tokenizer().unwrap_err();
        assert_one_line(&error, expected);
        let text = error.to_string();
        assert!(text.contains("tokenizer.json: ") && text.contains(expected), "{text}");
    }
}
