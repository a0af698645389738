//! `/nodes`: take nodes in, show them, change and delete them, embed them again.

use poem::{http::StatusCode, web::Data};
use poem_openapi::{ApiResponse, OpenApi, payload::Json};
use uuid::Uuid;

use super::{
    answer::{self, Written},
    body::{JsonBody, NoBody},
    cursor::PageCursor,
    errors::{Fails, Failure, Problem},
    fields::Invalid,
    limits::{LIST_DEFAULT, VERSIONS_DEFAULT},
    memory::{Memory, Use},
    params::{
        ExternalId, HasEmbedding, IncludeEmbedding, Limit, Offset, Path, Query, RequiredQuery,
        VersionsLimit,
    },
    requests::NodeBatch,
    server::Tag,
    types::{BatchAnswer, BatchRefused, BatchResult, NodeAccepted, NodeChanged},
    views::{Node, NodePage, RefreshAnswer, VersionsAnswer},
};
use crate::{
    domain::{NewNode, NodePatch, NodeStatus, TenantId, TenantScope},
    runtime::{Accepted, Burden, Runtime},
    store::{Cursor, NodeFilter, OnRefusal, Refusal},
};

/// The calls on nodes.
pub struct NodesApi;

/// How the writes of nodes fail.
pub struct WriteFails;

impl Fails for WriteFails {
    const STATUSES: &'static [u16] = &[400, 408, 409, 413, 415, 422, 429, 500, 503];
}

/// How a listing fails.
pub struct ListFails;

impl Fails for ListFails {
    const STATUSES: &'static [u16] = &[422, 500, 503];
}

/// How the deletion of a node fails.
pub struct DeleteFails;

impl Fails for DeleteFails {
    const STATUSES: &'static [u16] = &[400, 404, 408, 413, 415, 422, 500, 503];
}

/// How a read of one node fails.
pub struct ReadFails;

impl Fails for ReadFails {
    const STATUSES: &'static [u16] = &[404, 422, 500, 503];
}

/// How a change of one node fails.
pub struct UpdateFails;

impl Fails for UpdateFails {
    const STATUSES: &'static [u16] = &[400, 404, 408, 409, 413, 415, 422, 429, 500, 503];
}

/// How a refresh fails.
pub struct RefreshFails;

impl Fails for RefreshFails {
    const STATUSES: &'static [u16] = &[400, 404, 408, 413, 415, 422, 429, 500, 503];
}

/// The answer to a new node.
#[derive(ApiResponse)]
pub enum CreateResponse {
    /// The node is stored, and will be embedded.
    #[oai(status = 202)]
    Accepted(Json<NodeAccepted>),
    /// The node is stored and embedded (`EMBEDDING_ASYNC=false`).
    #[oai(status = 200)]
    Embedded(Json<NodeAccepted>),
}

/// The answer to a batch.
#[derive(ApiResponse)]
pub enum BatchResponse {
    /// The valid nodes are stored, and will be embedded.
    #[oai(status = 202)]
    Accepted(Json<BatchAnswer>),
    /// The valid nodes are stored and embedded (`EMBEDDING_ASYNC=false`).
    #[oai(status = 200)]
    Embedded(Json<BatchAnswer>),
}

/// The answer to a listing.
#[derive(ApiResponse)]
pub enum ListResponse {
    /// A page of nodes.
    #[oai(status = 200)]
    Page(Written<NodePage>),
}

/// The answer to a read.
#[derive(ApiResponse)]
pub enum ReadResponse {
    /// The node.
    #[oai(status = 200)]
    Node(Written<Node>),
}

/// The answer to a change.
#[derive(ApiResponse)]
pub enum UpdateResponse {
    /// The node has another text, and will be embedded again.
    #[oai(status = 202)]
    Accepted(Json<NodeChanged>),
    /// The text is as it was, or is embedded already (`EMBEDDING_ASYNC=false`).
    #[oai(status = 200)]
    Done(Json<NodeChanged>),
}

/// The answer to a deletion.
#[derive(ApiResponse)]
pub enum DeleteResponse {
    /// The node is gone.
    #[oai(status = 204)]
    Deleted,
}

/// The answer to a refresh.
#[derive(ApiResponse)]
pub enum RefreshResponse {
    /// The node will be embedded again.
    #[oai(status = 202)]
    Accepted(Json<RefreshAnswer>),
    /// The node was embedded again (`EMBEDDING_ASYNC=false`).
    #[oai(status = 200)]
    Done(Json<RefreshAnswer>),
}

/// The answer to a look at a node's former vectors.
#[derive(ApiResponse)]
pub enum VersionsResponse {
    /// The former vectors.
    #[oai(status = 200)]
    Versions(Json<VersionsAnswer>),
}

/// The first node that the database refused, by its place in the request.
fn first_refusal(answers: &[Result<Accepted, Refusal>]) -> Option<(usize, &Refusal)> {
    answers.iter().enumerate().find_map(|(index, answer)| Some((index, answer.as_ref().err()?)))
}

