//! Scenes that a prompt does not describe, by the mistakes that models make: attributes that leak from one object to
//! the other, places that swap, numbers that are off by one.

use super::language::Prompt;
use super::verdict::fits;
use super::world::{Colour, Object, Scene, SceneRng, Shape, Split};

/// A scene like `scene`, which shows what `prompt` asks for, that does not show it.
pub fn mistake(rng: &mut SceneRng, split: Split, prompt: &Prompt, scene: &Scene) -> Scene {
    loop {
        let wrong = change(rng, split, scene);
        let withheld = wrong.objects.iter().any(|o| Object::withheld(o.colour, o.shape));
        if !withheld && split.holds(&wrong) && !fits(&wrong, prompt) {
            return wrong;
        }
    }
}

fn change(rng: &mut SceneRng, split: Split, scene: &Scene) -> Scene {
    let mut objects = scene.objects.clone();
    let (at, from) = (rng.below(objects.len()), rng.below(objects.len()));
    let leak = at != from && rng.chance(0.6);
    match rng.below(6) {
        0 | 1 => objects[at].shape = if leak { objects[from].shape } else { rng.pick(&Shape::ALL) },
        2 => objects[at].colour = if leak { objects[from].colour } else { rng.pick(&Colour::ALL) },
        3 => {
            let (a, b) = (objects[at].centre, objects[from].centre);
            objects[at] = Object { centre: b, ..objects[at] }.in_its_cell();
            objects[from] = Object { centre: a, ..objects[from] }.in_its_cell();
        }
        4 if objects.len() > 1 => {
            objects.remove(at);
        }
        kind => {
            // the same objects somewhere else, or one more of them
            if objects.len() == 1 || kind == 4 || rng.chance(0.6) {
                objects.push(objects[at]);
            }
            let wishes: Vec<_> = objects.iter().map(|o| (Some(o.colour), Some(o.shape), None)).collect();
            return Scene { background: scene.background, ..Scene::with(rng, split, &wishes) };
        }
    }
    Scene { objects, background: scene.background }
}

#[cfg(test)]
mod tests {
    use super::super::{Category, Checker, prompt, render};
    use super::*;

    #[test]
    fn the_checker_refuses_every_mistake() {
        let checker = Checker::new(64);
        for i in 0..1000 {
            let mut rng = SceneRng::new(Split::Test, 22, i);
            let (p, scene) = prompt(&mut rng, Split::Test, Category::ALL[i as usize % 6]);
            let wrong = mistake(&mut rng, Split::Test, &p, &scene);
            assert!(!checker.check(&render(&wrong, 64), &p).strict, "{p:?} {wrong:?}");
        }
    }
}
