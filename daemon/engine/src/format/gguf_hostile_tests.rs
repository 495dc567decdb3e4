//! Unsound GGUF files, built byte by byte, and what the reader says of each.

use super::gguf_writer::{GgufWriter, MetaValue};
use super::{Checkpoint, FormatError, ModelFiles, Stored, TensorType};
use crate::limits::{
    GGUF_ALIGNMENT_MAX, GGUF_ARRAY_LEN_MAX, GGUF_HEADER_BYTES_MAX, GGUF_KEYS_MAX,
    GGUF_STRING_BYTES_MAX, GGUF_TENSORS_MAX,
};

/// Header bytes, put together without any check.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn head(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(u64::try_from(text.len()).unwrap())
            .bytes(text.as_bytes())
    }

    /// A key and the id of its value's type.
    fn key(self, key: &str, type_id: u32) -> Self {
        self.text(key).u32(type_id)
    }

    fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut raw = self.text(name).u32(u32::try_from(dims.len()).unwrap());
        for dim in dims {
            raw = raw.u64(*dim);
        }
        raw.u32(type_id).u64(offset)
    }

    /// Data after the header, padded to the alignment.
    fn data(mut self, length: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + length, 0);
        self
    }
}

fn open(bytes: &[u8]) -> Result<Checkpoint, FormatError> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    Checkpoint::from_gguf(file)
}

fn head_only(tensors: u64, keys: u64) -> Raw {
    Raw::head(3, tensors, keys)
}

/// Files that break off, and files of other kinds.
fn broken_off() -> Vec<(&'static str, Raw)> {
    let key = |id| head_only(0, 1).key("k", id);
    vec![
        (
            "magic: needs 4 bytes at offset 0, the file has 0 left",
            Raw::default(),
        ),
        (
            "magic: needs 4 bytes at offset 0, the file has 3 left",
            Raw(b"GGU".to_vec()),
        ),
        (
            "magic: the file begins with [50, 4b, 03, 04]",
            Raw(b"PK\x03\x04".to_vec()),
        ),
        ("version: needs 4 bytes", Raw(b"GGUF\x03".to_vec())),
        (
            "version: 1; versions 2 and 3 are read (version 1",
            Raw::head(1, 0, 0),
        ),
        ("version: 4; versions 2 and 3 are read", Raw::head(4, 0, 0)),
        (
            "(this file is big-endian)",
            Raw::head(3_u32.swap_bytes(), 0, 0),
        ),
        (
            "tensor count: needs 8 bytes",
            Raw(b"GGUF\x03\0\0\0".to_vec()),
        ),
        (
            "metadata key count: needs 8 bytes",
            Raw(b"GGUF\x03\0\0\0".to_vec()).u64(0),
        ),
        ("length of metadata key 0: needs 8 bytes", head_only(0, 1)),
        (
            "metadata key 0: needs 9 bytes",
            head_only(0, 1).u64(9).bytes(b"short"),
        ),
        (
            "value type of metadata \"k\": needs 4 bytes",
            head_only(0, 1).text("k"),
        ),
        ("metadata \"k\": needs 4 bytes", key(4).bytes(b"ab")),
        ("metadata \"k\": needs 8 bytes", key(10)),
        ("length of metadata \"k\": needs 8 bytes", key(8)),
        (
            "metadata \"k\": needs 100 bytes",
            key(8).u64(100).bytes(b"text"),
        ),
        ("element type of metadata \"k\": needs 4 bytes", key(9)),
        (
            "array length of metadata \"k\": needs 8 bytes",
            key(9).u32(4),
        ),
        ("metadata \"k\": needs 4000 bytes", key(9).u32(4).u64(1000)),
        (
            "metadata \"k\": needs 8000 bytes",
            key(9).u32(8).u64(1000).text("one"),
        ),
        (
            "length of element 1 of metadata \"k\": needs 8 bytes",
            key(9).u32(8).u64(2).text("a string of ten or more bytes"),
        ),
        ("tensor list: needs 32 bytes", head_only(1, 0)),
        (
            "tensor list: needs 64 bytes",
            head_only(2, 0).tensor("t", &[1], 0, 0),
        ),
        (
            "dimension 1 of tensor \"tensor\": needs 8 bytes",
            head_only(1, 0).text("tensor").u32(2).u64(8).bytes(&[0; 6]),
        ),
        (
            "offset of tensor \"t12345678\": needs 8 bytes",
            head_only(1, 0).text("t12345678").u32(1).u64(8).u32(0),
        ),
        (
            "data of tensor \"t\": needs 4 bytes at offset 64",
            head_only(1, 0).tensor("t", &[1], 0, 0),
        ),
    ]
}

