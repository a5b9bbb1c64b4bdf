//! The tensors that a torch pickle names, read without running it.
//!
//! A pickle is a program for a stack machine, and Python's reader calls whatever function it names.
//! This one knows the instructions that `torch.save` writes for a dictionary of tensors and seven
//! names, which it never calls but takes for what they stand for; anything else ends the reading.
//! Only texts, small numbers, shallow tuples, storages and tensors are kept, so what a program can
//! make is bounded by its own length.
//!
//! Instructions are those of Python's `pickletools`,
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py>; what torch writes with them is in
//! <https://github.com/pytorch/pytorch/blob/main/torch/serialization.py>.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use offshoot_kernels::BlockType;

/// Longest program that is read: a hundred bytes a tensor.
const BYTES_MAX: usize = 1 << 20;
/// How deep tuples may stand in tuples; torch needs two.
const DEPTH_MAX: usize = 4;

/// A tensor as the program describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickledTensor {
    pub(crate) block: BlockType,
    /// Names the archive's entry that holds its storage.
    pub(crate) key: String,
    /// The first of its elements in the storage.
    pub(crate) offset: usize,
    /// One or two axes, the elements without gaps in the order of rows.
    pub(crate) shape: Vec<usize>,
}

/// A name that may stand in a program.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Name {
    Storage(BlockType),
    Tensor,
    Parameter,
    Dictionary,
}

#[derive(Debug, Clone)]
enum Value {
    /// What nobody asks for: none, truth values, floats, lists, dictionaries in dictionaries.
    Other,
    Number(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, usize),
    Name(Name),
    Storage(BlockType, Rc<str>),
    Tensor(Rc<PickledTensor>),
    Dictionary(Rc<RefCell<BTreeMap<String, PickledTensor>>>),
}

