//! The shape of a configuration, asked of the types that read it: they are deserialised from a source that agrees to
//! everything and notes what was asked for.

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

use crate::config::{
    de::{AT, NAMED, VALUE, VALUE_OR},
    problem::Problem,
};

/// What may stand at a place.
#[derive(Debug, PartialEq)]
pub(super) enum Shape {
    /// Items, all of one shape.
    List(Box<Shape>),
    /// Names of the user's own, each with a value.
    Named,
    /// Known keys.
    Section(Vec<(&'static str, Shape)>),
    /// One value.
    Value,
    /// One value, or a section instead.
    ValueOr(Box<Shape>),
}

/// The shape that `T` reads.
pub(super) fn shape_of<T: DeserializeOwned>() -> Result<Shape, Problem> {
    let mut shape = Shape::Value;
    T::deserialize(Tracer(&mut shape))?;
    Ok(shape)
}

struct Tracer<'a>(&'a mut Shape);

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Problem> {
        Err(Problem::custom("a shape that the schema has no words for"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let mut item = Shape::Value;
        let read = visitor.visit_seq(Parts::Item(Some(&mut item)))?;
        *self.0 = Shape::List(Box::new(item));
        Ok(read)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let mut found = Vec::new();
        let read = visitor.visit_map(Fields { rest: fields.iter(), found: &mut found })?;
        *self.0 = Shape::Section(found);
        Ok(read)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Problem> {
        match name {
            AT => visitor.visit_seq(Parts::At(0, self.0)),
            NAMED => {
                *self.0 = Shape::Named;
                visitor.visit_map(Fields { rest: [].iter(), found: &mut Vec::new() })
            }
            VALUE => {
                *self.0 = Shape::Value;
                visitor.visit_seq(Parts::Value(0))
            }
            VALUE_OR => {
                let mut section = Shape::Value;
                let read = visitor.visit_newtype_struct(Tracer(&mut section))?;
                *self.0 = Shape::ValueOr(Box::new(section));
                Ok(read)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct map enum identifier ignored_any
    }
}

struct Fields<'a> {
    rest: std::slice::Iter<'static, &'static str>,
    found: &'a mut Vec<(&'static str, Shape)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some(name) = self.rest.next() else { return Ok(None) };
        self.found.push((name, Shape::Value));
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        match self.found.last_mut() {
            Some((_, shape)) => seed.deserialize(Tracer(shape)),
            None => Err(Problem::custom("a value was asked for before its key")),
        }
    }
}

/// What the readers in `de` ask for.
enum Parts<'a> {
    /// Line, column, and the value again.
    At(u8, &'a mut Shape),
    /// One item of a list.
    Item(Option<&'a mut Shape>),
    /// Line, column, and three texts.
    Value(u8),
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        match self {
            Self::At(next @ 0..2, _) | Self::Value(next @ 0..2) => {
                *next += 1;
                seed.deserialize(1_usize.into_deserializer()).map(Some)
            }
            Self::At(_, shape) => seed.deserialize(Tracer(shape)).map(Some),
            Self::Item(item) => item.take().map(|item| seed.deserialize(Tracer(item))).transpose(),
            Self::Value(_) => seed.deserialize("".into_deserializer()).map(Some),
        }
    }
}
