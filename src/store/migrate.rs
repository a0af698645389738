//! Bringing the database to the shape that this program needs.

use migration::Migrator;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement, TransactionTrait};

use super::{Store, StoreError, database::write_options};

/// Key of the advisory lock under which one process at a time migrates.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"vecmill\0");

impl Store {
    /// Creates what is missing in the database, and checks that its vectors have as many
    /// components as those of the model. All or nothing; processes that start together take
    /// turns.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let (connection, settings) = self.writer.for_migration().await?;
        let transaction = connection.begin_with_options(write_options()).await?;
        if let Some(settings) = settings {
            transaction.execute_unprepared(&settings).await?;
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            transaction.execute_unprepared(&lock).await?;
            create_vector_extension(&transaction).await?;
        }
        Migrator { dimension: self.dimension }.apply(&transaction).await?;
        self.check_dimension(&transaction).await?;
        transaction.commit().await?;
        self.look_around().await
    }

    async fn check_dimension(&self, transaction: &DatabaseTransaction) -> Result<(), StoreError> {
        let column = match transaction.get_database_backend() {
            DbBackend::Postgres => postgres_dimension(transaction).await?,
            _ => sqlite_dimension(transaction).await?,
        };
        match column {
            Some(column) if column != self.dimension => {
                Err(StoreError::Dimension { column, model: self.dimension })
            }
            _ => Ok(()),
        }
    }
}

async fn create_vector_extension(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let created = transaction.execute_unprepared("CREATE EXTENSION IF NOT EXISTS vector").await;
    match created.map_err(StoreError::from) {
        Err(StoreError::Refused(_)) => Err(StoreError::Setup(
            "the pgvector extension cannot be created: install pgvector on the Postgres server, \
             then run CREATE EXTENSION vector in this database as a role that may"
                .to_owned(),
        )),
        other => other.map(|_| ()),
    }
}

/// Components of the vectors that the column takes; none if it takes any.
async fn postgres_dimension(
    transaction: &DatabaseTransaction,
) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT format_type(atttypid, NULL) AS type, atttypmod AS dimension \
               FROM pg_attribute WHERE attrelid = to_regclass('nodes') AND attname = 'embedding'";
    let Some(row) =
        transaction.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?
    else {
        return Ok(None);
    };
    let name: String = row.try_get("", "type")?;
    if name.rsplit('.').next() != Some("vector") {
        return Err(StoreError::Setup(format!(
            "the column nodes.embedding is of type {name}, but must be of type vector; use \
             another database"
        )));
    }
    Ok(usize::try_from(row.try_get::<i32>("", "dimension")?).ok().filter(|&found| found > 0))
}

/// The column says nothing of its vectors; one that is there tells.
async fn sqlite_dimension(transaction: &DatabaseTransaction) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT length(embedding) / 4 AS dimension FROM nodes \
               WHERE embedding IS NOT NULL LIMIT 1";
    let row = transaction.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await?;
    let dimension = row.map(|row| row.try_get::<i64>("", "dimension")).transpose()?;
    Ok(dimension.and_then(|dimension| usize::try_from(dimension).ok()))
}
