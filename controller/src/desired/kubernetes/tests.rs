//! A directory of objects: start, changes, status.