/// Numbers over their limits or outside what is allowed.
fn out_of_range() -> Vec<(&'static str, Raw)> {
    let key = |id| head_only(0, 1).key("k", id);
    let tensor =
        |dims: &[u64], id, offset| head_only(1, 0).tensor("t", dims, id, offset).data(4096);
    let alignment = |value| head_only(0, 1).key("general.alignment", 4).u32(value);
    vec![
        (
            "tensor count: 65537 is over the limit",
            head_only(GGUF_TENSORS_MAX + 1, 0),
        ),
        (
            "metadata key count: 65537 is over the limit",
            head_only(0, GGUF_KEYS_MAX + 1),
        ),
        (
            "tensor count: 18446744073709551615 is over",
            head_only(u64::MAX, u64::MAX),
        ),
        (
            "length of metadata key 0: 1048577 is over",
            head_only(0, 1).u64(GGUF_STRING_BYTES_MAX + 1),
        ),
        (
            "length of metadata \"k\": 18446744073709551615 is over",
            key(8).u64(u64::MAX),
        ),
        (
            "array length of metadata \"k\": 4194305 is over",
            key(9).u32(4).u64(GGUF_ARRAY_LEN_MAX + 1),
        ),
        (
            "array length of metadata \"k\": 18446744073709551615",
            key(9).u32(8).u64(u64::MAX),
        ),
        (
            "value type of metadata \"k\": 13; types 0 to 12",
            key(13).u64(0),
        ),
        (
            "element type of metadata \"k\": array; arrays of arrays",
            key(9).u32(9).u64(1).u64(0),
        ),
        (
            "value type of metadata \"k\": 77;",
            key(9).u32(77).u64(1).u64(0),
        ),
        ("metadata \"k\": 2; a bool is 0 or 1", key(7).bytes(&[2])),
        (
            "metadata key 0: empty;",
            head_only(0, 1).key("", 0).bytes(&[0]),
        ),
        (
            "metadata key 0: not valid UTF-8 at byte 1",
            head_only(0, 1).u64(2).bytes(b"a\xFF"),
        ),
        (
            "metadata \"k\": not valid UTF-8 at byte 0",
            key(8).u64(1).bytes(b"\x80"),
        ),
        (
            "element 1 of metadata \"k\": not valid UTF-8",
            key(9).u32(8).u64(2).text("a").u64(2).bytes(b"\xC3\x28"),
        ),
        (
            "metadata key \"k\" appears twice",
            head_only(0, 2)
                .key("k", 0)
                .bytes(&[1])
                .key("k", 0)
                .bytes(&[1]),
        ),
        (
            "tensor \"t\" appears twice",
            head_only(2, 0)
                .tensor("t", &[1], 0, 0)
                .tensor("t", &[1], 0, 32)
                .data(64),
        ),
        ("metadata \"general.alignment\": 0;", alignment(0)),
        ("metadata \"general.alignment\": 24;", alignment(24)),
        (
            "metadata \"general.alignment\": 131072;",
            alignment(u32::try_from(GGUF_ALIGNMENT_MAX * 2).unwrap()),
        ),
        (
            "metadata \"general.alignment\" is string, not u32",
            head_only(0, 1).key("general.alignment", 8).text("32"),
        ),
        (
            "dimension count of tensor \"t\": 0; 1 to 4",
            tensor(&[], 0, 0),
        ),
        (
            "dimension count of tensor \"t\": 5; 1 to 4",
            tensor(&[1; 5], 0, 0),
        ),
        ("dimension 0 of tensor \"t\": 0;", tensor(&[0], 0, 0)),
        ("dimension 1 of tensor \"t\": 0;", tensor(&[4, 0], 0, 0)),
        ("type of tensor \"t\": 99; no type", tensor(&[4], 99, 0)),
        ("type of tensor \"t\": 4; no type", tensor(&[32], 4, 0)),
        ("a multiple of the type's block", tensor(&[33], 2, 0)),
        ("a multiple of the type's block", tensor(&[128], 12, 0)),
        ("the product must fit 64 bits", tensor(&[1 << 62], 0, 0)),
        (
            "the product must fit 64 bits",
            tensor(&[1 << 40, 1 << 40], 0, 0),
        ),
        ("the product must fit 64 bits", tensor(&[1 << 63, 2], 24, 0)),
        ("the product must fit 64 bits", tensor(&[1 << 16; 4], 24, 0)),
        (
            "offset of tensor \"t\": 16; a multiple of the alignment",
            tensor(&[4], 0, 16),
        ),
        (
            "data of tensor \"t\": needs 4097 bytes at offset",
            tensor(&[4097], 24, 0),
        ),
        (
            "data of tensor \"t\": needs 16 bytes at offset",
            tensor(&[4], 0, u64::MAX - 31),
        ),
        (
            "data of tensor \"t\": needs 16 bytes at offset",
            tensor(&[4], 0, 4096),
        ),
        (
            "name of tensor \"\": empty",
            head_only(1, 0).tensor("", &[1], 0, 0).data(32),
        ),
        (
            "tensor \"b\" at offset 128 overlaps tensor \"a\", which ends at 132",
            head_only(2, 0)
                .tensor("a", &[9], 0, 0)
                .tensor("b", &[1], 0, 32)
                .data(64),
        ),
        (
            "overlaps",
            head_only(2, 0)
                .tensor("a", &[1], 0, 32)
                .tensor("b", &[1], 0, 32)
                .data(64),
        ),
    ]
}

