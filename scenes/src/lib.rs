//! Scenes: a procedural world of coloured shapes, with captions, questions and an exact checker.
//!
//! One generator drives understanding, drawing and reconstruction, and a pixel parser whose error rate is itself
//! tested says what a picture shows, so no judge model is needed.

mod checker;
mod edit;
mod language;
mod mistake;
mod render;
mod verdict;
mod world;

pub use checker::Checker;
pub use edit::{EDITS, Edit, edit};
pub use language::{Category, Noun, Prompt, Question, caption, hard_question, prompt, question, read};
pub use mistake::mistake;
pub use render::render;
pub use verdict::{Seen, Verdict};
pub use world::{Colour, Object, Relation, Scene, SceneRng, Shape, Size, Split};
