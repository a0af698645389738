//! What the values of a request weigh, and the room that is kept for them.

use crate::heavy::Weight;

/// The room of a request's values, kept as long as they are there, also when the client hangs up.
pub struct Burden {
    /// How much work the values are.
    pub weight: Weight,
    _room: Box<dyn Send>,
}

impl Burden {
    /// Values of this weight, with their room.
    pub fn new(weight: Weight, room: impl Send + 'static) -> Self {
        Self { weight, _room: Box::new(room) }
    }
}
