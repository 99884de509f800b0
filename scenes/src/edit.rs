//! Instructions that change a scene, and the scene that they lead to.

use super::world::{Colour, Object, Scene, SceneRng, Shape, Size, Split};

/// An instruction with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Kind, for tables.
    pub kind: &'static str,
    /// The words.
    pub text: String,
    /// What the picture shows afterwards; all else stays where it is.
    pub scene: Scene,
}

/// Kinds of instructions.
pub const EDITS: [&str; 4] = ["recolour", "reshape", "resize", "remove"];

/// A random instruction for a scene, whose result belongs to the split and shows no withheld pair; nothing if none was
/// found in a few tries.
pub fn edit(rng: &mut SceneRng, split: Split, scene: &Scene) -> Option<Edit> {
    (0..16).find_map(|_| {
        let kind = rng.pick(&EDITS);
        let at = rng.below(scene.objects.len());
        let (text, objects) = change(kind, rng, &scene.objects, at)?;
        let after = Scene { objects, background: scene.background };
        let new = after.objects.iter().any(|o| Object::withheld(o.colour, o.shape));
        (!new && split.holds(&after)).then_some(Edit { kind, text, scene: after })
    })
}

fn change(kind: &str, rng: &mut SceneRng, objects: &[Object], at: usize) -> Option<(String, Vec<Object>)> {
    let old = objects[at];
    // "it" when there is nothing else, else a name that fits one object only
    let name = if objects.len() == 1 {
        "it".to_owned()
    } else if objects.iter().filter(|o| o.shape == old.shape).count() == 1 {
        format!("the {}", old.shape.name())
    } else if objects.iter().filter(|o| o.shape == old.shape && o.colour == old.colour).count() == 1 {
        format!("the {} {}", old.colour.name(), old.shape.name())
    } else {
        return None;
    };
    let now = if rng.chance(0.5) { "now " } else { "" };
    let mut new = objects.to_vec();
    let text = match kind {
        "recolour" => {
            let colour = rng.pick(&Colour::ALL);
            if colour == old.colour {
                return None;
            }
            new[at].colour = colour;
            format!("{now}make {name} {}", colour.name())
        }
        "reshape" => {
            let shape = rng.pick(&Shape::ALL);
            if shape == old.shape {
                return None;
            }
            new[at].shape = shape;
            format!("{now}turn {name} into a {}", shape.name())
        }
        "resize" => {
            let (size, word) = match old.size {
                Size::Small => (Size::Large, "larger"),
                Size::Large => (Size::Small, "smaller"),
            };
            new[at] = Object { size, ..old }.in_its_cell();
            format!("{now}make {name} {word}")
        }
        _ if objects.len() > 1 => {
            new.remove(at);
            format!("{now}remove {name}")
        }
        _ => return None,
    };
    Some((text, new))
}

#[cfg(test)]
mod tests {
    use super::super::{Checker, render};
    use super::*;

    #[test]
    fn every_result_can_be_read_and_differs_in_one_object() {
        let checker = Checker::new(64);
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..1000 {
            let mut rng = SceneRng::new(Split::Test, 21, i);
            let scene = Scene::random(&mut rng, Split::Test, 1, 3);
            let Some(e) = edit(&mut rng, Split::Test, &scene) else { continue };
            seen.insert(e.kind);
            let img = render(&e.scene, 64);
            assert!(checker.shows(&img, &e.scene), "{e:?} read as {:?}", checker.see(&img));
            assert!(!checker.shows(&img, &scene), "{e:?} looks like {scene:?}");
            let kept = scene.objects.iter().filter(|o| e.scene.objects.contains(o)).count();
            assert_eq!(kept, scene.objects.len() - 1, "{e:?} of {scene:?}");
        }
        assert_eq!(seen.len(), EDITS.len());
    }
}
