//! The catalogue of methods.

use offshoot_kernels::Distribution;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{METHODS, Setting, SpaceKind, ZerothOrder};
use crate::{Error, one_line, page_of};

/// What a method's learning rate multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateUnit {
    /// An estimate of the gradient.
    Gradient,
    /// A direction whose length does not depend on the loss's scale, so that the rate stands for
    /// `rate * |grad|` of the others.
    Normalized,
}

/// Starts a method of whole options, or says what is wrong with them.
pub(crate) type Build = fn(Value, &Setting) -> Result<Box<dyn ZerothOrder>, String>;

/// A method's row in the catalogue; help, documentation and the contract tests are made from it.
#[derive(Debug, Clone, Copy)]
pub struct MethodCard {
    /// Its name, as written in a configuration.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The paper.
    pub paper: &'static str,
    /// Losses a step asks for, in terms of its options.
    pub forwards: &'static str,
    /// Memory beyond the weights and a forward pass.
    pub memory: &'static str,
    /// The paper's learning rate for full tuning, or the nearest that it names.
    pub rate: f64,
    /// What that rate multiplies.
    pub unit: RateUnit,
    /// How its directions are drawn unless a run says otherwise.
    pub distribution: Distribution,
    /// The only space that it is for, if it is for one.
    pub space: Option<SpaceKind>,
    /// The options' defaults.
    pub(crate) defaults: fn() -> Value,
    /// Makes the method of whole options.
    pub(crate) build: Build,
    /// Its file, whose head is its page.
    pub(crate) page: &'static str,
}

/// A method's options: what is in its paper's table of hyper-parameters.
pub trait MethodOptions: Default + Serialize + DeserializeOwned {
    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    fn validate(&self) -> Result<(), Error>;

    /// The method before its first step.
    ///
    /// # Errors
    /// As [`Self::validate`], or if what is tuned does not suit the method.
    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error>;
}

/// The defaults of `O` as a tree.
pub(crate) fn defaults<O: MethodOptions>() -> Value {
    serde_json::to_value(O::default()).expect("options are plain numbers, names and lists")
}

/// Reads options of type `O`, all fields of which are there, and starts the method.
pub(crate) fn build<O: MethodOptions>(
    options: Value,
    setting: &Setting,
) -> Result<Box<dyn ZerothOrder>, String> {
    let options: O = serde_json::from_value(options).map_err(|e| one_line(&e))?;
    options.start(setting).map_err(|e| e.to_string())
}

impl MethodCard {
    /// The card called `name`.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`] lists the names that there are.
    pub fn named(name: &str) -> Result<&'static Self, Error> {
        METHODS.iter().find(|card| card.name == name).ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|card| card.name).collect();
            Error::UnknownMethod { name: name.to_owned(), known: names.join(", ") }
        })
    }

    /// What the method is, where it comes from, what it did and when not to use it.
    pub fn page(&self) -> String {
        page_of(self.page)
    }

    /// All options, at the method's defaults.
    pub fn defaults(&self) -> Value {
        (self.defaults)()
    }

    /// All options: `given` where it says something, at any depth, and the defaults elsewhere. What
    /// is said of probing (`eps`, `directions`, ...) may stand beside the method's own.
    pub fn options(&self, given: &Value) -> Value {
        let mut all = self.defaults();
        let (Some(fields), Value::Object(given)) = (all.as_object_mut(), given) else {
            return overlaid(all, given);
        };
        let mut own = given.clone();
        if let Some(Value::Object(probe)) = fields.get_mut("probe") {
            let names: Vec<String> = probe.keys().cloned().collect();
            for (name, value) in names.iter().filter_map(|n| own.remove_entry(n)) {
                probe.insert(name, value);
            }
        }
        overlaid(all, &Value::Object(own))
    }

    /// Checks that the options that `given` names exist and are of the kind that they must be; bounds
    /// are checked where the method starts.
    ///
    /// # Errors
    /// [`Error::Method`] with the option.
    pub fn check(&self, given: &Value) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::Method { method: self.name, reason });
        if !given.is_object() && !given.is_null() {
            return wrong("its options must be a table".to_owned());
        }
        let all = self.options(given);
        if let Some(name) = self.unknown(&all) {
            let names = self.names().join(", ");
            return wrong(format!("no option `{}`; there are {names}", name.escape_debug()));
        }
        match mistaken(&self.defaults(), &all) {
            None => Ok(()),
            Some(told) => wrong(told),
        }
    }

    /// The method before its first step, with the options that `given` names.
    ///
    /// # Errors
    /// As [`Self::check`], or if an option is outside its bounds, or what is tuned does not suit the
    /// method.
    pub fn start(&self, given: &Value, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.check(given)?;
        let wrong = |reason| Error::Method { method: self.name, reason };
        (self.build)(self.options(given), setting).map_err(wrong)
    }

    /// The first of `all` that is no option.
    fn unknown<'a>(&self, all: &'a Value) -> Option<&'a str> {
        let defaults = self.defaults();
        let names = all.as_object()?.keys();
        names.map(String::as_str).find(|name| defaults.get(name).is_none())
    }

    /// The names of all options, those of probing first.
    pub fn names(&self) -> Vec<String> {
        let defaults = self.defaults();
        let keys = |value: Option<&Value>| -> Vec<String> {
            value.and_then(Value::as_object).map_or_else(Vec::new, |o| o.keys().cloned().collect())
        };
        let own = keys(Some(&defaults)).into_iter().filter(|name| name != "probe");
        keys(defaults.get("probe")).into_iter().chain(own).collect()
    }
}

