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

use super::memory::Held;
use crate::heavy;

/// A JSON answer, written already. The OpenAPI document shows it as `Json<T>`.
pub struct Written<T> {
    bytes: Bytes,
    what: PhantomData<fn() -> T>,
}

impl<T: ToJSON + Send + 'static> Written<T> {
    /// Writes what few bytes are enough for.
    pub fn small(value: &T) -> Self {
        Self::of(bytes_of(value.to_json()).into())
    }

    /// Writes what may take long; `room` is the room for it, as far as it needs some of its own.
    pub async fn large(value: T, room: Option<Held>) -> Self {
        let bytes = heavy::apart(move || {
            let json = value.to_json();
            drop(value);
            bytes_of(json)
        });
        let bytes = bytes.await;
        match room {
            None => Self::of(bytes.into()),
            Some(mut room) => {
                // A client that reads slowly keeps no more than what is left for it to read.
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
    json.map_or_else(|| b"null".to_vec(), |json| json.to_string().into_bytes())
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
