//! What was seen in a picture, against what a prompt asks for.

use super::language::{Noun, Prompt};
use super::world::{CANVAS, Colour, Scene, Shape, Size};

/// An object that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Nearest palette colour.
    pub colour: Colour,
    /// Shape, where one is close enough.
    pub shape: Option<Shape>,
    /// Size.
    pub size: Size,
    /// Centre of its box, as shares of the canvas.
    pub centre: (f64, f64),
}

/// How well a picture shows a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Everything asked for is there, and nothing else.
    pub strict: bool,
    /// Everything asked for is there in the asked number; other things may be too.
    pub lenient: bool,
    /// Share of the asked things (each noun, the relation) that is there.
    pub soft: f64,
}

/// Objects against a prompt.
pub(super) fn judge(seen: &[Seen], prompt: &Prompt) -> Verdict {
    let fitting = |n: &Noun| -> Vec<&Seen> {
        seen.iter()
            .filter(|s| {
                n.colour.is_none_or(|c| c == s.colour)
                    && s.shape.is_some_and(|shape| n.shape.is_none_or(|x| x == shape))
                    && n.size.is_none_or(|x| x == s.size)
            })
            .collect()
    };
    let found: Vec<Vec<&Seen>> = prompt.nouns.iter().map(fitting).collect();
    // "a diamond and a diamond" asks for two
    let needed = |n: &Noun| -> usize {
        let same = |m: &&Noun| Noun { count: n.count, ..**m } == *n;
        prompt.nouns.iter().filter(same).map(|m| m.count).sum()
    };
    let mut atoms: Vec<bool> = prompt.nouns.iter().zip(&found).map(|(n, f)| f.len() == needed(n)).collect();
    if let (Some(relation), [a, b, ..]) = (prompt.relation, &found[..]) {
        let holds =
            a.iter().any(|a| b.iter().any(|b| relation.holds(a.centre.0 - b.centre.0, a.centre.1 - b.centre.1, 1.0)));
        atoms.push(holds);
    }
    let right = atoms.iter().filter(|a| **a).count();
    let lenient = right == atoms.len();
    let asked: usize = prompt.nouns.iter().map(|n| n.count).sum();
    Verdict { strict: lenient && seen.len() == asked, lenient, soft: right as f64 / atoms.len().max(1) as f64 }
}

/// Whether a scene is what a prompt asks for.
pub(super) fn fits(scene: &Scene, prompt: &Prompt) -> bool {
    let at = |v: i64| v as f64 / CANVAS as f64;
    let seen = |o: &super::Object| Seen {
        colour: o.colour,
        shape: Some(o.shape),
        size: o.size,
        centre: (at(o.centre.0), at(o.centre.1)),
    };
    judge(&scene.objects.iter().map(seen).collect::<Vec<_>>(), prompt).strict
}