/// What is wrong with the first of `options` that is not of its default's kind. Options that may be
/// absent are numbers.
pub fn mistaken(defaults: &Value, options: &Value) -> Option<String> {
    let (Value::Object(defaults), Value::Object(options)) = (defaults, options) else {
        return None;
    };
    options.iter().find_map(|(name, value)| {
        let kind = match (defaults.get(name)?, value) {
            (default @ Value::Object(_), Value::Object(_)) => return mistaken(default, value),
            (_, Value::Null) | (Value::Null, Value::Number(_)) => return None,
            (Value::Number(default), Value::Number(number)) => {
                if !default.is_u64() || number.is_u64() {
                    return None;
                }
                "a whole number that is not negative"
            }
            (Value::Null, _) => "a number",
            (Value::String(_), Value::String(_)) => return None,
            (Value::Bool(_), Value::Bool(_)) => return None,
            (Value::Array(_), Value::Array(_)) => return None,
            (Value::Number(_), _) => "a number",
            (Value::String(_), _) => "a name",
            (Value::Bool(_), _) => "true or false",
            (Value::Array(_), _) => "a list",
            (Value::Object(_), _) => "a table",
        };
        Some(format!("{name}: must be {kind}, not {value}"))
    })
}

/// `base` with the values of `over`, object by object.
fn overlaid(base: Value, over: &Value) -> Value {
    match (base, over) {
        (base, Value::Null) => base,
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match base.remove(key) {
                    // An option that may be absent is taken away by `null`.
                    Some(before) if !value.is_null() => overlaid(before, value),
                    _ => value.clone(),
                };
                base.insert(key.clone(), merged);
            }
            Value::Object(base)
        }
        (_, over) => over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_that_are_not_given_keep_the_methods_own_defaults() {
        let card = MethodCard::named("fzoo").unwrap();
        let options = card.options(&json!({"probe": {"eps": 0.5}}));
        assert_eq!(
            options["probe"],
            json!({
                "eps": 0.5, "directions": 8, "clip_g": null, "clip_z": null
            })
        );
    }

    #[test]
    fn what_is_said_of_probing_may_stand_beside_the_methods_own() {
        let card = MethodCard::named("mmt").unwrap();
        let nested = card.options(&json!({"probe": {"eps": 0.5}, "beta": 0.5}));
        assert_eq!(card.options(&json!({"eps": 0.5, "beta": 0.5})), nested);
        assert_eq!((&nested["probe"]["eps"], &nested["beta"]), (&json!(0.5), &json!(0.5)));
        assert_eq!(card.names(), ["eps", "directions", "clip_g", "clip_z", "beta", "history"]);
    }

    #[test]
    fn null_takes_an_option_away() {
        let card = MethodCard::named("qzo").unwrap();
        assert!(card.defaults()["probe"]["clip_g"].is_number());
        let options = card.options(&json!({"probe": {"clip_g": null}}));
        assert!(options["probe"]["clip_g"].is_null());
    }

    #[test]
    fn an_unknown_option_is_named() {
        let card = MethodCard::named("mezo").unwrap();
        let error = card.start(&json!({"probes": {}}), &Setting::default()).unwrap_err();
        assert!(error.to_string().contains("no option `probes`; there are "), "{error}");
        assert!(error.to_string().contains("eps"), "{error}");
        let error = card.start(&json!(3), &Setting::default()).unwrap_err();
        assert!(error.to_string().contains("table"), "{error}");
    }

    #[test]
    fn an_option_of_another_kind_is_named() {
        for card in METHODS {
            assert!(card.check(&card.defaults()).is_ok(), "{}", card.name);
            let told = card.check(&json!({"eps": "abc"})).unwrap_err().to_string();
            assert!(told.ends_with("eps: must be a number, not \"abc\""), "{told}");
            for (option, kind) in [("directions", "a whole number"), ("clip_z", "a number")] {
                let told = card.check(&json!({ option: "x" })).unwrap_err().to_string();
                assert!(told.contains(&format!("{option}: must be a number")), "{kind}: {told}");
            }
            let told = card.check(&json!({"directions": 1.5})).unwrap_err().to_string();
            assert!(told.contains("directions: must be a whole number"), "{told}");
            let told = card.check(&json!({"probe": 3})).unwrap_err().to_string();
            assert!(told.ends_with("probe: must be a table, not 3"), "{told}");
        }
    }

    #[test]
    fn an_unknown_method_is_answered_with_those_there_are() {
        let error = MethodCard::named("mezzo").unwrap_err().to_string();
        assert!(error.contains("mezzo") && error.contains("mezo, "), "{error}");
    }
}
