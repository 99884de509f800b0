//! What a scene is: objects on a 3 x 3 grid of cells, drawn from counter-based random numbers.

/// Side of the canvas in the integer units of positions and radii.
pub const CANVAS: i64 = 4096;
/// Positions move in steps of four pixels at 64 pixels a side.
const STEP: i64 = CANVAS / 16;
/// Steps between the middles of neighbouring cells.
const CELL: i64 = 5;
/// Raise it when any scene changes: it keys the random numbers.
const SUITE: u64 = 3;

/// Middle of a row or column of cells: 12, 32 and 52 pixels at 64.
fn middle(cell: usize) -> i64 {
    (3 + CELL * cell as i64) * STEP
}

/// Palette of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Orange,
    Cyan,
    Black,
}

impl Colour {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Orange, Self::Cyan, Self::Black];

    /// Its word.
    pub fn name(self) -> &'static str {
        ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "black"][self as usize]
    }

    /// Its sRGB value.
    pub fn rgb(self) -> [u8; 3] {
        [
            [214, 39, 40],
            [44, 150, 60],
            [38, 84, 214],
            [240, 208, 40],
            [148, 64, 190],
            [244, 130, 28],
            [60, 196, 214],
            [24, 24, 24],
        ][self as usize]
    }
}

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
    Star,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Circle, Self::Square, Self::Triangle, Self::Diamond, Self::Cross, Self::Star];

    /// Its word in the singular.
    pub fn name(self) -> &'static str {
        ["circle", "square", "triangle", "diamond", "cross", "star"][self as usize]
    }

    /// Its word in the plural.
    pub fn plural(self) -> &'static str {
        ["circles", "squares", "triangles", "diamonds", "crosses", "stars"][self as usize]
    }
}

/// Two sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Large,
}

impl Size {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// Its word.
    pub fn name(self) -> &'static str {
        ["small", "large"][self as usize]
    }

    /// Radius in canvas units.
    pub fn radius(self) -> i64 {
        [320, 544][self as usize]
    }

    /// Steps that an object may be away from the middle of its cell: half of the room that the cell leaves, less half
    /// of the smallest gap (2 pixels at 64).
    fn steps(self) -> i64 {
        ((CELL * STEP - 2 * self.radius()) / 2 - CANVAS / 64) / STEP
    }
}

/// Where one object is, seen from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// Its words.
    pub fn name(self) -> &'static str {
        ["left of", "right of", "above", "below"][self as usize]
    }

    /// Whether it holds for a displacement of a from b, both in units of a canvas of side `side`: clearly along the
    /// axis, by more than 8% of the canvas.
    pub fn holds(self, dx: f64, dy: f64, side: f64) -> bool {
        let (along, across) = match self {
            Self::LeftOf => (-dx, dy),
            Self::RightOf => (dx, dy),
            Self::Above => (-dy, dx),
            Self::Below => (dy, dx),
        };
        along > 1.2 * across.abs() && along > 0.08 * side
    }
}

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Object {
    /// Colour.
    pub colour: Colour,
    /// Shape.
    pub shape: Shape,
    /// Size.
    pub size: Size,
    /// Centre in canvas units.
    pub centre: (i64, i64),
}

impl Object {
    /// Pairs of colour and shape, one for every colour, that no training scene contains.
    pub fn withheld(colour: Colour, shape: Shape) -> bool {
        shape as usize == (colour as usize * 5 + 2) % 6
    }

    /// The same object, no farther from the middle of its cell than its size leaves room for.
    pub(super) fn in_its_cell(self) -> Self {
        let room = self.size.steps() * STEP;
        let inside = |v: i64| {
            let m = middle((v * 3 / CANVAS) as usize);
            v.clamp(m - room, m + room)
        };
        Self { centre: (inside(self.centre.0), inside(self.centre.1)), ..self }
    }

    /// Whether a relation holds by so much that the middles of the boxes show it too: a triangle's box and a star's lie
    /// lower or higher than their centres, by up to two pixels at 64.
    pub(super) fn is_clearly(&self, relation: Relation, other: &Self) -> bool {
        let shift = CANVAS / 32;
        let moved = |x, y| Self { centre: (self.centre.0 + x, self.centre.1 + y), ..*self };
        [(-shift, -shift), (-shift, shift), (shift, -shift), (shift, shift)]
            .into_iter()
            .all(|(x, y)| moved(x, y).is(relation, other))
    }

