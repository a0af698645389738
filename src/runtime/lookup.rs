//! Nodes by the names that other programs have for them, and their former vectors.

use uuid::Uuid;

use super::{api::RuntimeError, handle::Runtime};
use crate::{domain::TenantScope, store::NodeVersion};

impl Runtime {
    /// The id of the node of the scope whose property `external_id` is this; `None` if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Ambiguous`] when several are; the database is away.
    pub async fn id_by_external_id(
        &self,
        scope: &TenantScope,
        external_id: &str,
    ) -> Result<Option<Uuid>, RuntimeError> {
        match self.parts.store.ids_by_external_id(scope, external_id).await?.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(RuntimeError::Ambiguous),
        }
    }

    /// Bytes of the JSON that is stored of a node of the scope; 0 if there is no such node.
    pub async fn stored_bytes(&self, scope: &TenantScope, id: Uuid) -> Result<usize, RuntimeError> {
        Ok(self.parts.store.stored_bytes(scope, id).await?)
    }

    /// That JSON, one value after another, not parsed.
    pub async fn stored_json(
        &self,
        scope: &TenantScope,
        id: Uuid,
    ) -> Result<Option<String>, RuntimeError> {
        Ok(self.parts.store.stored_json(scope, id).await?)
    }

    /// The latest vectors of a node of the scope, newest first, as far as the database keeps them.
    pub async fn versions(
        &self,
        scope: &TenantScope,
        id: Uuid,
        limit: u64,
    ) -> Result<Vec<NodeVersion>, RuntimeError> {
        let store = &self.parts.store;
        if !store.exists(scope, id).await? {
            return Err(RuntimeError::NotFound(id));
        }
        Ok(store.versions(id, limit).await?)
    }
}
