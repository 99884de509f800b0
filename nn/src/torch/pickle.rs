//! A pickle as a tree of plain values. Nothing in it is ever executed: calls that rebuild tensors are understood, every other
//! object is kept as something opaque.

use safetensors::Dtype;

/// A value's number in the tree.
pub(super) type Id = usize;

/// A tensor: its numbers are in a storage.
#[derive(Debug, Clone)]
pub(super) struct TensorAt {
    pub storage: String,
    pub dtype: Dtype,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// module.name of a class or function.
    Global(String),
    Storage(String, Dtype),
    Tensor(TensorAt),
    /// Anything else.
    Opaque,
}

/// What a pickle holds.
pub(super) struct Tree {
    nodes: Vec<Node>,
    pub root: Id,
}

impl Tree {
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }
    pub fn text(&self, id: Id) -> Option<&str> {
        match &self.nodes[id] {
            Node::Text(t) => Some(t),
            _ => None,
        }
    }
    /// Every storage that is spoken of.
    pub fn storages(&self, mut on: impl FnMut(&str, Dtype)) {
        for node in &self.nodes {
            if let Node::Storage(key, dtype) = node {
                on(key, *dtype);
            }
        }
    }
    /// Text keys of a dict with their values.
    pub fn entries(&self, id: Id) -> Vec<(&str, Id)> {
        match &self.nodes[id] {
            Node::Dict(d) => d.iter().filter_map(|(k, v)| Some((self.text(*k)?, *v))).collect(),
            _ => Vec::new(),
        }
    }
}

/// Bytes that are read from the front.
pub(super) struct Reader<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

type Read<T> = std::result::Result<T, String>;

impl<'a> Reader<'a> {
    pub fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len());
        let end = end.ok_or_else(|| format!("cut short at byte {}", self.at))?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }
    fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }
    /// A little-endian number of `n` bytes.
    pub fn number(&mut self, n: usize) -> Read<u64> {
        let mut word = [0u8; 8];
        word[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(word))
    }
    fn size(&mut self, n: usize) -> Read<usize> {
        usize::try_from(self.number(n)?).map_err(|_| "a length beyond memory".to_owned())
    }
    fn line(&mut self) -> Read<&'a str> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').ok_or("a line without an end")?;
        let line = std::str::from_utf8(&rest[..n]).map_err(|_| "a line that is not UTF-8")?;
        self.at += n + 1;
        Ok(line)
    }
    fn text(&mut self, n: usize) -> Read<String> {
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }
}

/// Reads one pickle from where the reader is.
pub(super) fn read(r: &mut Reader) -> Read<Tree> {
    let mut m = Machine::default();
    while !m.op(r)? {}
    let root = m.pop()?;
    Ok(Tree { nodes: m.nodes, root })
}

#[derive(Default)]
struct Machine {
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: std::collections::HashMap<u64, Id>,
}

