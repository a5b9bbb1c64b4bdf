//! What the writer writes, the reader reads back the same.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::BTreeMap;
use std::io::Write;

use offshoot_kernels::BlockType;
use offshoot_models::gguf::{Array, Value, ValueKind, Writer, parse};
use proptest::prelude::*;

/// A scalar of `kind`; any other kind gives text.
fn scalar(kind: ValueKind) -> BoxedStrategy<Value<'static>> {
    match kind {
        ValueKind::U8 => any::<u8>().prop_map(Value::U8).boxed(),
        ValueKind::I8 => any::<i8>().prop_map(Value::I8).boxed(),
        ValueKind::U16 => any::<u16>().prop_map(Value::U16).boxed(),
        ValueKind::I16 => any::<i16>().prop_map(Value::I16).boxed(),
        ValueKind::U32 => any::<u32>().prop_map(Value::U32).boxed(),
        ValueKind::I32 => any::<i32>().prop_map(Value::I32).boxed(),
        ValueKind::U64 => any::<u64>().prop_map(Value::U64).boxed(),
        ValueKind::I64 => any::<i64>().prop_map(Value::I64).boxed(),
        // `any` leaves out NaN, which is not equal to itself.
        ValueKind::F32 => any::<f32>().prop_map(Value::F32).boxed(),
        ValueKind::F64 => any::<f64>().prop_map(Value::F64).boxed(),
        ValueKind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        _ => ".{0,12}".prop_map(|text| Value::String(text.into())).boxed(),
    }
}

fn scalar_kind() -> impl Strategy<Value = ValueKind> {
    prop::sample::select(ValueKind::ALL.to_vec())
        .prop_filter("arrays are made of these", |kind| *kind != ValueKind::Array)
}

fn array(kind: ValueKind) -> impl Strategy<Value = (Vec<Value<'static>>, Value<'static>)> {
    prop::collection::vec(scalar(kind), 0..8).prop_map(move |values| {
        let array = Array::of(kind, values.iter().cloned()).unwrap();
        (values, Value::Array(array))
    })
}

fn value() -> impl Strategy<Value = Value<'static>> {
    let flat = || scalar_kind().prop_flat_map(array).prop_map(|(_, array)| array);
    let nested = prop::collection::vec(flat(), 0..3)
        .prop_map(|arrays| Value::Array(Array::of(ValueKind::Array, arrays).unwrap()));
    prop_oneof![4 => scalar_kind().prop_flat_map(scalar), 3 => flat(), 1 => nested]
}

/// A shape, in whole blocks, with its format.
fn shape() -> impl Strategy<Value = (Vec<usize>, BlockType)> {
    let block = prop::sample::select(BlockType::ALL.to_vec());
    (prop::collection::vec(1usize..4, 1..=4), block).prop_map(|(mut shape, block)| {
        *shape.last_mut().unwrap() *= block.block_len();
        (shape, block)
    })
}

proptest! {
    #[test]
    fn a_written_file_reads_back_the_same(
        alignment in prop::option::of((0u32..=12).prop_map(|n| 1 << n)),
        keys in prop::collection::btree_map("[a-z]{1,6}(\\.[a-z_]{1,9}){0,2}", value(), 0..8),
        tensors in prop::collection::btree_map("[a-z.]{1,64}", (shape(), any::<u8>()), 0..8),
    ) {
        let mut writer = Writer::new();
        if let Some(alignment) = alignment {
            writer.alignment(alignment).unwrap();
        }
        for (key, value) in &keys {
            writer.key(key, value.clone()).unwrap();
        }
        let mut data = BTreeMap::new();
        for (name, ((shape, block), fill)) in &tensors {
            writer.tensor(name, shape, *block).unwrap();
            let rows: usize = shape[..shape.len() - 1].iter().product();
            let len = rows * block.row_bytes(shape[shape.len() - 1]).unwrap();
            data.insert(name.as_str(), vec![*fill; len]);
        }
        let mut file = Vec::new();
        writer.write(&mut file, |name, out: &mut dyn Write| out.write_all(&data[name])).unwrap();

        let read = parse(&file).unwrap();
        prop_assert_eq!((read.version(), read.alignment()), (3, alignment.unwrap_or(32) as usize));
        let read_keys: BTreeMap<String, Value<'_>> = read
            .metadata()
            .filter(|(key, _)| *key != "general.alignment")
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        prop_assert_eq!(&read_keys, &keys);
        prop_assert_eq!(read.tensors().count(), tensors.len());
        for (name, tensor) in read.tensors() {
            let ((shape, block), _) = &tensors[name];
            prop_assert_eq!((&tensor.shape, tensor.block), (shape, *block));
            prop_assert_eq!(read.data(tensor), &data[name][..]);
            prop_assert_eq!(tensor.range.start % read.alignment(), 0);
        }
    }

    #[test]
    fn an_array_walks_over_the_values_it_was_made_of(
        (values, array) in scalar_kind().prop_flat_map(array),
    ) {
        let Value::Array(array) = array else { panic!("an array") };
        prop_assert_eq!(array.len(), values.len());
        prop_assert_eq!(array.values().collect::<Vec<_>>(), values);
    }
}

#[test]
fn version_2_differs_in_its_number_alone() {
    let mut writer = Writer::new();
    writer.key("k", "v").unwrap().tensor("t", &[2, 3], BlockType::F32).unwrap();
    let mut file = Vec::new();
    writer.write(&mut file, |_, out| out.write_all(&[7; 24])).unwrap();
    file[4] = 2;
    let read = parse(&file).unwrap();
    assert_eq!((read.version(), read.text("k").unwrap()), (2, Some("v")));
    assert_eq!(read.data(read.tensor("t").unwrap()), [7; 24]);
}

#[test]
fn the_layout_is_the_formats() {
    let mut writer = Writer::new();
    writer.alignment(8).unwrap().key("a.b", "xyz").unwrap();
    writer.tensor("t", &[1, 2], BlockType::F32).unwrap();
    let mut file = Vec::new();
    writer.write(&mut file, |_, out| out.write_all(&[0xaa; 8])).unwrap();
    let mut expected = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    expected.extend(b"\x03\0\0\0\0\0\0\0a.b\x08\0\0\0\x03\0\0\0\0\0\0\0xyz");
    expected.extend(b"\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\x08\0\0\0");
    // The dimensions are reversed: the contiguous one, 2, stands first.
    expected.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    expected.extend(b"\0\0\0\0\0\0\0\0\0\0\0\0");
    expected.resize(expected.len().next_multiple_of(8), 0);
    expected.extend([0xaa; 8]);
    assert_eq!(file, expected);
}
