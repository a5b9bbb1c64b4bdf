//! The model card of a variant, `README.md`, as the hub and PEFT's users expect it.

use std::fmt::Write;

use offshoot_kernels::FloatStore;

use super::checkpoint::Progress;
use super::{RunConfig, RunDescription};

/// The card of what `description` and `progress` made.
pub(crate) fn card(
    description: &RunDescription,
    progress: &Progress,
    peak_rss_bytes: Option<u64>,
) -> String {
    let RunDescription { config, data, examples, held_out, command, variant, .. } = description;
    let base = quoted(&config.model);
    let mut out = format!("---\nbase_model: {base}\n");
    out.push_str("tags:\n- offshoot\n");
    let _ = writeln!(out, "- {}\n---\n", config.method);
    let name = std::path::Path::new(&config.model).file_stem().unwrap_or_default();
    let name = name.to_string_lossy().replace(['\n', '\r'], " ");
    let _ = writeln!(out, "# {name}, tuned by {}\n", config.method);
    out.push_str("| | |\n| --- | --- |\n");
    let mut row = |name: &str, value: String| {
        let value = value.replace(['\n', '\r'], " ").replace('|', "\\|");
        let _ = writeln!(out, "| {name} | {value} |");
    };
    row("base", format!("`{}`, weights `{}`", config.model, variant.base));
    row("method", method(config));
    row("data", format!("{examples} examples, {held_out} held out, BLAKE3 `{data}`"));
    row("seed", config.seed.to_string());
    row("steps", format!("{}, {} tokens", progress.step, progress.tokens));
    if let Some(best) = progress.best {
        row("best", format!("{} {} after step {}", config.metric.name(), best.value, best.step));
    }
    row("time", format!("{:.0} s", progress.elapsed_s));
    if let Some(bytes) = peak_rss_bytes {
        row("peak memory", format!("{} MB", bytes / 1_000_000));
    }
    row("offshoot", variant.offshoot.clone());
    let _ = write!(out, "\nMade by\n\n```sh\n{}\n```\n", command.replace("```", ""));
    out.push_str("\nwith these settings:\n\n```toml\n");
    out.push_str(&config.to_toml().replace("```", ""));
    out.push_str("```\n\nTo run it:\n\n```sh\n");
    let _ = writeln!(out, "offshoot run {} --variant tuned=FOLDER \"...\"\n```", config.model);
    out
}

fn method(config: &RunConfig) -> String {
    let heads = if config.has_heads() { ", with draft heads" } else { "" };
    let store = match config.store {
        FloatStore::F32 => "",
        FloatStore::Bf16 => ", weights stored in bfloat16",
    };
    let rate = config.rate().map_or("that was found".to_owned(), |rate| format!("{rate:e}"));
    format!("{}{heads}{store}, learning rate {rate}", config.method)
}

/// A text as YAML has it between quotes.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::description;
    use super::*;

    #[test]
    fn a_card_says_where_the_variant_comes_from_and_keeps_its_form() {
        let model = "a|b\n\"c\".gguf".into();
        let config = RunConfig { model, store: FloatStore::Bf16, ..RunConfig::default() };
        let progress = Progress { step: 7, tokens: 99, ..Progress::default() };
        let card = card(&description(config), &progress, Some(512_000_000));
        for text in [
            "base_model: \"a|b\\n\\\"c\\\".gguf\"\n",
            "| steps | 7, 99 tokens |",
            "| peak memory | 512 MB |",
            "| seed | 42 |",
            "weights stored in bfloat16, learning rate",
            "store = \"bf16\"",
            "offshoot tune\n```",
            &"d".repeat(64),
        ] {
            assert!(card.contains(text), "{text}: {card}");
        }
        let rows = card.lines().filter(|line| line.starts_with("| "));
        assert!(rows.clone().all(|row| row.ends_with(" |")), "{card}");
    }
}
