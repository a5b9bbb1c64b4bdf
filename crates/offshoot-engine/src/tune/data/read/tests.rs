use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A file in a folder of its own.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Rows as `place: fields`, faults as they are told, without the folder.
fn read(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    let (dir, path) = file(name, bytes);
    let folder = format!("{}/", dir.path().display());
    let shown = |row: Result<Row, DataError>| match row {
        Ok(row) => format!("{} {}", row.place, Value::Object(row.fields)),
        Err(error) => format!("! {error}"),
    };
    let all: Vec<String> = match rows(&path) {
        Ok(rows) => rows.map(shown).collect(),
        Err(error) => vec![format!("! {error}")],
    };
    all.into_iter().map(|line| line.replace(&folder, "")).collect()
}

#[test]
fn json_lines_have_their_lines_and_wrong_ones_do_not_end_the_file() {
    let text = b"\xef\xbb\xbf{\"a\": 1}\r\n\n  \n{\"a\": 2}\n{\"a\": }\nnot json\n[1]\n{\"a\": \"\xff\"}\n\
                {\"b\": \"\\ud800\"}\n{\"c\": null}";
    assert_eq!(
        read("x.jsonl", text),
        [
            "x.jsonl:1 {\"a\":1}",
            "x.jsonl:4 {\"a\":2}",
            "! x.jsonl:5: is no JSON: expected value at column 7",
            "! x.jsonl:6: is no JSON: expected ident at column 2",
            "! x.jsonl:7: expected an object, got a list of 1",
            "! x.jsonl:8: byte 8 of the line is not UTF-8: save it as UTF-8",
            "! x.jsonl:9: is no JSON: unexpected end of hex escape at column 14",
            "x.jsonl:10 {\"c\":null}",
        ]
    );
}

#[test]
fn what_is_too_long_or_too_deep_is_told_and_the_next_line_is_read() {
    let deep = "[".repeat(200);
    let long = "x".repeat(ROW_BYTES + 1);
    let told = read("x.jsonl", format!("{{\"a\": {deep}\n{long}\n{{\"a\": 1}}\n"));
    assert!(told[0].starts_with("! x.jsonl:1: is no JSON: recursion limit"), "{}", told[0]);
    assert_eq!(told[1..], ["! x.jsonl:2: the line has more than 64 MB", "x.jsonl:3 {\"a\":1}"]);
}

#[test]
fn a_json_list_is_read_by_elements_with_their_lines() {
    let text = "\n[\n  {\"a\": \"],[\\\"}\"},\n  {\"a\": [1, {\"b\": 2}]}\n ,\n 7, {\"a\":\n 3}]\n";
    assert_eq!(
        read("x.json", text),
        [
            "x.json:3 {\"a\":\"],[\\\"}\"}",
            "x.json:4 {\"a\":[1,{\"b\":2}]}",
            "! x.json:6: expected an object, got 7",
            "x.json:6 {\"a\":3}",
        ]
    );
    assert_eq!(read("x.json", "[]"), [""; 0]);
    assert_eq!(
        read("x.json", "[{\"a\": 1},\n {\"a\""),
        ["x.json:1 {\"a\":1}", "! x.json:2: the file ends within its list",]
    );
}

#[test]
fn json_objects_are_columns_or_one_list_or_lines_or_a_row() {
    let two = ["x.json:row 1 {\"a\":1,\"b\":\"x\"}", "x.json:row 2 {\"a\":2,\"b\":\"y\"}"];
    assert_eq!(read("x.json", "{\"a\": [1, 2],\n \"b\": [\"x\", \"y\"]}"), two);
    assert_eq!(read("x.json", "{\"data\": [{\"a\":1,\"b\":\"x\"},\n{\"a\":2,\"b\":\"y\"}]}"), two);
    assert_eq!(
        read("x.json", "{\"a\": 1}\n{\"a\": 2}\n"),
        ["x.json:1 {\"a\":1}", "x.json:2 {\"a\":2}"]
    );
    assert_eq!(read("x.json", "{\"a\": 1,\n\"b\": 2}"), ["x.json:1 {\"a\":1,\"b\":2}"]);
    assert_eq!(
        read("x.json", "{\"a\": [1, 2], \"b\": [3]}"),
        ["! x.json:1:b: a list of 1, but the first has 2",]
    );
}