#[OpenApi(tag = "Tag::Nodes")]
impl NodesApi {
    /// Take a node in
    ///
    /// The row is durable before the answer is sent. The vector follows; ask for the node to
    /// see its status.
    #[oai(path = "/nodes", method = "post", operation_id = "create_node")]
    async fn create(
        &self,
        Data(runtime): Data<&Runtime>,
        node: JsonBody<NewNode>,
    ) -> Result<CreateResponse, Failure<WriteFails>> {
        let answer =
            runtime.ingest(vec![node.value], OnRefusal::KeepOthers, node.burden).await?.pop();
        let node = NodeAccepted::from(answer.ok_or_else(Problem::unanswered)??);
        Ok(match runtime.is_async() {
            true => CreateResponse::Accepted(Json(node)),
            false => CreateResponse::Embedded(Json(node)),
        })
    }

    /// Take many nodes in
    ///
    /// An invalid node is refused in its place, unless `continue_on_error` is false. A limit or
    /// an outage fails the request as a whole, and then nothing is created.
    #[oai(path = "/nodes/batch", method = "post", operation_id = "create_nodes")]
    async fn create_batch(
        &self,
        Data(runtime): Data<&Runtime>,
        batch: JsonBody<NodeBatch>,
    ) -> Result<BatchResponse, Failure<WriteFails>> {
        let JsonBody { value: NodeBatch { nodes, on_refusal }, burden } = batch;
        let mut valid = Vec::with_capacity(nodes.len());
        let mut refused = Vec::with_capacity(nodes.len());
        for node in nodes {
            match node {
                Ok(node) => {
                    valid.push(node);
                    refused.push(None);
                }
                Err(node) => refused.push(Some(node)),
            }
        }
        let owners: Vec<TenantId> = valid.iter().map(|node| node.tenant_id.clone()).collect();
        let answers = runtime.ingest(valid, on_refusal, burden).await?;
        if on_refusal == OnRefusal::KeepNone
            && let Some((index, refusal)) = first_refusal(&answers)
        {
            return Err(Problem::from(refusal.clone()).of(&format!("nodes[{index}]")).into());
        }
        let created = answers.iter().flatten().count() as u64;
        let mut answers = answers.into_iter().zip(owners);
        let mut results = Vec::with_capacity(refused.len());
        for place in refused {
            results.push(match place {
                Some(node) => BatchResult::Refused(BatchRefused {
                    error: node.error.to_string(),
                    tenant_id: node.tenant_id.into(),
                }),
                None => match answers.next().ok_or_else(Problem::unanswered)? {
                    (Ok(accepted), _) => BatchResult::Accepted(accepted.into()),
                    (Err(refusal), tenant_id) => BatchResult::Refused(BatchRefused {
                        error: refusal.to_string(),
                        tenant_id: tenant_id.into(),
                    }),
                },
            });
        }
        let failed = results.len() as u64 - created;
        let answer = Json(BatchAnswer { created, failed, results });
        Ok(match runtime.is_async() {
            true => BatchResponse::Accepted(answer),
            false => BatchResponse::Embedded(answer),
        })
    }

    /// List nodes
    ///
    /// The oldest come first. To see all, ask with the `next_cursor` of each answer as `cursor` until
    /// it is null: where few of many nodes match, a page may hold fewer than `limit` before that.
    #[oai(path = "/nodes", method = "get", operation_id = "list_nodes")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter of the call")]
    async fn list(
        &self,
        Data(runtime): Data<&Runtime>,
        /// Rows at most; taken as the nearest number from 1 to 1000.
        limit: Query<Limit>,
        /// Rows to pass over; at most 50000.
        offset: Query<Offset>,
        /// Where to begin: the `next_cursor` of an earlier answer. Not together with `offset`.
        cursor: Query<PageCursor>,
        /// Only nodes with (true) or without (false) a vector.
        has_embedding: Query<HasEmbedding>,
        /// Only nodes in this status.
        status: Query<NodeStatus>,
        /// Only nodes of this tenant; of every tenant when absent.
        tenant_id: Query<TenantId>,
    ) -> Result<ListResponse, Failure<ListFails>> {
        let offset_given = offset.0.map(|offset| offset.0);
        if offset_given.is_some() && cursor.0.is_some() {
            return Err(Invalid::new("cursor", "must not be given together with offset").into());
        }
        let offset = offset_given.unwrap_or_default();
        let from = cursor.0.map_or(Cursor { after: None, skip: offset }, |cursor| cursor.0);
        let filter = NodeFilter {
            scope: TenantScope::from_optional(tenant_id.0),
            has_embedding: has_embedding.0.map(|wanted| wanted.0),
            status: status.0,
            limit: limit.0.map_or(LIST_DEFAULT, |limit| limit.0),
            from,
        };
        let limit = filter.limit;
        let page = NodePage::new(runtime.list(filter).await?, limit, offset);
        Ok(ListResponse::Page(answer::page(&page)))
    }

