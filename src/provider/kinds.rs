//! Values of a kind that was not expected: one odd field must not hide those after it.

/// The methods of a serde visitor for every kind of value but objects: each is read to its end, and is `$nothing`.
macro_rules! nothing_but_objects {
    ($nothing:expr) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($nothing)
        }

        fn visit_seq<S: serde::de::SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
            while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok($nothing)
        }
    };
}

pub(super) use nothing_but_objects;
