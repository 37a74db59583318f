//! Python values as a pickle, as far as PyTorch's files need them: protocol 2, written front to back.
//!
//! In: calls that follow the value from outside in. Out: the bytes of `data.pkl`, made of the few instructions that both
//! `torch.load(weights_only=True)` and libtorch's own reader obey. Nothing is memoised: a value that occurs twice is written twice.
//! Tensors are `torch._utils._rebuild_tensor_v2` over a storage that is named by number, whose bytes lie beside the pickle. What
//! can go wrong: a kind of tensor that has no storage class.

use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// Instructions of the pickle machine.
mod op {
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const STOP: u8 = b'.';
    pub(super) const MARK: u8 = b'(';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BININT: u8 = b'J';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const BUILD: u8 = b'b';
    pub(super) const BINPERSID: u8 = b'Q';
}

const STORAGES: [(Kind, &str); 8] = [
    (Kind::Float, "FloatStorage"),
    (Kind::Half, "HalfStorage"),
    (Kind::BFloat16, "BFloat16Storage"),
    (Kind::Double, "DoubleStorage"),
    (Kind::Int64, "LongStorage"),
    (Kind::Int, "IntStorage"),
    (Kind::Uint8, "ByteStorage"),
    (Kind::Bool, "BoolStorage"),
];

/// A pickle that is being written.
#[derive(Debug)]
pub(super) struct Pickle {
    bytes: Vec<u8>,
}

impl Pickle {
    pub(super) fn new() -> Self {
        Self { bytes: vec![op::PROTO, 2] }
    }

    /// The whole pickle.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(op::STOP);
        self.bytes
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes.push(op::BINUNICODE);
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    pub(super) fn integer(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(small) => {
                self.bytes.push(op::BININT);
                self.bytes.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([op::LONG1, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    pub(super) fn boolean(&mut self, value: bool) {
        self.bytes.push(if value { op::NEWTRUE } else { op::NEWFALSE });
    }

    /// A tuple of what `items` writes.
    pub(super) fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.push(op::MARK);
        items(self);
        self.bytes.push(op::TUPLE);
    }

    /// A dict of what `entries` writes: keys and values in turn.
    pub(super) fn dict(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.bytes.push(op::EMPTY_DICT);
        self.entries(entries)
    }

    /// A `collections.OrderedDict`, which is what `state_dict()` returns.
    pub(super) fn ordered_dict(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.empty_ordered_dict();
        self.entries(entries)
    }

    /// An object of a TorchScript class: what `attributes` writes, names and values in turn.
    pub(super) fn object(&mut self, class: &str, attributes: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let (module, name) = class.rsplit_once('.').unwrap_or(("__main__", class));
        self.global(module, name);
        self.bytes.extend([op::EMPTY_TUPLE, op::NEWOBJ]);
        self.dict(attributes)?;
        self.bytes.push(op::BUILD);
        Ok(())
    }

    /// A contiguous tensor of this shape and kind over all of storage `number`.
    pub(super) fn tensor(&mut self, number: usize, tensor: &Tensor, requires_grad: bool) -> Result<()> {
        let storage = storage_class(tensor.kind())?;
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|pickle| {
            pickle.tuple(|pickle| {
                pickle.text("storage");
                pickle.global("torch", storage);
                pickle.text(&number.to_string());
                pickle.text("cpu");
                pickle.integer(tensor.numel() as i64);
            });
            pickle.bytes.push(op::BINPERSID);
            pickle.integer(0);
            let shape = tensor.size();
            pickle.integers(&shape);
            pickle.integers(&contiguous_strides(&shape));
            pickle.boolean(requires_grad);
            pickle.empty_ordered_dict();
        });
        self.bytes.push(op::REDUCE);
        Ok(())
    }

    fn entries(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.bytes.push(op::MARK);
        entries(self)?;
        self.bytes.push(op::SETITEMS);
        Ok(())
    }

    fn integers(&mut self, values: &[i64]) {
        self.tuple(|pickle| values.iter().for_each(|&value| pickle.integer(value)));
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.bytes.extend([op::EMPTY_TUPLE, op::REDUCE]);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(op::GLOBAL);
        self.bytes.extend(format!("{module}\n{name}\n").as_bytes());
    }
}

fn storage_class(kind: Kind) -> Result<&'static str> {
    let found = STORAGES.iter().find(|(candidate, _)| *candidate == kind);
    found
        .map(|(_, class)| *class)
        .ok_or_else(|| Error::data(format!("PyTorch's files have no storage for tensors of kind {kind:?}")))
}

/// In elements, last axis first.
fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn values_are_the_instructions_that_python_documents() -> Result<()> {
        let mut pickle = Pickle::new();
        pickle.dict(|pickle| {
            pickle.text("a");
            pickle.tuple(|pickle| {
                pickle.integer(-2);
                pickle.integer(1 << 40);
                pickle.boolean(true);
            });
            Ok(())
        })?;
        // by pickletools.dis: PROTO 2, EMPTY_DICT, MARK, BINUNICODE 'a', MARK, BININT -2, LONG1 2^40, NEWTRUE, TUPLE, SETITEMS, STOP
        let expected = b"\x80\x02}(X\x01\0\0\0a(J\xfe\xff\xff\xff\x8a\x08\0\0\0\0\0\x01\0\0\x88tu.";
        assert_eq!(pickle.finish(), expected);
        Ok(())
    }

    #[test]
    fn strides_are_those_of_contiguous_tensors() {
        for shape in [&[][..], &[5], &[4, 3, 2], &[2, 1, 3, 3], &[0, 4]] {
            let tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            assert_eq!(contiguous_strides(shape), tensor.stride(), "{shape:?}");
        }
    }

    #[test]
    fn a_kind_without_a_storage_is_refused() {
        let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
        let error = Pickle::new().tensor(0, &complex, false).expect_err("no storage");
        assert!(error.to_string().contains("ComplexFloat"), "{error}");
    }
}
