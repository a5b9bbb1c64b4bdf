//! `methods`: the pages on ways of tuning.

use offshoot_engine::tune::run::{Page, pages, pages_on};
use serde_json::{Value, json};

use crate::args::MethodsArgs;
use crate::failure::{Failure, say, say_json};

pub(crate) fn run(args: &MethodsArgs) -> Result<(), Failure> {
    let found = match &args.name {
        Some(name) => pages_on(name).map_err(Failure::Usage)?,
        None => pages(),
    };
    if args.output.json {
        let page = |page: &Page| {
            json!({
                "topic": page.topic.name(),
                "name": page.name,
                "summary": page.summary,
                "options": page.options,
                "page": page.text,
            })
        };
        return say_json(&found.iter().map(page).collect::<Value>());
    }
    if args.name.is_some() {
        let shown = found.iter().map(|page| format!("{}{}", page.text, options(page)));
        return say(shown.collect::<Vec<_>>().join("\n").trim_end());
    }
    let mut topic = None;
    for page in &found {
        if topic != Some(page.topic) {
            say(format_args!("{}:", page.topic.name()))?;
            topic = Some(page.topic);
        }
        say(format_args!("  {:<9} {}", page.name, page.summary))?;
    }
    Ok(())
}

/// What `--option` sets, a line each.
fn options(page: &Page) -> String {
    let Value::Object(all) = &page.options else { return String::new() };
    let probe = all.get("probe").and_then(Value::as_object).into_iter().flatten();
    let own = all.iter().filter(|(name, _)| *name != "probe");
    let line = |(name, value): (&String, &Value)| match value {
        Value::Null => format!("    --option {name}=...  (none)\n"),
        value => format!("    --option {name}={value}\n"),
    };
    let lines: String = probe.chain(own).map(line).collect();
    let by_space = if all.contains_key("probe") { "; eps goes by the space" } else { "" };
    format!("\nOptions, at their defaults{by_space}:\n{lines}")
}
