//! Where desired state comes from: a directory of YAML.
