//! JSON answers that may be large. They are written off the threads that others wait for, and keep the
//! room for them until the last byte was sent.

use std::marker::PhantomData;

use bytes::Bytes;
use poem::{Body, IntoResponse, Response};
use poem_openapi::{
    payload::{Json, Payload},
    registry::{MetaSchemaRef, Registry},
    types::{ToJSON, Type},
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    errors::Problem,
    memory::{Held, Memory, Stored, Use},
    views::{Node, NodePage},
};
use crate::{
    domain::TenantScope,
    heavy::{self, Weight},
    runtime::Runtime,
};

/// Nodes of a page that are written in about 100 µs: with more, others would wait.
const LIGHT_PAGE: usize = 50;

/// A page of nodes.
pub fn page(page: &NodePage) -> Written<NodePage> {
    let weight = if page.nodes.len() <= LIGHT_PAGE { Weight::Light } else { Weight::Heavy };
    weight.work(|| Written::small(page))
}

/// A node as it is shown, once there is room for it.
pub async fn node(
    runtime: &Runtime,
    memory: &Memory,
    scope: TenantScope,
    id: Uuid,
    include_embedding: bool,
) -> Result<Written<Node>, Problem> {
    let Stored { weight, room } = memory.for_stored(runtime, &scope, id, Use::Show).await?;
    let node = Node::from(runtime.node(scope, id, include_embedding, weight).await?);
    Ok(match weight {
        Weight::Light => Written::small(&node),
        Weight::Heavy => Written::large(node, room).await,
    })
}

/// A JSON answer, written already. The OpenAPI document shows it as `Json<T>`.
pub struct Written<T> {
    bytes: Bytes,
    what: PhantomData<fn() -> T>,
}

impl<T: ToJSON + Send + 'static> Written<T> {
    /// Writes what takes little room.
    fn small(value: &T) -> Self {
        Self::of(bytes_of(value.to_json()).into())
    }

    /// Writes what may take long; `room` is the room for it, as far as it needs some of its own.
    async fn large(value: T, room: Option<Held>) -> Self {
        // The room goes with the work: that goes on when the client hangs up.
        let written = heavy::apart(move || {
            let json = value.to_json();
            drop(value);
            let mut bytes = bytes_of(json);
            bytes.shrink_to_fit();
            (bytes, room)
        });
        match written.await {
            (bytes, None) => Self::of(bytes.into()),
            (bytes, Some(mut room)) => {
                // A client that reads slowly keeps the room of the answer, and no more.
                room.shrink_to(bytes.len());
                Self::of(Bytes::from_owner(Kept { bytes, _room: room }))
            }
        }
    }

    fn of(bytes: Bytes) -> Self {
        Self { bytes, what: PhantomData }
    }
}

fn bytes_of(json: Option<Value>) -> Vec<u8> {
    // With keys that are strings, JSON always can be written.
    json.and_then(|json| serde_json::to_vec(&json).ok()).unwrap_or_else(|| b"null".to_vec())
}

/// Bytes with their room.
struct Kept {
    bytes: Vec<u8>,
    _room: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Type> Payload for Written<T> {
    const CONTENT_TYPE: &'static str = Json::<T>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Type> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        let content_type = <Self as Payload>::CONTENT_TYPE;
        Response::builder().content_type(content_type).body(Body::from(self.bytes))
    }
}
