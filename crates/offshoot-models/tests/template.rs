//! Chat templates against transformers, and hostile ones against limits.
//!
//! `data/templates.json` was made by `scripts/oracles/templates.py`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use offshoot_models::{ChatTemplate, Message, RenderOptions};
use proptest::prelude::*;
use serde::Deserialize;

mod support;
use support::assert_one_line;
use support::templates::{self, Hostile};

#[derive(Deserialize)]
struct Reference {
    now: u64,
    cases: Vec<Case>,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    options: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Template {
    source: String,
    bos: Option<String>,
    eos: Option<String>,
    results: Vec<Expected>,
}

/// What transformers did.
#[derive(Deserialize, Debug, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Text(String),
    Refuses(String),
    Fails(bool),
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("data/templates.json")).unwrap()
}

fn render(template: &ChatTemplate, case: &Case, now: u64) -> Result<String, String> {
    let mut extra = case.options.clone();
    let tools = extra.shift_remove("tools");
    let prompt = extra.shift_remove("add_generation_prompt");
    let options = RenderOptions {
        tools: tools.as_ref(),
        add_generation_prompt: prompt.is_none_or(|prompt| prompt.as_bool().unwrap()),
        extra,
        now: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(now)),
    };
    template.render(&case.messages, &options).map_err(|error| error.to_string())
}

/// Every difference from transformers with the templates of `names`.
fn differences(names: &[&str]) -> Vec<String> {
    let reference = reference();
    let mut differences = Vec::new();
    for name in names {
        let Template { source, bos, eos, results } = &reference.templates[*name];
        let template = ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).unwrap();
        assert_eq!(results.len(), reference.cases.len());
        for (case, expected) in reference.cases.iter().zip(results) {
            let ours = render(&template, case, reference.now);
            let same = match (expected, &ours) {
                (Expected::Text(text), Ok(ours)) => text == ours,
                (Expected::Refuses(words), Err(e)) => *e == format!("chat template: {words}"),
                (Expected::Fails(_), Err(error)) => !error.contains('\n'),
                _ => false,
            };
            if !same {
                differences.push(format!("{name}, {}: {expected:#?}, ours {ours:#?}", case.name));
            }
        }
    }
    differences
}

#[test]
fn models_templates_print_what_transformers_prints() {
    let differences = differences(&["smollm2", "qwen2_5_coder"]);
    assert_eq!(differences.len(), 0, "the first: {}", differences[0]);
}

#[test]
fn well_known_templates_print_what_transformers_prints() {
    let differences = differences(&["chatml", "headers", "inst", "zephyr", "thinking"]);
    assert_eq!(differences.len(), 0, "the first: {}", differences[0]);
}

#[test]
fn templates_of_the_families_print_and_refuse_what_transformers_does() {
    // Those above are of ChatML's, Llama 3's and Mistral's third; the other families are here.
    let names = ["llama2", "mistral1", "tekken", "gemma2", "gemma3", "phi3"];
    let differences = differences(&names);
    assert_eq!(differences.len(), 0, "the first: {}", differences[0]);
    let reference = reference();
    let refused = |name: &str| {
        let results = reference.templates[name].results.iter();
        results.filter(|result| matches!(result, Expected::Refuses(_))).count()
    };
    assert!(names.iter().filter(|name| refused(name) > 0).count() >= 5);
}

#[test]
fn values_print_as_in_python() {
    let differences = differences(&["values"]);
    assert_eq!(differences.len(), 0, "the first: {}", differences[0]);
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

/// The error of a template that must not print.
fn error_of(source: &str) -> String {
    let template = match ChatTemplate::new(source, None, None) {
        Ok(template) => template,
        Err(error) => return error.to_string(),
    };
    match template.render(&user("hi"), &RenderOptions::default()) {
        Ok(text) => panic!("{} bytes printed by {:.80}", text.len(), source),
        Err(error) => error.to_string(),
    }
}

#[test]
fn hostile_templates_end_soon_with_one_line() {
    for Hostile { name, source } in templates::hostile(30_000).into_iter().chain(templates::late())
    {
        let start = Instant::now();
        let error = error_of(&source);
        assert!(start.elapsed() < Duration::from_secs(10), "{name} took {:?}", start.elapsed());
        assert!(!error.contains('\n'), "{name}: {error}");
        assert!(error.starts_with("chat template: ") && error.len() < 400, "{name}: {error}");
    }
}

/// Long chains are legal, but make deep trees; dropped values may be deep, too.
#[test]
fn long_chains_and_deep_values_do_not_use_up_the_stack() {
    for Hostile { name, source } in templates::deep(65_000) {
        let rendered = ChatTemplate::new(&source, None, None)
            .and_then(|template| template.render(&user("hi"), &RenderOptions::default()));
        // Some are refused for their depth, others print: either is right.
        match rendered {
            Ok(text) => assert!(text.len() < 1 << 20, "{name}"),
            Err(error) => assert!(!error.to_string().contains('\n'), "{name}: {error}"),
        }
    }
}

#[test]
fn the_committed_fuzz_corpus_still_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/template");
    let (mut printed, mut refused) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let Ok(source) = String::from_utf8(std::fs::read(&path).unwrap()) else { continue };
        match templates::run(&source) {
            Ok(_) => printed += 1,
            Err(error) => {
                assert_one_line(&error, &path.display().to_string());
                refused += 1;
            }
        }
    }
    assert!(printed >= 8 && refused >= 30, "{printed} printed, {refused} refused");
}

