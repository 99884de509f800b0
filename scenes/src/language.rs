//! Captions, drawing prompts and questions, each with the meaning that the checker or the answer is computed from.

use super::world::{Colour, Object, Relation, Scene, SceneRng, Shape, Size, Split, Wish};

/// "two large red circles": how many, and what is said of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noun {
    /// Number of objects, at least 1.
    pub count: usize,
    /// Size, where it is said.
    pub size: Option<Size>,
    /// Colour, where it is said.
    pub colour: Option<Colour>,
    /// Shape, where it is said; "object" otherwise.
    pub shape: Option<Shape>,
}

const NUMBERS: [&str; 7] = ["no", "one", "two", "three", "four", "five", "six"];

impl Noun {
    fn of(o: &Object) -> Self {
        Self { count: 1, size: None, colour: Some(o.colour), shape: Some(o.shape) }
    }

    /// Whether an object is one of these.
    pub fn fits(&self, o: &Object) -> bool {
        self.colour.is_none_or(|c| c == o.colour)
            && self.shape.is_none_or(|s| s == o.shape)
            && self.size.is_none_or(|s| s == o.size)
    }

    /// Words after the article or number.
    fn words(&self) -> String {
        let mut w = Vec::new();
        w.extend(self.size.map(Size::name));
        w.extend(self.colour.map(Colour::name));
        w.push(match self.shape {
            Some(s) if self.count == 1 => s.name(),
            Some(s) => s.plural(),
            None if self.count == 1 => "object",
            None => "objects",
        });
        w.join(" ")
    }

    /// "a red circle", "an orange star", "two red circles".
    pub fn phrase(&self) -> String {
        let words = self.words();
        match self.count {
            1 if words.starts_with(['a', 'e', 'i', 'o']) => format!("an {words}"),
            1 => format!("a {words}"),
            n => format!("{} {words}", NUMBERS.get(n).copied().unwrap_or("many")),
        }
    }
}

/// What a picture is asked to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The words.
    pub text: String,
    /// Everything that must be there, and nothing else.
    pub nouns: Vec<Noun>,
    /// How the first stands to the second.
    pub relation: Option<Relation>,
}

/// Kinds of drawing prompts, in the manner of GenEval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// "a circle"
    Single,
    /// "a red circle"
    Colour,
    /// "a circle and a star"
    Two,
    /// "a red circle and a blue star"
    Binding,
    /// "a red circle above a blue star"
    Position,
    /// "three red circles"
    Count,
}

impl Category {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Single, Self::Colour, Self::Two, Self::Binding, Self::Position, Self::Count];

    /// What training draws from: the kinds that take more than one look come more often.
    pub const PRACTICE: [Self; 13] = [
        Self::Single,
        Self::Colour,
        Self::Two,
        Self::Two,
        Self::Two,
        Self::Binding,
        Self::Position,
        Self::Position,
        Self::Position,
        Self::Position,
        Self::Count,
        Self::Count,
        Self::Count,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        ["single", "colour", "two", "binding", "position", "count"][self as usize]
    }
}

fn noun(rng: &mut SceneRng, colour: bool) -> Noun {
    loop {
        let (c, s) = (rng.pick(&Colour::ALL), rng.pick(&Shape::ALL));
        if !Object::withheld(c, s) {
            return Noun { count: 1, size: None, colour: colour.then_some(c), shape: Some(s) };
        }
    }
}

/// A prompt of a category and a scene of the split that shows exactly it.
pub fn prompt(rng: &mut SceneRng, split: Split, category: Category) -> (Prompt, Scene) {
    loop {
        let coloured = !matches!(category, Category::Single | Category::Two);
        let first = noun(rng, coloured);
        let second = noun(rng, coloured);
        let two = matches!(category, Category::Two | Category::Binding | Category::Position);
        if two && first.shape == second.shape {
            continue;
        }
        let nouns = match category {
            Category::Single | Category::Colour => vec![first],
            Category::Count => vec![Noun { count: 2 + rng.below(3), ..first }],
            _ => vec![first, second],
        };
        let wishes: Vec<Wish> =
            nouns.iter().flat_map(|n| std::iter::repeat_n((n.colour, n.shape, n.size), n.count)).collect();
        if category != Category::Position {
            let text = nouns.iter().map(Noun::phrase).collect::<Vec<_>>().join(" and ");
            return (Prompt { text, nouns, relation: None }, Scene::with(rng, split, &wishes));
        }
        let relation = rng.pick(&Relation::ALL);
        let scene = Scene::with(rng, split, &wishes);
        if scene.objects[0].is_clearly(relation, &scene.objects[1]) {
            let text = format!("{} {} {}", nouns[0].phrase(), relation.name(), nouns[1].phrase());
            return (Prompt { text, nouns, relation: Some(relation) }, scene);
        }
    }
}

/// All objects of a scene in words, as one reads the picture: "a red circle, two blue stars and a black square".
pub fn caption(scene: &Scene) -> String {
    let mut nouns: Vec<Noun> = Vec::new();
    for o in scene.in_reading_order() {
        match nouns.iter_mut().find(|n| n.fits(o)) {
            Some(n) => n.count += 1,
            None => nouns.push(Noun::of(o)),
        }
    }
    let phrases: Vec<String> = nouns.iter().map(Noun::phrase).collect();
    match phrases.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => "nothing".into(),
    }
}

