//! The weights of a model: one file, or several with an index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::{LoadError, json, locate, modules::stays_inside};

/// The weights, where they are in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Which weights are in which file, where there are several.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Weights that only other programs read.
pub(super) const FOREIGN: [&str; 4] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];

/// Where weights are.
pub(super) struct WeightFiles {
    /// What an error names.
    pub(super) path: PathBuf,
    /// In the order in which they are read.
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an [`INDEX`] names, in their order.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, LoadError> {
    let files: BTreeSet<String> = json::read::<Index>(index)?.weight_map.into_values().collect();
    match files.iter().find(|file| !stays_inside(file)) {
        Some(file) => {
            let what = format!("weights in {file:?}, outside of the model");
            Err(LoadError::Unsupported { path: index.to_owned(), what })
        }
        None => Ok(files),
    }
}

impl WeightFiles {
    /// Finds the weights in the directory of a network.
    pub(super) fn find(directory: &Path) -> Result<Self, LoadError> {
        let (path, index) = (directory.join(WEIGHTS), directory.join(INDEX));
        if path.is_file() {
            return Ok(Self { files: vec![path.clone()], path });
        }
        if !index.is_file() {
            let foreign = FOREIGN.into_iter().find(|file| directory.join(file).is_file());
            let place = directory.display().to_string();
            return Err(LoadError::NoWeights { place, foreign });
        }
        let files: Vec<PathBuf> =
            shards(&index)?.into_iter().map(|file| directory.join(file)).collect();
        match files.iter().find(|file| !file.is_file()) {
            Some(missing) => Err(LoadError::Missing { path: missing.clone() }),
            None => Ok(Self { path: index, files }),
        }
    }

    /// Reads the weights, and a hash of their bytes.
    pub(super) fn read(&self, device: &Device) -> Result<(VarBuilder<'static>, String), LoadError> {
        let failed = |source| LoadError::weights(&self.path, source);
        if let [file] = self.files.as_slice() {
            let (bytes, hash) = read_file(file)?;
            let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, device);
            return Ok((weights.map_err(failed)?, hash));
        }
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        let mut hashes = String::new();
        for file in &self.files {
            let (bytes, hash) = read_file(file)?;
            tensors.extend(candle_core::safetensors::load_buffer(&bytes, device).map_err(failed)?);
            hashes += &hash;
        }
        let hash = locate::sha256_of(&hashes);
        Ok((VarBuilder::from_tensors(tensors, DType::F32, device), hash))
    }
}

fn read_file(path: &Path) -> Result<(Vec<u8>, String), LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    let hash = locate::sha256(bytes.as_slice()).map_err(failed)?;
    Ok((bytes, hash))
}