impl Machine {
    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }
    fn pop(&mut self) -> Read<Id> {
        // what a mark protects is not taken by anything but the mark's own operation
        if self.marks.last().is_some_and(|&m| m >= self.stack.len()) {
            return Err("a value is missing".into());
        }
        self.stack.pop().ok_or_else(|| "a value is missing".into())
    }
    fn top(&self) -> Read<Id> {
        self.stack.last().copied().ok_or_else(|| "a value is missing".into())
    }
    fn marked(&mut self) -> Read<Vec<Id>> {
        let at = self.marks.pop().filter(|&m| m <= self.stack.len()).ok_or("a mark is missing")?;
        Ok(self.stack.split_off(at))
    }
    fn tuple(&mut self, n: usize) -> Read<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Read<Vec<_>>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }
    fn get(&mut self, key: u64) -> Read<()> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("no memo {key}"))?;
        self.stack.push(id);
        Ok(())
    }
    fn put(&mut self, key: u64) -> Read<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }
    fn append(&mut self, items: &[Id]) -> Read<()> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(l) => l.extend(items),
            // a list that is opaque takes what it is given
            Node::Opaque => {}
            _ => return Err("values are added to what is no list".into()),
        }
        Ok(())
    }
    fn set(&mut self, items: &[Id]) -> Read<()> {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(d) => d.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
            Node::Opaque => {}
            _ => return Err("keys are set in what is no dict".into()),
        }
        Ok(())
    }

    /// One operation; true at the end.
    fn op(&mut self, r: &mut Reader) -> Read<bool> {
        match r.byte()? {
            0x80 => drop(r.byte()?),
            0x95 => drop(r.take(8)?),
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.marked()?),
            b'2' => {
                let id = self.top()?;
                self.stack.push(id);
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Int(1)),
            0x89 => self.push(Node::Int(0)),
            b'K' => {
                let v = r.number(1)? as i64;
                self.push(Node::Int(v));
            }
            b'M' => {
                let v = r.number(2)? as i64;
                self.push(Node::Int(v));
            }
            b'J' => {
                let v = i64::from(r.number(4)? as u32 as i32);
                self.push(Node::Int(v));
            }
            op @ (b'I' | b'L') => {
                let line = r.line()?.trim_end_matches('L');
                let value = match (op, line) {
                    (b'I', "00") => 0,
                    (b'I', "01") => 1,
                    _ => line.parse().map_err(|_| format!("`{line}` is not a whole number"))?,
                };
                self.push(Node::Int(value));
            }
            0x8a => {
                let n = r.size(1)?;
                self.long(r, n)?;
            }
            0x8b => {
                let n = r.size(4)?;
                self.long(r, n)?;
            }
            b'F' => {
                r.line()?;
                self.push(Node::Opaque);
            }
            b'G' => {
                r.take(8)?;
                self.push(Node::Opaque);
            }
            op @ (b'X' | 0x8c | 0x8d | b'T' | b'U') => {
                let n = r.size(match op {
                    b'X' | b'T' => 4,
                    0x8d => 8,
                    _ => 1,
                })?;
                let text = r.text(n)?;
                self.push(Node::Text(text));
            }
            op @ (b'B' | b'C' | 0x8e | 0x96) => {
                let n = r.size(match op {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                })?;
                r.take(n)?;
                self.push(Node::Opaque);
            }
            b'V' => {
                let text = r.line()?.to_owned();
                self.push(Node::Text(text));
            }
            b'S' => {
                let text = r.line()?.trim_matches(['\'', '"']).to_owned();
                self.push(Node::Text(text));
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            0x8f => self.push(Node::List(Vec::new())),
            b't' => {
                let items = self.marked()?;
                self.push(Node::Tuple(items));
            }
            b'l' | 0x91 => {
                let items = self.marked()?;
                self.push(Node::List(items));
            }
            b'd' => {
                let items = self.marked()?;
                self.push(Node::Dict(items.chunks_exact(2).map(|kv| (kv[0], kv[1])).collect()));
            }
            n @ 0x85..=0x87 => self.tuple(usize::from(n - 0x84))?,
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                self.append(&items)?;
            }
            b's' => {
                let (v, k) = (self.pop()?, self.pop()?);
                self.set(&[k, v])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)?;
            }
            b'q' => {
                let key = r.number(1)?;
                self.put(key)?;
            }
            b'r' => {
                let key = r.number(4)?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'p' => {
                let key = r.line()?.parse().map_err(|_| "a memo without a number")?;
                self.put(key)?;
            }
            b'h' => {
                let key = r.number(1)?;
                self.get(key)?;
            }
            b'j' => {
                let key = r.number(4)?;
                self.get(key)?;
            }
            b'g' => {
                let key = r.line()?.parse().map_err(|_| "a memo without a number")?;
                self.get(key)?;
            }
            b'c' => {
                let name = format!("{}.{}", r.line()?, r.line()?);
                self.push(Node::Global(name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module], &self.nodes[name]) {
                    (Node::Text(m), Node::Text(n)) => {
                        let name = format!("{m}.{n}");
                        self.push(Node::Global(name));
                    }
                    _ => return Err("a class without a name".into()),
                }
            }
            b'R' | 0x81 => {
                let (args, call) = (self.pop()?, self.pop()?);
                let node = self.call(call, args)?;
                self.push(node);
            }
            0x92 => {
                let (_, args, call) = (self.pop()?, self.pop()?, self.pop()?);
                let node = self.call(call, args)?;
                self.push(node);
            }
            b'i' => {
                r.line()?;
                r.line()?;
                self.marked()?;
                self.push(Node::Opaque);
            }
            b'o' => {
                self.marked()?;
                self.push(Node::Opaque);
            }
            // state that an object is given: of no use for tensors
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                let node = self.storage(id)?;
                self.push(node);
            }
            b'P' => {
                r.line()?;
                self.push(Node::Opaque);
            }
            other => return Err(format!("operation {other:#04x} at byte {} is not known", r.at - 1)),
        }
        Ok(false)
    }

    fn long(&mut self, r: &mut Reader, n: usize) -> Read<()> {
        let bytes = r.take(n)?;
        if n > 8 {
            self.push(Node::Opaque);
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut word = if negative { [0xff; 8] } else { [0; 8] };
        word[..n].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(word)));
        Ok(())
    }

    fn items(&self, id: Id) -> Vec<Id> {
        match &self.nodes[id] {
            Node::Tuple(t) | Node::List(t) => t.clone(),
            _ => Vec::new(),
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let items = self.items(id);
        let size = |i: &Id| match self.nodes[*i] {
            Node::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        if items.len() > 16 { None } else { items.iter().map(size).collect() }
    }

    /// What a call gives, where it is one that tensors are made of.
    fn call(&self, call: Id, args: Id) -> Read<Node> {
        let Node::Global(name) = &self.nodes[call] else { return Ok(Node::Opaque) };
        let args = self.items(args);
        match name.as_str() {
            "collections.OrderedDict" | "builtins.dict" => match args.first() {
                Some(pairs) => {
                    let pairs = self.items(*pairs).into_iter().map(|p| self.items(p));
                    Ok(Node::Dict(pairs.filter(|p| p.len() == 2).map(|p| (p[0], p[1])).collect()))
                }
                None => Ok(Node::Dict(Vec::new())),
            },
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                let bad = || "a tensor without storage, offset, size and stride".to_owned();
                let [storage, offset, size, stride] = *args.get(..4).ok_or_else(bad)? else { return Err(bad()) };
                let (Node::Storage(key, dtype), Node::Int(offset)) = (&self.nodes[storage], &self.nodes[offset]) else {
                    return Ok(Node::Opaque);
                };
                Ok(Node::Tensor(TensorAt {
                    storage: key.clone(),
                    dtype: *dtype,
                    offset: usize::try_from(*offset).map_err(|_| bad())?,
                    shape: self.sizes(size).ok_or_else(bad)?,
                    stride: self.sizes(stride).ok_or_else(bad)?,
                }))
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                Ok(args.first().map_or(Node::Opaque, |&t| self.nodes[t].clone()))
            }
            "torch._tensor._rebuild_from_type_v2" => match args.get(..3) {
                Some(&[function, _, inner]) => match &self.nodes[function] {
                    // a call of its own kind would lead nowhere
                    Node::Global(n) if n != name => self.call(function, inner),
                    _ => Ok(Node::Opaque),
                },
                _ => Ok(Node::Opaque),
            },
            "torch.Size" => Ok(args.first().map_or(Node::Opaque, |&t| self.nodes[t].clone())),
            _ => Ok(Node::Opaque),
        }
    }

    /// ("storage", class, key, place, count, ..): what a persistent id says.
    fn storage(&self, id: Id) -> Read<Node> {
        let items = self.items(id);
        let [kind, class, key] = *items.get(..3).unwrap_or_default() else { return Ok(Node::Opaque) };
        match (&self.nodes[kind], &self.nodes[class], &self.nodes[key]) {
            (Node::Text(kind), Node::Global(class), Node::Text(key)) if kind == "storage" => {
                let dtype = match class.rsplit('.').next().unwrap_or_default() {
                    "FloatStorage" => Dtype::F32,
                    "HalfStorage" => Dtype::F16,
                    "BFloat16Storage" => Dtype::BF16,
                    "DoubleStorage" => Dtype::F64,
                    "LongStorage" => Dtype::I64,
                    "IntStorage" => Dtype::I32,
                    "ShortStorage" => Dtype::I16,
                    "CharStorage" => Dtype::I8,
                    "ByteStorage" => Dtype::U8,
                    "BoolStorage" => Dtype::BOOL,
                    other => return Err(format!("storage of type {other} is not known")),
                };
                Ok(Node::Storage(key.clone(), dtype))
            }
            _ => Ok(Node::Opaque),
        }
    }
}