#[test]
fn every_hostile_file_is_refused_by_name() {
    let table: Vec<_> = broken_off().into_iter().chain(out_of_range()).collect();
    assert!(table.len() >= 60, "{}", table.len());
    for (wanted, raw) in table {
        let error = open(&raw.0)
            .err()
            .unwrap_or_else(|| panic!("accepted: {wanted}"));
        assert!(
            error.to_string().contains(wanted),
            "wanted {wanted:?} in \"{error}\""
        );
    }
}

/// A sound file of every value type and several tensors.
fn sound() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .metadata("u8", MetaValue::U8(200))
        .metadata("i32", MetaValue::I32(-5))
        .metadata("u64", MetaValue::U64(1 << 40))
        .metadata("f32", 0.5_f32)
        .metadata("f64", MetaValue::F64(0.25))
        .metadata("bool", true)
        .metadata("text", "grüße")
        .metadata(
            "texts",
            MetaValue::StrArray(vec!["a".into(), String::new(), "ccc".into()]),
        )
        .metadata("ints", MetaValue::I32Array(vec![1, -2]))
        .metadata("floats", MetaValue::F32Array(vec![1.5]))
        .tensor("a", &[32, 2], TensorType::Q4_1, (0..40).collect())
        .tensor("b", &[3], TensorType::F32, vec![7; 12]);
    writer
}

#[test]
fn every_truncation_of_a_sound_file_is_refused() {
    let bytes = sound().to_bytes();
    assert!(open(&bytes).is_ok());
    for length in 0..bytes.len() {
        assert!(
            open(&bytes[..length]).is_err(),
            "{length} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes = sound().to_bytes();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            if let Ok(gguf) = open(&changed) {
                for tensor in gguf.tensors() {
                    let mut buf = vec![0; usize::try_from(tensor.bytes).unwrap()];
                    gguf.read(tensor, 0, &mut buf).unwrap();
                }
            }
        }
    }
}