    /// Show a node
    #[oai(path = "/nodes/:id", method = "get", operation_id = "get_node")]
    async fn read(
        &self,
        Data(runtime): Data<&Runtime>,
        Data(memory): Data<&Memory>,
        /// The node.
        id: Path<Uuid>,
        /// The tenant that must own it; any when absent.
        tenant_id: Query<TenantId>,
        /// Whether the vector is wanted.
        include_embedding: Query<IncludeEmbedding>,
    ) -> Result<ReadResponse, Failure<ReadFails>> {
        let scope = TenantScope::from_optional(tenant_id.0);
        let include = include_embedding.0.is_some_and(|wanted| wanted.0);
        Ok(ReadResponse::Node(answer::node(runtime, memory, scope, id.0, include).await?))
    }

    /// Change a node
    ///
    /// The body is a JSON merge patch (RFC 7396) of the node's `props`, `metadata` and
    /// `payload_ref`. A change of the text makes the node `queued`, and its vector follows; until
    /// then the old one stays. With the same text it keeps its vector and status. A limit fails the
    /// request, and then nothing is changed; after an outage, ask for the node.
    #[oai(path = "/nodes/:id", method = "patch", operation_id = "update_node")]
    async fn update(
        &self,
        Data(runtime): Data<&Runtime>,
        Data(memory): Data<&Memory>,
        /// The node.
        id: Path<Uuid>,
        /// The tenant that must own it; `default` when absent.
        tenant_id: Query<TenantId>,
        patch: JsonBody<NodePatch>,
    ) -> Result<UpdateResponse, Failure<UpdateFails>> {
        let scope = TenantScope::of_write(tenant_id.0);
        let JsonBody { value: patch, burden } = patch;
        let stored = memory.for_stored(runtime, &scope, id.0, Use::Change).await?;
        let burden = Burden::new(burden.weight, (burden, stored.room));
        let node = NodeChanged::from(runtime.edit(scope, id.0, patch, burden).await?);
        Ok(match node.job_id {
            Some(_) => UpdateResponse::Accepted(Json(node)),
            None => UpdateResponse::Done(Json(node)),
        })
    }

    /// Delete a node
    ///
    /// Its jobs end with it.
    #[oai(path = "/nodes/:id", method = "delete", operation_id = "delete_node")]
    async fn delete(
        &self,
        Data(runtime): Data<&Runtime>,
        /// The node.
        id: Path<Uuid>,
        /// The tenant that must own it; `default` when absent.
        tenant_id: Query<TenantId>,
        _body: NoBody,
    ) -> Result<DeleteResponse, Failure<DeleteFails>> {
        let scope = TenantScope::of_write(tenant_id.0);
        runtime.delete(scope, id.0).await?;
        Ok(DeleteResponse::Deleted)
    }

    /// Show a node by the id that another program has for it
    ///
    /// That is its property `external_id`.
    #[oai(path = "/nodes/by-external-id", method = "get", operation_id = "get_node_by_external_id")]
    async fn read_by_external_id(
        &self,
        Data(runtime): Data<&Runtime>,
        Data(memory): Data<&Memory>,
        /// The id.
        external_id: RequiredQuery<ExternalId>,
        /// The tenant that must own it; any when absent.
        tenant_id: Query<TenantId>,
    ) -> Result<ReadResponse, Failure<ReadFails>> {
        let scope = TenantScope::from_optional(tenant_id.0);
        let id = runtime.id_by_external_id(&scope, &external_id.0.0).await?;
        let missing = "there is no node of this external_id; check it and tenant_id";
        let id = id.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, missing))?;
        Ok(ReadResponse::Node(answer::node(runtime, memory, scope, id, false).await?))
    }

    /// Show the former vectors of a node
    ///
    /// A database that ActiveKG has made keeps them; in another there are none.
    #[oai(path = "/nodes/:id/versions", method = "get", operation_id = "get_node_versions")]
    async fn versions(
        &self,
        Data(runtime): Data<&Runtime>,
        /// The node.
        id: Path<Uuid>,
        /// Entries at most, the newest; taken as the nearest number from 1 to 100.
        limit: Query<VersionsLimit>,
        /// The tenant that must own it; any when absent.
        tenant_id: Query<TenantId>,
    ) -> Result<VersionsResponse, Failure<ReadFails>> {
        let scope = TenantScope::from_optional(tenant_id.0);
        let limit = limit.0.map_or(VERSIONS_DEFAULT, |limit| limit.0);
        let versions = runtime.versions(&scope, id.0, limit).await?;
        Ok(VersionsResponse::Versions(Json(VersionsAnswer::new(id.0, versions))))
    }

    /// Embed a node again
    #[oai(path = "/nodes/:id/refresh", method = "post", operation_id = "refresh_node")]
    async fn refresh(
        &self,
        Data(runtime): Data<&Runtime>,
        /// The node.
        id: Path<Uuid>,
        /// The tenant that must own it; any when absent.
        tenant_id: Query<TenantId>,
        _body: NoBody,
    ) -> Result<RefreshResponse, Failure<RefreshFails>> {
        let scope = TenantScope::from_optional(tenant_id.0);
        let node = runtime.refresh(scope, id.0).await?;
        let answer =
            Json(RefreshAnswer { id: node.id, status: node.status.into(), job_id: node.job_id });
        Ok(match runtime.is_async() {
            true => RefreshResponse::Accepted(answer),
            false => RefreshResponse::Done(answer),
        })
    }
}
