//! The models whose weights we know: `models/catalog.toml`, built into the program.

use serde::Deserialize;

use super::LoadError;

const CATALOG: &str = include_str!("../../models/catalog.toml");

/// A model whose weights we know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogModel {
    /// What an operator configures: the hub id, without the owner `sentence-transformers`.
    pub name: String,
    /// `OWNER/NAME` at the hub.
    pub hub_id: String,
    /// The commit of the hub repository.
    pub revision: String,
    /// SHA-256 of `model.safetensors`, in lower-case hex.
    pub weights_sha256: String,
    /// Components of each vector.
    pub dimension: usize,
    /// Texts are cut to this many tokens.
    pub max_tokens: usize,
    /// SPDX name of the licence of the weights.
    pub licence: String,
}

#[derive(Deserialize)]
struct Catalog {
    model: Vec<CatalogModel>,
}

/// Every model of the catalogue, in its order.
pub(super) fn models() -> Result<Vec<CatalogModel>, LoadError> {
    toml::from_str::<Catalog>(CATALOG).map(|catalog| catalog.model).map_err(LoadError::Catalog)
}

/// The catalogue's entry of a name or hub id.
pub(super) fn find(name_or_id: &str) -> Result<Option<CatalogModel>, LoadError> {
    let known = |model: &CatalogModel| model.name == name_or_id || model.hub_id == name_or_id;
    Ok(models()?.into_iter().find(known))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn every_entry_names_a_commit_and_a_hash() {
        for model in models().unwrap() {
            assert_eq!(model.revision.len(), 40, "{}", model.name);
            assert_eq!(model.weights_sha256.len(), 64, "{}", model.name);
            let name = model.hub_id.strip_prefix("sentence-transformers/");
            assert_eq!(model.name, name.unwrap_or(&model.hub_id));
        }
    }

    #[test]
    fn the_fetch_script_fetches_what_the_catalogue_says() {
        let script = include_str!("../../scripts/fetch-model.sh");
        let model = find("all-MiniLM-L6-v2").unwrap().unwrap();
        assert!(script.contains(&format!("revision={}\n", model.revision)));
        assert!(script.contains(&format!("weights_sha256={}\n", model.weights_sha256)));
    }

    #[test]
    fn the_default_model_is_known_under_both_names() {
        let by_name = find("all-MiniLM-L6-v2").unwrap().unwrap();
        let by_id = find("sentence-transformers/all-MiniLM-L6-v2").unwrap().unwrap();
        assert_eq!(by_name, by_id);
        assert_eq!((by_name.dimension, by_name.max_tokens), (384, 256));
        assert_eq!(find("somebody/else").unwrap(), None);
    }
}