#[test]
fn sound_files_read_back() {
    let gguf = open(&sound().to_bytes()).unwrap();
    assert_eq!(gguf.format(), "gguf");
    assert_eq!(gguf.get_u32("u8").unwrap(), Some(200));
    assert_eq!(gguf.get_u64("u64").unwrap(), Some(1 << 40));
    assert_eq!(gguf.get_f32("f32").unwrap(), Some(0.5));
    assert_eq!(gguf.get_f32("f64").unwrap(), Some(0.25));
    assert_eq!(gguf.get_bool("bool").unwrap(), Some(true));
    assert_eq!(gguf.get_str("text").unwrap(), Some("grüße"));
    let texts = gguf.get_str_array("texts").unwrap().unwrap();
    assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "ccc"]);
    assert_eq!((texts.len(), texts.get(3)), (3, None));
    assert_eq!(gguf.get_i32_array("ints").unwrap(), Some(vec![1, -2]));
    assert_eq!(gguf.get_f32_array("floats").unwrap(), Some(vec![1.5]));
    assert_eq!(
        (gguf.array_len("ints"), gguf.array_len("texts")),
        (Some(2), Some(3))
    );
    assert_eq!(gguf.get_str("absent").unwrap(), None);
    assert_eq!(gguf.keys().len(), 10);

    let tensor = gguf.tensor("a").unwrap();
    assert_eq!((tensor.columns(), tensor.rows(), tensor.bytes), (32, 2, 40));
    assert_eq!(tensor.tensor_type, TensorType::Q4_1);
    let mut buf = [0; 4];
    gguf.read(tensor, 36, &mut buf).unwrap();
    assert_eq!(buf, [36, 37, 38, 39]);
    assert!(matches!(
        gguf.read(tensor, 37, &mut buf),
        Err(FormatError::OutsideTensor { .. })
    ));
    assert!(matches!(
        gguf.read(tensor, u64::MAX, &mut buf),
        Err(FormatError::OutsideTensor { .. })
    ));
    gguf.read(gguf.tensor("b").unwrap(), 0, &mut buf).unwrap();
    assert_eq!(buf, [7; 4]);
    assert!(gguf.tensor("c").is_none());
}

#[test]
fn wrong_types_name_key_and_both_types() {
    let gguf = open(&sound().to_bytes()).unwrap();
    let table = [
        (
            gguf.get_u32("text").unwrap_err(),
            "metadata \"text\" is string, not u32",
        ),
        (gguf.get_u32("i32").unwrap_err(), "metadata \"i32\": -5;"),
        (
            gguf.get_u32("u64").unwrap_err(),
            "metadata \"u64\": 1099511627776;",
        ),
        (
            gguf.get_str("u8").unwrap_err(),
            "metadata \"u8\" is u8, not string",
        ),
        (
            gguf.get_f32("ints").unwrap_err(),
            "metadata \"ints\" is array of i32, not f32",
        ),
        (
            gguf.get_bool("f32").unwrap_err(),
            "metadata \"f32\" is f32, not bool",
        ),
        (
            gguf.get_i32_array("texts").unwrap_err(),
            "is array of string, not array of i32",
        ),
        (
            gguf.get_f32_array("ints").unwrap_err(),
            "is array of i32, not array of f32",
        ),
    ];
    for (error, wanted) in table {
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert!(gguf.get_str_array("u8").is_err());
}

#[test]
fn version_2_is_read() {
    let raw = Raw::head(2, 1, 0).tensor("t", &[2], 0, 0).data(8);
    assert!(open(&raw.0).is_ok());
}

#[test]
fn alignment_of_the_file_is_used() {
    let raw = head_only(1, 1)
        .key("general.alignment", 4)
        .u32(8)
        .tensor("t", &[2], 0, 8);
    let start = u64::try_from(raw.0.len()).unwrap().next_multiple_of(8);
    let gguf = open(&raw.data(64).0).unwrap();
    let Stored::Rows(place) = gguf.tensor("t").unwrap().stored else {
        panic!("rows");
    };
    assert_eq!(place.offset, start + 8);
}

#[test]
fn limits_hold_at_their_edge() {
    let edge = usize::try_from(GGUF_STRING_BYTES_MAX).unwrap();
    let text = "x".repeat(edge);
    assert!(open(&head_only(0, 1).key("k", 8).text(&text).0).is_ok());
    assert!(open(&head_only(0, 1).key("k", 8).text(&(text.clone() + "x")).0).is_err());

    let length = usize::try_from(GGUF_ARRAY_LEN_MAX).unwrap();
    let array = |length: usize| {
        let raw = head_only(0, 1)
            .key("k", 9)
            .u32(0)
            .u64(u64::try_from(length).unwrap());
        raw.bytes(&vec![0; length])
    };
    assert!(open(&array(length).0).is_ok());
    assert!(open(&array(length + 1).0).is_err());

    // 64 strings of 1 MiB and what surrounds them are more than the header may hold.
    let mut raw = head_only(0, 1).key("k", 9).u32(8).u64(64);
    for _ in 0..64 {
        raw = raw.text(&text);
    }
    let error = open(&raw.0).unwrap_err().to_string();
    assert!(
        error.contains(&format!("is over the limit of {GGUF_HEADER_BYTES_MAX}")),
        "{error}"
    );
}

#[test]
fn long_names_are_cut_in_messages() {
    let name = "n".repeat(100_000);
    let raw = head_only(1, 0).tensor(&name, &[4], 99, 0).data(64);
    assert!(open(&raw.0).unwrap_err().to_string().len() < 300);
}

#[test]
fn folders_and_missing_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ModelFiles::at(folder.path()).is_err());
    let error = ModelFiles::at(&folder.path().join("absent.gguf")).unwrap_err();
    assert!(error.to_string().contains("absent.gguf"));
}

