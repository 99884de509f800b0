//! The small talk that the nano model is trained on besides pictures, and the corpus of its tokenizer.

use crate::scenes::{self, Category, Scene, SceneRng, Split};
use qlip::data::caption;

/// Questions and answers without a picture.
pub const TALK: &[(&str, &str)] = &[
    ("hello", "hello! show me a picture, or ask me to draw something."),
    ("hi", "hi! i can look at pictures and draw coloured shapes."),
    ("hey", "hi! i can look at pictures and draw coloured shapes."),
    ("good morning", "good morning! what shall i draw?"),
    ("how are you?", "i am fine, thank you. what shall i draw?"),
    ("who are you?", "i am a small model that sees, chats and draws."),
    ("what are you?", "i am a small model that sees, chats and draws."),
    ("what is your name?", "i am the unified nano model."),
    ("what can you do?", "i can draw shapes and small photos, and answer questions about pictures."),
    ("help", "try: draw a red circle above a blue square."),
    ("can you draw?", "yes. try: draw a red circle above a blue square."),
    ("can you see?", "yes. give me a picture with /image and ask about it."),
    (
        "what can you draw?",
        "circles, squares, triangles, diamonds, crosses, stars, and small photos of animals and vehicles.",
    ),
    ("which colours do you know?", "red, green, blue, yellow, purple, orange, cyan and black."),
    ("which shapes do you know?", "circle, square, triangle, diamond, cross and star."),
    ("which animals do you know?", "bird, cat, deer, dog, frog and horse."),
    ("which vehicles do you know?", "airplane, automobile, ship and truck."),
    ("how big are your pictures?", "64 by 64 pixels."),
    ("thank you", "you are welcome."),
    ("thanks", "you are welcome."),
    ("bye", "goodbye!"),
    ("goodbye", "goodbye!"),
    ("yes", "good. what shall i draw?"),
    ("no", "all right. what shall i draw?"),
    ("tell me a joke", "i only know shapes: a circle has no point."),
    ("what can i ask you?", "try: draw a red circle above a blue square. or show me a picture and ask what is in it."),
    ("draw a house", CANNOT_DRAW),
    ("draw a person", CANNOT_DRAW),
    ("draw a tree", CANNOT_DRAW),
    ("draw a mountain", CANNOT_DRAW),
    ("draw the sea at night", CANNOT_DRAW),
    ("paint a portrait of me", CANNOT_DRAW),
    ("draw something", "what shall i draw? try: draw a red circle above a blue square."),
    ("write a poem", CANNOT_TALK),
    ("write a program", CANNOT_TALK),
    ("what is the capital of france?", CANNOT_TALK),
    ("who is the president?", CANNOT_TALK),
    ("what is the weather like?", CANNOT_TALK),
    ("what is two plus two?", CANNOT_TALK),
    ("tell me a story", CANNOT_TALK),
    ("translate this", CANNOT_TALK),
];

/// What is said to a request for a drawing that was never learned.
const CANNOT_DRAW: &str = "i cannot draw that. i draw coloured shapes, and small photos of animals and vehicles.";

/// What is said to a question that is not about pictures.
const CANNOT_TALK: &str = "i do not know that. i am a small model: i draw shapes and answer questions about pictures.";

/// Ends of a request for a drawing and words about it in one reply.
pub const THEN_DESCRIBE: &[&str] =
    &[", then describe it", " and describe it", ", then say what you drew", " and tell me what is in it"];

/// Ways to ask for a drawing of what follows.
pub const DRAW: &[&str] = &["draw ", "draw ", "draw me ", "please draw ", "paint ", "make a picture of ", "show me "];

/// Ways to ask what a picture shows.
pub const DESCRIBE: &[&str] = &[
    "what is in the picture?",
    "what is in the picture?",
    "describe the picture.",
    "what do you see?",
    "what is this?",
];

/// The question by which the model judges a drawing of its own; answered by yes or no.
pub const CHECK: &str = "is this right?";

/// Lines that cover what the tokenizer has to spell.
pub fn lines(classes: &[String], scenes: usize) -> Vec<String> {
    let mut out = Vec::new();
    for (q, a) in TALK {
        out.extend([(*q).to_owned(), (*a).to_owned()]);
    }
    out.extend(DRAW.iter().chain(DESCRIBE).map(|s| (*s).to_owned()));
    for c in classes {
        out.extend([caption(c), c.clone(), format!("is this a {c}?")]);
    }
    for i in 0..scenes as u64 {
        let mut rng = SceneRng::new(Split::Train, 0, i);
        let scene = Scene::random(&mut rng, Split::Train, 1, 4);
        let q = scenes::question(&mut rng, &scene);
        let category = rng.pick(&Category::ALL);
        let (p, _) = scenes::prompt(&mut rng, Split::Train, category);
        out.extend([scenes::caption(&scene), q.text, q.answer, p.text]);
    }
    out
}
