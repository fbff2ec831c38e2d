//! The tree as serde sees it: shapes are derived, places are kept.

use std::marker::PhantomData;

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{
    problem::{Origin, Problem, excerpt},
    tree::{Key, Kind, Node},
};

/// A section or list that remembers where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) origin: Origin,
    pub(super) inner: T,
}

/// A single value, still text, that remembers where it stands and what it is called.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) origin: Origin,
    pub(super) key: String,
    pub(super) text: String,
    /// The text as written, fit for messages.
    pub(super) shown: String,
}

/// As in messages: the text may be a secret.
impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.shown)
    }
}

/// A mapping whose keys are names, in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct Named(pub(super) Vec<(String, Value)>);

/// Either a single value or a section.
#[derive(Debug, Clone)]
pub(super) enum ValueOr<T> {
    Section(T),
    Value(Value),
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.kind {
            Kind::Mapping(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
            Kind::Null => visitor.visit_unit(),
            Kind::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Kind::Sequence(items) => visitor.visit_seq(Items(items.iter())),
        }
        .map_err(|problem| problem.or_at(self.origin))
    }

    /// A key without a value is not an absent key: what it means is for the value to say.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    /// A section whose lines are all comments is an empty section.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.kind {
            Kind::Null => visitor.visit_map(MapDeserializer::new(std::iter::empty::<((), ())>())),
            Kind::Mapping(_) => self.deserialize_any(visitor),
            Kind::Scalar { .. } | Kind::Sequence(_) => Err(self.origin.problem(format_args!(
                "{}, expected a section with keys of its own: {}",
                self.is(),
                fields.join(", ")
            ))),
        }
        .map_err(|problem| problem.or_at(self.origin))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.kind {
            Kind::Null => visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<()>())),
            Kind::Sequence(_) => self.deserialize_any(visitor),
            Kind::Scalar { .. } | Kind::Mapping(_) => Err(self.origin.problem(format_args!(
                "{}, expected a list: each item on its own line after `- `, or all in `[…]`",
                self.is()
            ))),
        }
        .map_err(|problem| problem.or_at(self.origin))
    }

    /// `At`, `Value` and `Named` ask by their name for what serde has no words for.
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Problem> {
        match (name, &self.kind) {
            (AT, _) => visitor.visit_seq(Parts { node: self, next: 0 }),
            (VALUE | VALUE_OR, Kind::Scalar { .. }) => visitor.visit_seq(Parts { node: self, next: 0 }),
            (VALUE | VALUE_OR, Kind::Null) => {
                Err(self.origin.problem(format_args!("{}; give it a value or leave the key out", self.is())))
            }
            (VALUE, _) => Err(self.origin.problem(format_args!("{}, expected a single value", self.is()))),
            (VALUE_OR, Kind::Mapping(_)) => self.deserialize_any(visitor),
            (VALUE_OR, _) => {
                Err(self.origin.problem(format_args!("{}, expected a single value or a section", self.is())))
            }
            (NAMED, Kind::Null) => visitor.visit_map(Entries { rest: [].iter(), value: None }),
            (NAMED, Kind::Mapping(_)) => self.deserialize_any(visitor),
            (NAMED, _) => {
                let example =
                    if self.key == "tiers" { "numbers, such as `pro: 50`" } else { "values, such as `x-team: ml`" };
                Err(self.origin.problem(format_args!("{}, expected names and {example}", self.is())))
            }
            _ => visitor.visit_newtype_struct(self),
        }
        .map_err(|problem| problem.or_at(self.origin))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct map enum identifier ignored_any
    }
}

impl Node {
    /// "`key` is …", the beginning of a message about a value of the wrong kind.
    fn is(&self) -> String {
        let key = &self.key;
        match &self.kind {
            Kind::Mapping(_) => format!("`{key}` is a mapping"),
            Kind::Null => format!("`{key}` is empty"),
            Kind::Scalar { shown, .. } => format!("`{key}` is `{}`", excerpt(shown)),
            Kind::Sequence(_) => format!("`{key}` is a list"),
        }
    }
}

struct Items<'de>(std::slice::Iter<'de, Node>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

struct Entries<'de> {
    rest: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de Node>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some(node);
        let name = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|problem: Problem| problem.or_at(key.origin))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        match self.value.take() {
            Some(node) => seed.deserialize(node),
            None => Err(Problem::custom("a value was asked for before its key")),
        }
    }
}

/// Line, column, and then what the type is made of: the node again (`At`), or key, text and written text (`Value`).
struct Parts<'de> {
    node: &'de Node,
    next: usize,
}

impl<'de> SeqAccess<'de> for Parts<'de> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let (line, column) = match self.node.origin {
            Origin::Flag(_) => (0, 0),
            Origin::Place { line, column } => (line, column),
        };
        self.next += 1;
        match (self.next, &self.node.kind) {
            (1, _) => seed.deserialize(line.into_deserializer()),
            (2, _) => seed.deserialize(column.into_deserializer()),
            (3, _) => seed.deserialize(self.node),
            (4, _) => seed.deserialize(self.node.key.as_str().into_deserializer()),
            (5, Kind::Scalar { shown, .. }) => seed.deserialize(shown.as_str().into_deserializer()),
            _ => return Ok(None),
        }
        .map(Some)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value with its place")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let (line, column) = (part(&mut parts)?, part(&mut parts)?);
                Ok(At { origin: Origin::Place { line, column }, inner: part(&mut parts)? })
            }
        }
        deserializer.deserialize_newtype_struct(AT, AtVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a single value")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
                value(&mut parts)
            }
        }
        deserializer.deserialize_newtype_struct(VALUE, ValueVisitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ValueOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for EitherVisitor<T> {
            type Value = ValueOr<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a single value or a section")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueOr<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(ValueOr::Section)
            }
            /// The schema asks for the section's shape.
            fn visit_newtype_struct<D: Deserializer<'de>>(self, section: D) -> Result<ValueOr<T>, D::Error> {
                T::deserialize(section).map(ValueOr::Section)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<ValueOr<T>, A::Error> {
                value(&mut parts).map(ValueOr::Value)
            }
        }
        deserializer.deserialize_newtype_struct(VALUE_OR, EitherVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor;
        impl<'de> Visitor<'de> for NamedVisitor {
            type Value = Named;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("names and values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_newtype_struct(NAMED, NamedVisitor)
    }
}

fn value<'de, A: SeqAccess<'de>>(parts: &mut A) -> Result<Value, A::Error> {
    let (line, column) = (part(parts)?, part(parts)?);
    let (text, key, shown) = (part(parts)?, part(parts)?, part(parts)?);
    Ok(Value { origin: Origin::Place { line, column }, key, text, shown })
}

fn part<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(parts: &mut A) -> Result<T, A::Error> {
    parts.next_element()?.ok_or_else(|| A::Error::custom("a part of the value is missing"))
}

pub(super) const AT: &str = "$at";
pub(super) const VALUE: &str = "$value";
pub(super) const VALUE_OR: &str = "$value-or";
pub(super) const NAMED: &str = "$named";