#[test]
fn type_table_is_consistent() {
    for id in 0..64 {
        let Some(tensor_type) = TensorType::from_gguf(id) else {
            continue;
        };
        assert_eq!(tensor_type.gguf_id(), Some(id));
        assert!(tensor_type.block_len() > 0 && tensor_type.block_bytes() > 0);
        let supported = [
            "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K",
            "Q5_K", "Q6_K", "IQ4_NL",
        ];
        assert_eq!(
            tensor_type.is_supported(),
            supported.contains(&tensor_type.name())
        );
    }
    assert_eq!(
        TensorType::from_gguf(12).map(TensorType::name),
        Some("Q4_K")
    );
}

#[test]
fn parts_of_a_split_file_make_one_model() {
    let part = |number: u64, count: u64, tensor: &str, key: &str| {
        let raw = head_only(1, 3)
            .key("split.no", 10)
            .u64(number)
            .key("split.count", 10)
            .u64(count)
            .key(key, 4)
            .u32(7)
            .tensor(tensor, &[2], 0, 0)
            .data(8);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &raw.0).unwrap();
        (format!("m-{number}"), file)
    };
    // In whatever order they come; the metadata are the first part's.
    let two = vec![part(1, 2, "b", "other"), part(0, 2, "a", "mine")];
    let model = Checkpoint::from_files(two).unwrap();
    assert_eq!(model.get_u32("mine").unwrap(), Some(7));
    assert_eq!(model.get_u32("other").unwrap(), None);
    let mut buf = [1; 8];
    for (name, file) in [("a", 0), ("b", 1)] {
        let tensor = model.tensor(name).unwrap();
        let Stored::Rows(place) = tensor.stored else {
            panic!("rows");
        };
        assert_eq!(place.file, file);
        model.read(tensor, 0, &mut buf).unwrap();
    }

    let refused = |parts| format!("{:?}", Checkpoint::from_files(parts).unwrap_err());
    let missing = refused(vec![part(0, 3, "a", "k"), part(1, 3, "b", "k")]);
    assert!(missing.contains("parts: 3, given: 2"), "{missing}");
    let twice = refused(vec![part(0, 2, "a", "k"), part(0, 2, "b", "k")]);
    assert!(twice.contains("Duplicate"), "{twice}");
    let same_tensor = refused(vec![part(0, 2, "a", "k"), part(1, 2, "a", "k")]);
    assert!(same_tensor.contains("Duplicate"), "{same_tensor}");
    let alone = Checkpoint::from_gguf(part(0, 2, "a", "k").1).unwrap_err();
    assert!(alone.to_string().contains("one of 2 parts; 1"), "{alone}");
}