#[test]
fn a_long_conversation_has_fuel_enough() {
    let reference = reference();
    let turn = |i: usize| Message::new(["user", "assistant"][i % 2], "word ".repeat(2000));
    let messages: Vec<Message> = (0..400).map(turn).collect();
    for (name, template) in &reference.templates {
        let Template { source, bos, eos, .. } = template;
        let template = ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).unwrap();
        let text = template.render(&messages, &RenderOptions::default());
        assert!(text.unwrap_or_else(|e| panic!("{name}: {e}")).len() > 400 * 9_000, "{name}");
    }
}

#[test]
fn a_template_reports_its_own_refusal_plainly() {
    let error = error_of("{{ raise_exception('Only \"users\" may speak.') }}");
    assert_eq!(error, "chat template: Only \"users\" may speak.");
    let in_macro = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
    assert_eq!(error_of(in_macro), "chat template: no");
}

#[test]
fn the_clock_is_the_systems_unless_given() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}", None, None).unwrap();
    let year = template.render(&[], &RenderOptions::default()).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024);
    let now = Some(SystemTime::UNIX_EPOCH);
    let options = RenderOptions { now, ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "1970");
    assert!(error_of("{{ strftime_now('%!') }}").contains("strftime_now"));
}

#[test]
fn extra_variables_replace_the_templates_own() {
    let source = "{{ bos_token }}{{ enable_thinking }}{{ eos_token }}";
    let template = ChatTemplate::new(source, Some("<s>"), None).unwrap();
    let extra = serde_json::json!({"enable_thinking": false, "bos_token": "<t>"});
    let options =
        RenderOptions { extra: extra.as_object().unwrap().clone(), ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "<t>False");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_source_panics(source in "(\\{[{%#]|[}%#]\\}|-|if|for|in|set|endfor|endif|macro|messages|loop|generation|[ -~]|\\PC|\n){0,60}") {
        if let Ok(template) = ChatTemplate::new(&source, Some("<s>"), None) {
            let _any = template.render(&user("hi"), &RenderOptions::default());
        }
    }

    #[test]
    fn any_content_comes_through_as_it_is(content in "\\PC*", role in "[a-z]{1,8}") {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}";
        let template = ChatTemplate::new(source, None, None).unwrap();
        let text = template.render(&[Message::new(&role, &content)], &RenderOptions::default());
        prop_assert_eq!(text.unwrap(), format!("[{role}]{content}"));
    }

    #[test]
    fn tojson_reads_back_as_the_same_value(content in "\\PC*|[\0-\u{1f}\"\\\\]{0,9}", number: f64, integer: i64) {
        let value = serde_json::json!([{"text": content, "z": [number, integer], "a": {}}, null]);
        for options in ["", "indent=3", "ensure_ascii=true", "separators=(',', ':')"] {
            let source = format!("{{{{ tools | tojson({options}) }}}}");
            let template = ChatTemplate::new(&source, None, None).unwrap();
            let options = RenderOptions { tools: Some(&value), ..RenderOptions::default() };
            let text = template.render(&[], &options).unwrap();
            let back: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&back[0]["text"], &value[0]["text"]);
            prop_assert_eq!(&back[0]["z"][1], &value[0]["z"][1]);
            let keys: Vec<&String> = back[0].as_object().unwrap().keys().collect();
            prop_assert_eq!(keys, ["text", "z", "a"]);
        }
    }
}
