//! The tables of Vecmill as sea-orm entities.

pub mod node;
