//! Namespaces that are emptied when a render ends.
//!
//! A template may put a namespace into itself. The engine counts references, so such a circle, and
//! all that hangs on it, would stay for as long as the process runs: with every render more.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::ValueOrKwargs;
use minijinja::{Environment, Error, Value};

/// The namespaces that one render has made.
#[derive(Clone, Default)]
pub(super) struct Namespaces(Arc<Mutex<Vec<Value>>>);

impl Namespaces {
    /// The engine's `namespace` function, which remembers what it makes.
    pub(super) fn function(&self) -> Value {
        let made = self.clone();
        Value::from_function(move |defaults: Option<ValueOrKwargs>| -> Result<Value, Error> {
            let namespace = minijinja::functions::namespace(defaults)?;
            made.0.lock().unwrap_or_else(PoisonError::into_inner).push(namespace.clone());
            Ok(namespace)
        })
    }

    /// Empties every namespace. Only a template can change one, so one does; a circle needs a field
    /// that a template has set, and so has a name that a template can write.
    pub(super) fn empty(&self) {
        let made = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let environment = Environment::new();
        for namespace in made {
            let fields: Vec<Value> = namespace.try_iter().into_iter().flatten().collect();
            for field in fields.iter().filter_map(Value::as_str).filter(|field| is_name(field)) {
                let source = format!("{{% set ns.{field} = none %}}");
                let context = Value::from_pairs([("ns", namespace.clone())]);
                // A word of the language's own is refused; it was no field that a template has set.
                let _no_name = environment.render_str(&source, context);
            }
        }
    }
}

/// Whether `field` is nothing but a name: it becomes part of a template's source.
fn is_name(field: &str) -> bool {
    field.chars().all(|c| c == '_' || c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Object;

    #[derive(Debug)]
    struct Tracked;

    impl Object for Tracked {}

    #[test]
    fn what_hangs_on_a_circle_of_namespaces_is_dropped() {
        for source in [
            "{% set a = namespace() %}{% set a.me = a %}{% set a.it = it %}",
            "{% set a = namespace({'a b': 1}) %}{% set b = namespace(a=a, it=it) %}{% set a.b = b %}",
            "{% set a = namespace(it=it) %}{% set a.list = [{'x': a}] %}{{ a.it / 0 }}",
        ] {
            let (it, namespaces) = (Arc::new(Tracked), Namespaces::default());
            let context = Value::from_pairs([
                ("it", Value::from_dyn_object(it.clone())),
                ("namespace", namespaces.function()),
            ]);
            let _failed_or_not = Environment::new().render_str(source, context).is_err();
            assert!(Arc::strong_count(&it) > 1, "it is kept: {source}");
            namespaces.empty();
            assert_eq!(Arc::strong_count(&it), 1, "{source}");
        }
    }
}
