//! What every spec type has in common.

/// Shorthand for the attributes that every spec type carries.
macro_rules! spec {
    ($($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name { $($body)* }
    )*};
}

/// Defaults are written once, as serde defaults: an empty document is the default value.
macro_rules! default_is_empty_document {
    ($($name:ident),*) => {$(
        impl Default for $name {
            #[allow(clippy::expect_used)] // proof: a unit test builds every one of these
            fn default() -> Self {
                serde_json::from_value(serde_json::json!({})).expect("every field has a default")
            }
        }
    )*};
}
