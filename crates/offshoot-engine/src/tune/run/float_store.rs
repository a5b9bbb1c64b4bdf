//! How weights are stored, by name in settings.

use offshoot_kernels::FloatStore;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(store: &FloatStore, to: S) -> Result<S::Ok, S::Error> {
    store.name().serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FloatStore, D::Error> {
    let name = String::deserialize(from)?;
    let names = FloatStore::ALL.map(FloatStore::name).join(" and ");
    let told = || D::Error::custom(format!("no store {name:?}: there are {names}"));
    FloatStore::named(&name).ok_or_else(told)
}