/// The tensors of the dictionary that the program `bytes` makes.
///
/// # Errors
/// What is wrong, on one line.
pub(crate) fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, PickledTensor>, String> {
    if bytes.len() > BYTES_MAX {
        return Err(format!("a pickle of {} bytes, at most {BYTES_MAX} are read", bytes.len()));
    }
    let mut machine =
        Machine { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    while machine.step()? {}
    match machine.pop()? {
        Value::Dictionary(tensors) => Ok(tensors.borrow().clone()),
        _ => Err("the pickle is no dictionary of tensors".to_owned()),
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    /// Obeys one instruction; gives whether there are more.
    fn step(&mut self) -> Result<bool, String> {
        let [op] = self.take()?;
        match op {
            b'.' => return Ok(false),
            // PROTO
            0x80 => match self.take()? {
                [2..=4] => {}
                [version] => return Err(format!("pickle protocol {version}, expected 2 to 4")),
            },
            // FRAME: how much follows, which the slice knows.
            0x95 => drop(self.take::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 | b']' => self.stack.push(Value::Other),
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Other);
            }
            b'K' => {
                let [n] = self.take()?;
                self.stack.push(Value::Number(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Number(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Number(n.into()));
            }
            // LONG1
            0x8a => {
                let [n] = self.take()?;
                let digits = self.bytes(n.into())?;
                if digits.len() > 8 {
                    return Err("a number of more than 64 bits".to_owned());
                }
                let fill = if digits.last().is_some_and(|d| d & 0x80 != 0) { 0xff } else { 0 };
                let mut number = [fill; 8];
                number[..digits.len()].copy_from_slice(digits);
                self.stack.push(Value::Number(i64::from_le_bytes(number)));
            }
            b'X' => {
                let n = u32::from_le_bytes(self.take()?);
                self.text(n as usize)?;
            }
            // SHORT_BINUNICODE
            0x8c => {
                let [n] = self.take()?;
                self.text(n.into())?;
            }
            b'q' => {
                let [at] = self.take()?;
                self.remember(at.into())?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.take()?);
                self.remember(at)?;
            }
            // MEMOIZE
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let [at] = self.take()?;
                self.recall(at.into())?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.take()?);
                self.recall(at)?;
            }
            b')' => self.tuple(0)?,
            0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
            b't' => {
                let n = self.stack.len() - self.mark()?;
                self.tuple(n)?;
            }
            b'}' => self.stack.push(Value::Dictionary(Rc::default())),
            b's' => {
                let height = self.stack.len().checked_sub(2).ok_or_else(short)?;
                self.insert(height)?;
            }
            b'u' => {
                let height = self.mark()?;
                self.insert(height)?;
            }
            // APPEND, APPENDS: nobody asks for lists.
            b'a' => drop(self.pop()?),
            b'e' => {
                let height = self.mark()?;
                self.stack.truncate(height);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Name(allowed(module, name)?));
            }
            // STACK_GLOBAL
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    self.stack.push(Value::Name(allowed(&module, &name)?));
                }
                _ => return Err("a name that is no text".to_owned()),
            },
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            // BUILD: attributes of the dictionary, such as versions of modules.
            b'b' => drop(self.pop()?),
            _ => return Err(format!("the instruction 0x{op:02x}, which no tensors need")),
        }
        Ok(true)
    }

    fn bytes(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| short())
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, String> {
        let n = self.rest.iter().position(|&b| b == b'\n').ok_or_else(short)?;
        let line = self.bytes(n)?;
        self.bytes(1)?;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.bytes(n)?);
        let text = text.map_err(|_| "a text that is not UTF-8".to_owned())?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(short)
    }

    /// The height of the stack at the last mark, which is taken away.
    fn mark(&mut self) -> Result<usize, String> {
        let mark = self.marks.pop().ok_or_else(short)?;
        if mark > self.stack.len() { Err(short()) } else { Ok(mark) }
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        let value = self.stack.last().ok_or_else(short)?;
        self.memo.insert(at, value.clone());
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let value = self.memo.get(&at).ok_or_else(|| format!("nothing is remembered as {at}"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let height = self.stack.len().checked_sub(n).ok_or_else(short)?;
        let items: Rc<[Value]> = self.stack.drain(height..).map(shallow).collect();
        let inner = |item: &Value| if let Value::Tuple(_, depth) = item { *depth } else { 0 };
        let depth = 1 + items.iter().map(inner).max().unwrap_or(0);
        if depth > DEPTH_MAX {
            return Err(format!("tuples more than {DEPTH_MAX} deep"));
        }
        self.stack.push(Value::Tuple(items, depth));
        Ok(())
    }

    /// Takes pairs from `height` on into the dictionary below them; only tensors are kept.
    fn insert(&mut self, height: usize) -> Result<(), String> {
        let pairs = self.stack.split_off(height);
        let Some(Value::Dictionary(into)) = self.stack.last() else {
            return match self.stack.last() {
                Some(Value::Other) => Ok(()),
                _ => Err("pairs for what is no dictionary".to_owned()),
            };
        };
        for pair in pairs.chunks_exact(2) {
            if let [Value::Text(key), Value::Tensor(tensor)] = pair {
                into.borrow_mut().insert(key.to_string(), PickledTensor::clone(tensor));
            }
        }
        Ok(())
    }

    /// `("storage", type, key, device, elements)`, which the archive holds.
    fn storage(&mut self) -> Result<(), String> {
        let Value::Tuple(items, _) = self.pop()? else {
            return Err("a storage that is no tuple".to_owned());
        };
        match &items[..] {
            [Value::Text(kind), Value::Name(Name::Storage(block)), Value::Text(key), _, _]
                if &**kind == "storage" =>
            {
                self.stack.push(Value::Storage(*block, Rc::clone(key)));
                Ok(())
            }
            _ => Err("a storage that is none of torch's".to_owned()),
        }
    }

    /// A name with its arguments.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments, _), Value::Name(name)) = (arguments, name) else {
            return Err("a call of what is no name".to_owned());
        };
        let value = match (name, &arguments[..]) {
            (Name::Dictionary, _) => Value::Dictionary(Rc::default()),
            (Name::Parameter, [Value::Tensor(tensor), ..]) => Value::Tensor(Rc::clone(tensor)),
            (
                Name::Tensor,
                [Value::Storage(block, key), Value::Number(offset), size, stride, ..],
            ) => {
                let tensor = described(*block, key, *offset, (size, stride))?;
                Value::Tensor(Rc::new(tensor))
            }
            _ => return Err("a tensor that is described in no way known".to_owned()),
        };
        self.stack.push(value);
        Ok(())
    }
}

/// A value to be kept inside another: dictionaries are not.
fn shallow(value: Value) -> Value {
    if matches!(value, Value::Dictionary(_)) { Value::Other } else { value }
}

fn short() -> String {
    "the pickle is cut off".to_owned()
}

