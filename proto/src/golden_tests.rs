//! Holds the contract against `descriptor.txtpb`: it changes on purpose and visibly, or not at all.
//!
//! `HEARTH_UPDATE_GOLDEN=1 cargo nextest run -p hearth-proto golden` writes the file anew.

use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

#[test]
fn golden_descriptor() {
    let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
    let now = describe(&set);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("descriptor.txtpb");
    if std::env::var_os("HEARTH_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = golden
        .lines()
        .zip(now.lines())
        .find(|(old, new)| old != new);
    assert!(
        golden == now,
        "the contract is not what descriptor.txtpb says; first difference: {difference:?}; \
         HEARTH_UPDATE_GOLDEN=1 accepts it"
    );
}

#[test]
fn names_follow_the_standard() {
    let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
    for file in set.file.iter().filter(|file| file.package() == "hearth.v1") {
        assert!(file.name().starts_with("hearth/v1/"), "{}", file.name());
        for service in &file.service {
            for method in &service.method {
                let name = method.name();
                assert_eq!(method.input_type(), format!(".hearth.v1.{name}Request"));
                assert_eq!(method.output_type(), format!(".hearth.v1.{name}Response"));
            }
        }
        for item in &file.enum_type {
            let prefix = upper_snake(item.name());
            assert_eq!(item.value[0].name(), format!("{prefix}_UNSPECIFIED"));
            assert!(
                item.value
                    .iter()
                    .all(|value| value.name().starts_with(&prefix))
            );
        }
    }
}

fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    for (i, letter) in name.chars().enumerate() {
        if i > 0 && letter.is_uppercase() {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}

fn describe(set: &FileDescriptorSet) -> String {
    let mut files: Vec<&FileDescriptorProto> = set
        .file
        .iter()
        .filter(|file| file.package() == "hearth.v1")
        .collect();
    files.sort_by_key(|file| file.name().to_owned());
    let mut text = String::from("# The contract, one line a fact. See src/golden_tests.rs.\n");
    for file in files {
        writeln!(text, "\nfile {} package {}", file.name(), file.package()).unwrap();
        for service in &file.service {
            describe_service(&mut text, service);
        }
        for message in &file.message_type {
            describe_message(&mut text, message);
        }
        for item in &file.enum_type {
            describe_enum(&mut text, item);
        }
    }
    text
}

fn describe_service(text: &mut String, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let stream = if method.server_streaming() {
            "stream "
        } else {
            ""
        };
        writeln!(
            text,
            "rpc {}.{}({}) returns ({stream}{})",
            service.name(),
            method.name(),
            method.input_type(),
            method.output_type()
        )
        .unwrap();
    }
}

fn describe_message(text: &mut String, message: &DescriptorProto) {
    writeln!(text, "message {}", message.name()).unwrap();
    for field in &message.field {
        writeln!(
            text,
            "field {}.{} = {}: {}",
            message.name(),
            field.name(),
            field.number(),
            field_kind(message, field)
        )
        .unwrap();
    }
}

fn field_kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    if field.label() == Label::Repeated {
        return format!("repeated {kind}");
    }
    if field.proto3_optional() {
        return format!("optional {kind}");
    }
    match field
        .oneof_index
        .and_then(|i| message.oneof_decl.get(usize::try_from(i).ok()?))
    {
        Some(oneof) => format!("oneof {} {kind}", oneof.name()),
        None => kind,
    }
}

fn describe_enum(text: &mut String, item: &EnumDescriptorProto) {
    for value in &item.value {
        writeln!(
            text,
            "enum {}.{} = {}",
            item.name(),
            value.name(),
            value.number()
        )
        .unwrap();
    }
}
