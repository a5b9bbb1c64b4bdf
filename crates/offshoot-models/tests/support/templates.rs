//! Chat templates that want too much: time, memory or stack, or that are no templates.

use offshoot_models::{ChatTemplate, Error, Message, RenderOptions};

/// A template's source.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) source: String,
}

/// Compiles a stranger's template and renders a conversation that has every kind of turn.
pub(crate) fn run(source: &str) -> Result<String, Error> {
    let template = ChatTemplate::new(source, Some("<s>"), Some("</s>"))?;
    let tools = serde_json::json!([{"type": "function", "function": {
        "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}
    }}]);
    let call = serde_json::json!([{"function": {"name": "add", "arguments": {"a": 1.5}}}]);
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "<b>é\n\u{1F600}"),
        Message { content: None, tool_calls: Some(call), ..Message::new("assistant", "") },
        Message { name: Some("add".to_owned()), ..Message::new("tool", "2") },
        Message::new("user", ""),
    ];
    let now = Some(std::time::SystemTime::UNIX_EPOCH);
    let options = RenderOptions {
        tools: Some(&tools),
        add_generation_prompt: true,
        now,
        ..RenderOptions::default()
    };
    template.render(&messages, &options)
}

fn cases(cases: Vec<(&'static str, String)>) -> Vec<Hostile> {
    cases.into_iter().map(|(name, source)| Hostile { name, source }).collect()
}

/// A value that each of `times` passes makes from the last, then what is done with it.
fn grown(start: &str, times: usize, step: &str, then: &str) -> String {
    format!(
        "{{% set ns = namespace(s={start}) %}}{{% for i in range({times}) %}}\
         {{% set ns.s = {step} %}}{{% endfor %}}{then}"
    )
}

/// Templates that must be refused. Those that repeat something do so some `n` times.
pub(crate) fn hostile(n: usize) -> Vec<Hostile> {
    let nested = |open: &str, close: &str, n: usize| open.repeat(n) + "1" + &close.repeat(n);
    let twice = "[ns.s, ns.s]";
    cases(vec![
        ("calls-itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        (
            "calls-in-a-circle",
            "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"
                .into(),
        ),
        ("includes-itself", "{% include 'chat' %}".into()),
        ("extends-itself", "{% extends 'chat' %}".into()),
        ("imports-itself", "{% import 'chat' as c %}{{ c.x() }}".into()),
        ("includes-a-file", "{% include '/etc/passwd' %}".into()),
        ("recursive-loop", "{% for m in [messages] recursive %}{{ loop([m]) }}{% endfor %}".into()),
        ("range-10-9", "{% for i in range(10**9) %}{{ i }}{% endfor %}".into()),
        ("range-listed", "{{ range(10**9) | list | length / 0 }}".into()),
        (
            "loops-nested",
            "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}".into(),
        ),
        (
            "prints-too-much",
            format!("{{% for i in range(90000) %}}{}{{% endfor %}}", "x".repeat(60)),
        ),
        ("string-times", "{{ 'x' * 100000000000 }}".into()),
        ("list-times", "{{ [0] * 100000000000 }}".into()),
        ("string-doubled", grown("'x'", 60, "ns.s + ns.s", "{{ ns.s }}")),
        ("string-replaced", grown("'x'", 60, "ns.s.replace('x', 'xx')", "")),
        ("string-joined", grown("'x'", 60, "ns.s ~ ns.s", "{{ ns.s | length }}")),
        ("list-doubled-json", grown("[1]", 60, twice, "{{ ns.s | tojson }}")),
        ("list-doubled", grown("[1]", 60, twice, "{{ ns.s }}")),
        (
            "list-doubled-compared",
            grown("[1]", 60, twice, "{{ ns.s == [[ns.s[0], ns.s[0]], 1] or ns.s | string }}"),
        ),
        ("list-deep-json", grown("[]", 100_000, "[ns.s]", "{{ ns.s | tojson }}")),
        ("width-percent", "{{ '%999999999999d' | format(1) }}".into()),
        ("width-braces", "{{ '{:>99999999999}'.format(1) }}".into()),
        ("width-indent", "{{ [1] | tojson(indent=1000000000) | length / 0 }}".into()),
        ("power", "{{ 2 ** 1000000000 }}".into()),
        ("unknown-option", "{{ messages | tojson(bogus=1) }}".into()),
        ("json-of-nothing", "{{ missing | tojson }}".into()),
        ("field-of-nothing", "{{ raise_exception }}{{ messages.x.y }}".into()),
        ("parentheses", format!("{{{{ {} }}}}", nested("(", ")", n))),
        ("brackets", format!("{{{{ {} }}}}", nested("[", "]", n))),
        ("blocks", format!("{}{}", "{% if 1 %}".repeat(n / 10), "{% endif %}".repeat(n / 10))),
        ("tags-open", "{%".repeat(n)),
        ("generation-open", "{% generation ".repeat(n / 8)),
        ("raw-open", "{% raw %}".repeat(n / 5)),
        ("generation-alone", "{% generation %}".into()),
        ("brace-open", "{{ 1".into()),
        ("comment-open", "{# ".repeat(3)),
        ("end-alone", "{% endfor %}{% endif %}{% endmacro %}".into()),
        ("nul", "\u{0}{{ \u{0} }}".into()),
    ])
}

/// Templates too long to be taken, or that only the clock ends; each of those takes seconds.
pub(crate) fn late() -> Vec<Hostile> {
    let lazy = |then: &str| grown("[1]", 100_000, &format!("ns.s{then}"), "{{ ns.s | list }}");
    cases(vec![
        ("long-source", "x".repeat(1 << 20)),
        ("lazy-slices", lazy("[::1]")),
        ("lazy-pairs", lazy("|zip([1])")),
        ("lazy-chains", lazy("|chain([1])")),
        ("concatenated", format!("{{{{ 'a'{} }}}}", "~'a'".repeat(16_000))),
    ])
}

/// Templates of some `len` bytes that are legal and make deep trees, or deep values.
pub(crate) fn deep(len: usize) -> Vec<Hostile> {
    let fill = |open: &str, link: &str, close: &str| {
        format!("{open}{}{close}", link.repeat((len - open.len()) / link.len()))
    };
    cases(vec![
        ("nots", fill("{{ ", "not ", "1 }}")),
        ("signs", fill("{{ ", "-", "1 }}")),
        ("sums", fill("{{ 1", "+1", " }}")),
        ("filters", fill("{{ 1", "|int", " }}")),
        ("fields", fill("{{ messages", ".a", " }}")),
        ("indices", fill("{{ messages", "[0]", " }}")),
        ("calls", fill("{{ messages", "()", " }}")),
        ("choices", fill("{{ 1", " if 1 else 1", " }}")),
        ("ands", fill("{{ 1", " and 1", " }}")),
        ("comparisons", fill("{{ 1", "<1", " }}")),
        ("elifs", fill("{% if 0 %}", "{%elif 0%}", "{%endif%}")),
        ("lists-deep", grown("[]", 100_000, "[ns.s]", "")),
        (
            "namespace-in-itself",
            "{% set ns = namespace() %}{% set ns.s = ns %}{% set ns.t = 'x' * 10000 %}".into(),
        ),
        ("maps-deep", grown("{}", 100_000, "{'a': ns.s}", "{{ ns.s }}")),
    ])
}
