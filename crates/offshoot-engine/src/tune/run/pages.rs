//! Pages on ways of tuning and of drafting, as `offshoot methods` shows them.

use offshoot_methods::draft;
use offshoot_methods::optim::OPTIMIZERS;
use offshoot_methods::page_of;
use offshoot_methods::tune::{FwdgradOptions, HybridOptions};
use serde_json::Value;

use super::Method;
use super::config::LOCAL_STEPS;
use super::config_file::nearest;

/// Spaces by their names, with a line on each and the file that has its page.
const SPACES: [(&str, &str, &str); 6] = [
    ("lora", "Low-rank differences of matrices.", include_str!("../zeroth_order/space/lora.rs")),
    (
        "lora_fa",
        "The same, of which one factor stays as it is drawn.",
        include_str!("../zeroth_order/space/lora.rs"),
    ),
    (
        "prefix",
        "Keys and values of positions before every text.",
        include_str!("../zeroth_order/space/prefix.rs"),
    ),
    (
        "prompt",
        "Embeddings of positions before every text.",
        include_str!("../zeroth_order/space/prompt.rs"),
    ),
    (
        "scales",
        "Multiples of the scales of a quantised base.",
        include_str!("../zeroth_order/space/scales.rs"),
    ),
    ("full", "The model's own weights.", include_str!("../zeroth_order/space/full.rs")),
];

/// What a page is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A way of tuning, as `--method` names it.
    Method,
    /// What turns gradients into steps, as `--optimizer` names it.
    Optimizer,
    /// What is tuned without gradients, as `--space` names it.
    Space,
    /// Draft heads that learn with a variant.
    DraftHeads,
    /// A way of drafting, as `--spec` or `--acceptance` names it.
    Drafting,
}

impl Topic {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Optimizer => "optimizer",
            Self::Space => "space",
            Self::DraftHeads => "draft heads",
            Self::Drafting => "drafting",
        }
    }
}

/// What is to be known of a way of tuning or drafting.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// What it is on.
    pub topic: Topic,
    /// The name of that.
    pub name: &'static str,
    /// A line on it.
    pub summary: String,
    /// The page: equation, papers, cost, results, when not to use it.
    pub text: String,
    /// What `--option` sets, at its defaults; null where there is nothing.
    pub options: Value,
}

/// All pages.
pub fn pages() -> Vec<Page> {
    let tidy = |summary: &str| {
        let mut letters = summary.trim_end_matches('.').chars();
        let first = letters.next().map(|c| c.to_uppercase().to_string());
        format!("{}{}.", first.unwrap_or_default(), letters.as_str())
    };
    let page = |topic, name, summary: &str, text| {
        let options = Value::Null;
        Page { topic, name, summary: tidy(summary), text, options }
    };
    let methods = Method::all().map(|method| {
        let text = match (method, method.card()) {
            (_, Some(card)) => card.page(),
            (Method::Hybrid, _) => HybridOptions::page(),
            (Method::ForwardGradient, _) => FwdgradOptions::page(),
            _ => page_of(include_str!("../first_order/mod.rs")),
        };
        let options = match (method, method.card()) {
            (_, Some(card)) => without_local_steps(card.defaults()),
            (Method::Hybrid, _) => {
                serde_json::to_value(HybridOptions::default()).unwrap_or_default()
            }
            (Method::ForwardGradient, _) => {
                serde_json::to_value(FwdgradOptions::default()).unwrap_or_default()
            }
            _ => Value::Null,
        };
        Page { options, ..page(Topic::Method, method.name(), method.summary(), text) }
    });
    let optimizers =
        OPTIMIZERS.iter().map(|card| page(Topic::Optimizer, card.name, card.summary, card.page()));
    let spaces = SPACES
        .iter()
        .map(|(name, summary, source)| page(Topic::Space, name, summary, page_of(source)));
    let heads = page(
        Topic::DraftHeads,
        "medusa",
        "Heads that learn with a variant and draft for it",
        page_of(include_str!("../first_order/heads.rs")),
    );
    let small = include_str!("../../spec/draft_model.rs");
    let model = ("draft", "What a small model of the same vocabulary writes on.", small);
    let drafting = draft::PAGES
        .into_iter()
        .chain([model])
        .map(|(name, summary, source)| page(Topic::Drafting, name, summary, page_of(source)));
    methods.chain(optimizers).chain(spaces).chain([heads]).chain(drafting).collect()
}

/// The options that a run takes: local steps it calls accumulation.
fn without_local_steps(mut options: Value) -> Value {
    if let Some(all) = options.as_object_mut() {
        all.remove(LOCAL_STEPS);
    }
    options
}

/// The pages on what is called `name`: a method and a space may share one.
///
/// # Errors
/// If nothing is called so: what there is, and what is near.
pub fn pages_on(name: &str) -> Result<Vec<Page>, String> {
    let mut all = pages();
    let names: Vec<&str> = all.iter().map(|page| page.name).collect();
    if !names.contains(&name) {
        let near = nearest(name, names.iter().copied());
        return Err(format!("no page on {name:?}{near} (offshoot methods lists all)"));
    }
    all.retain(|page| page.name == name);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_says_what_it_is_and_those_on_methods_what_they_did() {
        let all = pages();
        let tuning = Method::all().count() + OPTIMIZERS.len() + SPACES.len() + 1;
        assert_eq!(all.len(), tuning + draft::PAGES.len() + 1);
        for page in &all {
            assert!(page.text.lines().count() > 5 && !page.summary.is_empty(), "{}", page.name);
            assert!(!page.text.contains("```") && !page.text.contains("[`"), "{}", page.text);
            let parts = match page.topic {
                Topic::Space => &[][..],
                // Published results and ours are tables there, or sentences.
                Topic::Drafting => &["\n    ", "\nOptions: ", "urs", "\nWhen not to use it: "],
                _ => &[
                    "\n    ",
                    "\nDefaults: ",
                    "\nPublished: ",
                    "\nOurs: ",
                    "\nWhen not to use it: ",
                ],
            };
            for part in parts {
                assert!(page.text.contains(part), "{}: no {part:?} in {}", page.name, page.text);
            }
        }
    }

    #[test]
    fn a_name_that_is_shared_has_two_pages_and_a_near_one_is_suggested() {
        let topics = |name| pages_on(name).unwrap().iter().map(|p| p.topic).collect::<Vec<_>>();
        assert_eq!(topics("lora"), [Topic::Method, Topic::Space]);
        assert_eq!(topics("muon"), [Topic::Optimizer]);
        assert_eq!(topics("medusa"), [Topic::DraftHeads, Topic::Drafting]);
        assert_eq!(topics("rest"), [Topic::Drafting]);
        let told = pages_on("mezzo").unwrap_err();
        assert!(told.contains("no page on \"mezzo\": did you mean `mezo`?"), "{told}");
    }
}