    /// Whether a relation holds between this object and another.
    pub fn is(&self, relation: Relation, other: &Self) -> bool {
        let (dx, dy) = (self.centre.0 - other.centre.0, self.centre.1 - other.centre.1);
        relation.holds(dx as f64, dy as f64, CANVAS as f64)
    }
}

/// Objects on a light background.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scene {
    /// Objects in distinct cells.
    pub objects: Vec<Object>,
    /// Grey level of the background.
    pub background: u8,
}

/// Scenes for training and for measuring never coincide: a hash of the content decides where a scene belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Fifteen of sixteen scenes.
    Train,
    /// The rest.
    Test,
}

impl Split {
    pub(super) fn holds(self, scene: &Scene) -> bool {
        let test = nn::rng::mix(scene.content_key()).is_multiple_of(16);
        test == (self == Self::Test)
    }
}

/// SplitMix64 keyed by suite, split and item: any item can be drawn without the ones before it.
#[derive(Debug, Clone)]
pub struct SceneRng(u64);

impl SceneRng {
    /// The stream of one item; `seed` separates trainings.
    pub fn new(split: Split, seed: u64, item: u64) -> Self {
        let key = [SUITE, split as u64, seed, item]
            .iter()
            .fold(0u64, |h, &k| nn::rng::mix(h ^ nn::rng::mix(k.wrapping_add(0x9E37_79B9_7F4A_7C15))));
        Self(key)
    }

    /// Next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        nn::rng::mix(self.0)
    }

    /// Uniform in 0..n (n below 2^32).
    pub fn below(&mut self, n: usize) -> usize {
        (((self.bits() >> 32) * n as u64) >> 32) as usize
    }

    /// One of a list.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// True with probability `share`.
    pub fn chance(&mut self, share: f64) -> bool {
        ((self.bits() >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// What a scene must contain before the rest is drawn: colour, shape, size where given.
pub type Wish = (Option<Colour>, Option<Shape>, Option<Size>);

impl Scene {
    /// A random scene of `min..=max` objects of this split, without withheld pairs.
    pub fn random(rng: &mut SceneRng, split: Split, min: usize, max: usize) -> Self {
        loop {
            let n = min + rng.below(max - min + 1);
            let scene = Self::place(rng, &vec![(None, None, None); n]);
            if split.holds(&scene) {
                return scene;
            }
        }
    }

    /// A scene of exactly the wished objects in random cells, of this split.
    pub fn with(rng: &mut SceneRng, split: Split, wishes: &[Wish]) -> Self {
        loop {
            let scene = Self::place(rng, wishes);
            if split.holds(&scene) {
                return scene;
            }
        }
    }

    fn place(rng: &mut SceneRng, wishes: &[Wish]) -> Self {
        let mut cells: Vec<usize> = (0..9).collect();
        let objects = wishes
            .iter()
            .map(|&(colour, shape, size)| {
                let cell = cells.swap_remove(rng.below(cells.len()));
                let (colour, shape) = loop {
                    let c = colour.unwrap_or_else(|| rng.pick(&Colour::ALL));
                    let s = shape.unwrap_or_else(|| rng.pick(&Shape::ALL));
                    if !Object::withheld(c, s) || (colour.is_some() && shape.is_some()) {
                        break (c, s);
                    }
                };
                let size = size.unwrap_or_else(|| rng.pick(&Size::ALL));
                let steps = size.steps();
                let mut at = |cell: usize| middle(cell) + (rng.below((2 * steps + 1) as usize) as i64 - steps) * STEP;
                let centre = (at(cell % 3), at(cell / 3));
                Object { colour, shape, size, centre }
            })
            .collect();
        Self { objects, background: rng.pick(&[236, 224, 246]) }
    }

    /// Objects by row of cells, then by column.
    pub(super) fn in_reading_order(&self) -> Vec<&Object> {
        let mut all: Vec<&Object> = self.objects.iter().collect();
        all.sort_by_key(|o| (o.centre.1 * 3 / CANVAS, o.centre.0 * 3 / CANVAS));
        all
    }

    /// A key that depends on nothing but the content, whatever the order of the objects.
    fn content_key(&self) -> u64 {
        let object = |o: &Object| {
            let code = [o.colour as u64, o.shape as u64, o.size as u64, o.centre.0 as u64, o.centre.1 as u64];
            code.iter().fold(SUITE, |h, &v| nn::rng::mix(h ^ v.wrapping_add(0x9E37_79B9_7F4A_7C15)))
        };
        self.objects.iter().map(object).fold(u64::from(self.background), u64::wrapping_add)
    }
}