/// What a description in the words of [`caption`] asks for; nothing where it says something else.
pub fn read(text: &str) -> Option<Prompt> {
    let text = text.trim().trim_end_matches('.').replace(", ", " and ");
    let noun = |phrase: &str| -> Option<Noun> {
        let mut words = phrase.split_whitespace();
        let count = match words.next()? {
            "a" | "an" => 1,
            number => NUMBERS.iter().position(|n| *n == number).filter(|n| *n > 0)?,
        };
        let mut noun = Noun { count, size: None, colour: None, shape: None };
        let rest: Vec<&str> = words.collect();
        let (last, before) = rest.split_last()?;
        noun.shape = Shape::ALL.into_iter().find(|s| *last == s.name() || *last == s.plural());
        for word in before {
            let colour = Colour::ALL.into_iter().find(|c| c.name() == *word);
            let size = [Size::Small, Size::Large].into_iter().find(|s| s.name() == *word);
            match (colour, size) {
                (Some(_), _) => noun.colour = colour,
                (_, Some(_)) => noun.size = size,
                _ => return None,
            }
        }
        noun.shape.map(|_| noun)
    };
    let nouns = text.split(" and ").map(noun).collect::<Option<Vec<_>>>()?;
    Some(Prompt { text, nouns, relation: None })
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Kind, for tables.
    pub kind: &'static str,
    /// The words.
    pub text: String,
    /// The one right answer.
    pub answer: String,
}

/// A question about a scene. Yes and no are equally likely within each kind; a question that has no single answer is
/// not asked.
pub fn question(rng: &mut SceneRng, scene: &Scene) -> Question {
    question_among(rng, scene, &["exist", "count", "colour", "shape", "size", "relation", "compare"])
}

/// A question of the kinds that take looking at more than one place of the picture; training asks these more often.
pub fn hard_question(rng: &mut SceneRng, scene: &Scene) -> Question {
    question_among(rng, scene, &["count", "count", "colour", "colour", "relation", "mixed", "mixed"])
}

fn question_among(rng: &mut SceneRng, scene: &Scene, kinds: &[&'static str]) -> Question {
    loop {
        let kind = rng.pick(kinds);
        if let Some((text, answer)) = ask(kind, rng, scene) {
            return Question { kind, text, answer };
        }
    }
}

fn ask(kind: &str, rng: &mut SceneRng, scene: &Scene) -> Option<(String, String)> {
    let yes_no = |b: bool| if b { "yes" } else { "no" }.to_owned();
    let object = rng.pick(&scene.objects);
    let unique = |n: &Noun| scene.objects.iter().filter(|o| n.fits(o)).count() == 1;
    match kind {
        "exist" => {
            let want = rng.chance(0.5);
            let asked = if want { Noun::of(&object) } else { noun(rng, true) };
            let there = scene.objects.iter().any(|o| asked.fits(o));
            (there == want).then(|| (format!("is there {}?", asked.phrase()), yes_no(there)))
        }
        // one object's colour with another's shape: what a model says yes to that looks for words instead of objects
        "mixed" => {
            let want = rng.chance(0.5);
            let shape = if want { object.shape } else { rng.pick(&scene.objects).shape };
            let asked = Noun { count: 1, size: None, colour: Some(object.colour), shape: Some(shape) };
            let there = scene.objects.iter().any(|o| asked.fits(o));
            // of what training never shows it would only say no
            let fair = there == want && !Object::withheld(object.colour, shape);
            fair.then(|| (format!("is there {}?", asked.phrase()), yes_no(there)))
        }
        "count" => {
            let of_shape = rng.chance(0.5);
            let asked = Noun {
                count: 2,
                size: None,
                colour: (!of_shape).then_some(object.colour),
                shape: of_shape.then_some(object.shape),
            };
            let n = scene.objects.iter().filter(|o| asked.fits(o)).count();
            Some((format!("how many {} are there?", asked.words()), NUMBERS[n].to_owned()))
        }
        "colour" => {
            let asked = Noun { count: 1, size: None, colour: None, shape: Some(object.shape) };
            unique(&asked).then(|| (format!("what colour is the {}?", asked.words()), object.colour.name().to_owned()))
        }
        "shape" => {
            let asked = Noun { count: 1, size: None, colour: Some(object.colour), shape: None };
            unique(&asked).then(|| (format!("what shape is the {}?", asked.words()), object.shape.name().to_owned()))
        }
        "size" => {
            let asked = Noun::of(&object);
            unique(&asked).then(|| (format!("is the {} small or large?", asked.words()), object.size.name().to_owned()))
        }
        "compare" => {
            let [a, b] = &scene.objects[..] else { return None };
            let larger = rng.chance(0.5);
            let answer = if (a.size == Size::Large) == larger { a } else { b };
            let (a, b) = (Noun::of(a), Noun::of(b));
            let word = if larger { "larger" } else { "smaller" };
            let fair = scene.objects[0].size != scene.objects[1].size && a != b;
            fair.then(|| (format!("which of the two is {word}?"), format!("the {}", Noun::of(answer).words())))
        }
        _ => {
            let other = rng.pick(&scene.objects);
            let (a, b, relation) = (Noun::of(&object), Noun::of(&other), rng.pick(&Relation::ALL));
            let want = rng.chance(0.5);
            let holds = object.is(relation, &other);
            let clear = holds || Relation::ALL.iter().any(|r| *r != relation && object.is(*r, &other));
            let fair = object != other && unique(&a) && unique(&b) && clear && holds == want;
            fair.then(|| (format!("is the {} {} the {}?", a.words(), relation.name(), b.words()), yes_no(holds)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Checker, render};
    use super::*;

    #[test]
    fn captions_are_read_back_as_what_they_say() {
        let checker = Checker::new(64);
        for i in 0..300 {
            let scene = Scene::random(&mut SceneRng::new(Split::Test, 3, i), Split::Test, 1, 4);
            let said = read(&caption(&scene)).unwrap();
            assert!(checker.check(&render(&scene, 64), &said).strict, "{said:?} of {scene:?}");
        }
        assert_eq!(read("a photo of a cat"), None);
    }
}