fn allowed(module: &str, name: &str) -> Result<Name, String> {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Name::Tensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Name::Parameter),
        ("collections", "OrderedDict") => Ok(Name::Dictionary),
        ("torch", "FloatStorage") => Ok(Name::Storage(BlockType::F32)),
        ("torch", "HalfStorage") => Ok(Name::Storage(BlockType::F16)),
        ("torch", "BFloat16Storage") => Ok(Name::Storage(BlockType::Bf16)),
        _ => {
            let shown: String =
                format!("{module}.{name}").chars().take(60).flat_map(char::escape_debug).collect();
            Err(format!("it names {shown}, which is not part of any tensor: nothing was run"))
        }
    }
}

fn described(
    block: BlockType,
    key: &str,
    offset: i64,
    (size, stride): (&Value, &Value),
) -> Result<PickledTensor, String> {
    let numbers = |value: &Value| match value {
        Value::Tuple(items, _) => items
            .iter()
            .map(|item| match item {
                Value::Number(n) => usize::try_from(*n).ok(),
                _ => None,
            })
            .collect::<Option<Vec<usize>>>(),
        _ => None,
    };
    let wrong = || "a tensor whose shape or strides are no numbers".to_owned();
    let (shape, strides) = (numbers(size).ok_or_else(wrong)?, numbers(stride).ok_or_else(wrong)?);
    let dense = match shape[..] {
        [_] => strides == [1],
        [_, cols] => strides == [cols, 1],
        _ => return Err(format!("a tensor of {} axes, expected 1 or 2", shape.len())),
    };
    if !dense {
        return Err("a tensor whose elements do not follow one another".to_owned());
    }
    let offset = usize::try_from(offset).map_err(|_| wrong())?;
    Ok(PickledTensor { block, key: key.to_owned(), offset, shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A dictionary with one tensor, as `torch.save` writes it, but for `function`.
    fn program(function: &str, stride: u8) -> Vec<u8> {
        let mut p = b"\x80\x02}q\x00(X\x13\x00\x00\x000.0.linear.weight.x".to_vec();
        p.extend(b"c");
        p.extend(function.as_bytes());
        p.extend(b"\n((X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000");
        p.extend(b"X\x03\x00\x00\x00cpuK\x04tQK\x00K\x02K\x02\x86K");
        p.push(stride);
        p.extend(b"K\x01\x86\x89ccollections\nOrderedDict\n)RtRu.");
        p
    }

    #[test]
    fn a_tensor_is_read_from_what_torch_writes() {
        let tensors = tensors(&program("torch._utils\n_rebuild_tensor_v2", 2)).unwrap();
        let tensor = &tensors["0.0.linear.weight.x"];
        assert_eq!((tensor.block, tensor.offset), (BlockType::F16, 0));
        assert_eq!((tensor.key.as_str(), &tensor.shape[..]), ("0", &[2, 2][..]));
    }

    #[test]
    fn a_program_that_names_anything_else_is_refused_and_not_run() {
        for name in ["os\nsystem", "posix\nsystem", "builtins\neval", "torch\nload", "\n"] {
            let error = tensors(&program(name, 2)).unwrap_err();
            assert!(error.contains("nothing was run") && !error.contains('\n'), "{error}");
        }
        let classic = b"cos\nsystem\n(S'echo pwned'\ntR.";
        assert!(tensors(classic).unwrap_err().contains("os.system"));
    }

    #[test]
    fn what_is_cut_off_deep_or_huge_is_an_error() {
        let whole = program("torch._utils\n_rebuild_tensor_v2", 2);
        for n in 0..whole.len() {
            assert!(tensors(&whole[..n]).is_err(), "{n}");
        }
        let deep = [b")".as_slice(), &b"\x85".repeat(1 << 19), b"."].concat();
        assert!(tensors(&deep).unwrap_err().contains("deep"));
        let dictionaries = [b"}".repeat(1 << 18), b"X\x00\x00\x00\x00".to_vec(), b"s.".to_vec()];
        assert!(tensors(&dictionaries.concat()).unwrap().is_empty());
        assert!(tensors(&vec![b'N'; BYTES_MAX + 1]).is_err());
        assert!(tensors(b"X\xff\xff\xff\xff.").unwrap_err().contains("cut off"));
        assert!(tensors(&program("torch._utils\n_rebuild_tensor_v2", 3)).is_err());
    }

    proptest! {
        #[test]
        fn no_program_is_too_much(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let mut whole = program("torch._utils\n_rebuild_tensor_v2", 2);
            let at = at.index(whole.len());
            whole.splice(at..at, bytes.iter().copied().take(4));
            for program in [&bytes, &whole] {
                if let Err(error) = tensors(program) {
                    prop_assert!(!error.contains('\n') && error.len() < 500, "{}", error);
                }
            }
        }
    }
}
