//! Vectors that are there already, found by what they were made of.

use sea_orm::{ConnectionTrait, Statement};
use serde::Serialize;

use super::{
    InputHash, Store, StoreError,
    dialect::{Kind, to_json},
    results::{checksum, read_embedding},
};

#[derive(Serialize)]
struct Wanted {
    input_hash: String,
}

impl Store {
    /// The vectors that were stored with these inputs, of whichever nodes; none for an input that
    /// no node has.
    ///
    /// A node whose text was changed still has the vector of its older input, which is as good as
    /// any. A vector that another program has put in the place of ours is not answered.
    pub async fn vectors_of(
        &self,
        inputs: &[InputHash],
    ) -> Result<Vec<(InputHash, Vec<f32>)>, StoreError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let dialect = self.dialect();
        let wanted: Vec<Wanted> =
            inputs.iter().map(|hash| Wanted { input_hash: dialect.bytes(hash) }).collect();
        // One node an input, however many have it: the one that was embedded last, which is at one
        // end of the input in the index.
        let sql = format!(
            "SELECT nodes.embedding_input_hash, nodes.embedding_checksum, {embedding} AS embedding \
             FROM {rows} JOIN nodes ON nodes.id = (SELECT n.id FROM nodes AS n \
               WHERE n.embedding_input_hash = v.input_hash AND n.embedding IS NOT NULL \
               ORDER BY n.embedding_updated_at DESC LIMIT 1)",
            embedding = dialect.embedding(),
            rows = dialect.rows(&[("input_hash", Kind::Bytes)]),
        );
        let values = [to_json(&wanted).into()];
        let backend = self.db.get_database_backend();
        let rows =
            self.db.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
        let mut vectors = Vec::with_capacity(rows.len());
        for row in rows {
            let input: Vec<u8> = row.try_get("", "embedding_input_hash")?;
            let stored: Option<i64> = row.try_get("", "embedding_checksum")?;
            let Some(vector) = read_embedding(dialect, &row)? else { continue };
            if let Ok(input) = InputHash::try_from(input)
                && stored == Some(checksum(&vector))
            {
                vectors.push((input, vector));
            }
        }
        Ok(vectors)
    }
}