#[test]
fn csv_has_its_lines_quotes_and_faults() {
    let text = b"\xef\xbb\xbftext, label\n\"a, \"\"b\"\"\nc\",1\nd\ne,2,3\nf\xe9,4\n\ng,5";
    assert_eq!(
        read("x.csv", text),
        [
            "x.csv:2 {\"text\":\"a, \\\"b\\\"\\nc\",\"label\":\"1\"}",
            "! x.csv:4: 1 values, but the header has 2",
            "! x.csv:5: 3 values, but the header has 2",
            "! x.csv:6:text: byte 2 of the value is not UTF-8",
            "x.csv:8 {\"text\":\"g\",\"label\":\"5\"}",
        ]
    );
    let text = "a,b\r\n1,\"2\r\n3\"\r\n\r\n4\r\n5,6\r\n7,8";
    assert_eq!(
        read("x.csv", text),
        [
            "x.csv:2 {\"a\":\"1\",\"b\":\"2\\r\\n3\"}",
            "! x.csv:5: 1 values, but the header has 2",
            "x.csv:6 {\"a\":\"5\",\"b\":\"6\"}",
            "x.csv:7 {\"a\":\"7\",\"b\":\"8\"}",
        ]
    );
    assert_eq!(read("x.tsv", "a\tb\n1\t2\n"), ["x.tsv:2 {\"a\":\"1\",\"b\":\"2\"}"]);
    assert_eq!(read("x.csv", "a,a\n1,2\n"), ["! x.csv: two columns of the header are named \"a\""]);
}

#[test]
fn a_quote_that_is_never_closed_ends_before_memory_does() {
    let text = format!("a\n1\n\"{}", "x".repeat(ROW_BYTES + (1 << 20)));
    let told = read("x.csv", text);
    assert_eq!(
        told,
        ["x.csv:2 {\"a\":\"1\"}", "! x.csv: a row of more than 64 MB: is a quote left open?"]
    );
}

#[test]
fn files_are_told_by_their_first_bytes_where_their_names_say_nothing() {
    assert_eq!(read("x", "{\"a\": 1}"), ["x:1 {\"a\":1}"]);
    assert_eq!(read("x.dat", " [{\"a\": 1}]"), ["x.dat:1 {\"a\":1}"]);
    assert!(read("x.txt", "hello")[0].contains("name it .jsonl, .json, .csv"));
    assert_eq!(read("x.jsonl", ""), ["! x.jsonl: the file is empty"]);
    assert_eq!(read("x.parquet", "a,b"), ["! x.parquet: does not begin as a Parquet file does"]);
    let dir = tempfile::tempdir().unwrap();
    let absent = rows(&dir.path().join("absent.jsonl")).err().unwrap().to_string();
    assert!(absent.ends_with("absent.jsonl: No such file or directory (os error 2)"), "{absent}");
}

