//! A definition's content as one hash: the same whatever the order of its keys.

use super::READ_ONLY;
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;

/// Hexadecimal SHA-256 of a definition without its read-only fields; object keys are sorted.
pub fn content_hash(definition: &Value) -> String {
    let mut context = Context::new(&SHA256);
    feed(definition, true, &mut context);
    hex::encode(context.finish().as_ref())
}

fn feed(value: &Value, top: bool, context: &mut Context) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().filter(|k| !(top && READ_ONLY.contains(&k.as_str()))).collect();
            keys.sort_unstable();
            context.update(b"{");
            for key in keys {
                feed(&Value::String(key.clone()), false, context);
                context.update(b":");
                if let Some(value) = fields.get(key) {
                    feed(value, false, context);
                }
                context.update(b",");
            }
            context.update(b"}");
        }
        Value::Array(items) => {
            context.update(b"[");
            for item in items {
                feed(item, false, context);
                context.update(b",");
            }
            context.update(b"]");
        }
        plain => context.update(plain.to_string().as_bytes()),
    }
}