/// Texts, labels and conversations of one and two messages, compressed.
fn parquet(compression: ::parquet::basic::Compression) -> Vec<u8> {
    let schema = "message m { required binary text (UTF8); optional int64 label;
        optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts =
        |all: &[&str]| -> Vec<ByteArray> { all.iter().map(|&t| ByteArray::from(t)).collect() };
    let mut column = group.next_column().unwrap().unwrap();
    let values = texts(&["é", "b"]);
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[7], Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    for values in [texts(&["user", "user", "assistant"]), texts(&["q", "r", "s"])] {
        let mut column = group.next_column().unwrap().unwrap();
        let written = column.typed::<ByteArrayType>();
        written.write_batch(&values, Some(&[4, 4, 4]), Some(&[0, 0, 1])).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_gives_the_rows_of_every_codec_with_lists_of_structs() {
    use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
    let first = json!({"text": "é", "label": 7, "messages": [{"role": "user", "content": "q"}]});
    let second = json!({"text": "b", "label": null, "messages": [{"role": "user", "content": "r"},
        {"role": "assistant", "content": "s"}]});
    let gzip = Compression::GZIP(GzipLevel::default());
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, zstd] {
        let bytes = parquet(compression);
        let expected = [format!("x.parquet:row 1 {first}"), format!("x.parquet:row 2 {second}")];
        assert_eq!(read("x.parquet", &bytes), expected, "{compression:?}");
        // The first bytes tell it where the name does not.
        assert_eq!(read("x", &bytes).len(), 2);
    }
}

#[test]
fn broken_parquet_is_one_line() {
    let bytes = parquet(::parquet::basic::Compression::SNAPPY);
    for cut in [5, 40, bytes.len() / 2, bytes.len() - 1] {
        let told = read("x.parquet", &bytes[..cut]);
        assert!(told.len() == 1 && told[0].starts_with("! x.parquet: "), "{told:?}");
        assert!(!told[0].contains('\n'), "{told:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However a JSON list is laid out, its elements are those that a parser of the whole gives.
    #[test]
    fn elements_are_those_of_the_whole(
        texts in prop::collection::vec("[\\[\\]{}\",\\\\ a\n]{0,12}", 0..6), pretty in any::<bool>(),
    ) {
        let list: Vec<Value> = texts.iter().map(|t| json!({"t": t, "n": [[t], {}]})).collect();
        let list = Value::Array(list);
        let text = if pretty { format!("{list:#}") } else { list.to_string() };
        let (_dir, path) = file("x.json", text);
        let read: Vec<Value> =
            rows(&path).unwrap().map(|row| Value::Object(row.unwrap().fields)).collect();
        prop_assert_eq!(Value::Array(read), list);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4usize,
        text in "[\\[\\]{}\",:\\\\ a1\n]{0,60}",
    ) {
        let name = ["x.jsonl", "x.json", "x.csv", "x.tsv"][kind];
        for bytes in [bytes, text.into_bytes()] {
            for line in read(name, bytes).iter().filter(|line| line.starts_with("! ")) {
                prop_assert!(!line.contains(['\n', '\u{1b}']), "{line:?}");
            }
        }
    }
}

#[test]
fn squads_own_file_has_a_row_a_question() {
    let text = json!({"version": "1.1", "data": [
        {"title": "T", "paragraphs": [
            {"context": "C", "qas": [
                {"id": "a", "question": "Q?",
                    "answers": [{"text": "x", "answer_start": 1}, {"text": "y", "answer_start": 2}]},
                {"id": "b", "question": "R?", "answers": [], "is_impossible": true},
                {"id": "c", "question": "S?"},
            ]},
            {"context": "D", "qas": [{"id": "d", "question": "?", "answers": [{"text": "z"}]}]},
        ]},
        {"title": "U"},
    ]});
    let row = |id: &str, context: &str, question: &str, texts: Value, starts: Value| {
        json!({"id": id, "title": "T", "context": context, "question": question,
            "answers": {"text": texts, "answer_start": starts}})
    };
    let rows = [
        format!("x.json:row 1 {}", row("a", "C", "Q?", json!(["x", "y"]), json!([1, 2]))),
        format!("x.json:row 2 {}", row("b", "C", "R?", json!([]), json!([]))),
        "! x.json:row 3: expected a list \"answers\", as every part of a file of SQuAD's form has"
            .to_owned(),
        format!("x.json:row 4 {}", row("d", "D", "?", json!(["z"]), json!([null]))),
        "! x.json:row 5: expected a list \"paragraphs\", as every part of a file of SQuAD's form has"
            .to_owned(),
    ];
    assert_eq!(read("x.json", text.to_string()), rows);
    let (_dir, path) = file("x.json", text.to_string());
    let first = super::rows(&path).unwrap().next().unwrap().unwrap();
    let task = crate::tune::data::Task::find("squad").unwrap();
    let parsed = task.parse_row(&first).unwrap();
    let crate::tune::data::Record::Answer { answers, .. } = parsed else { panic!("{parsed:?}") };
    assert_eq!(answers, ["x", "y"]);
}
