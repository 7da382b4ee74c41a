"""What a manifest says: `manifests` checks it against its definition in crds/ (`schema`) and reads its `specs`.

Selectors, URLs, patterns, grants and Secret bindings have a file each. All of it is plain functions on plain data."""
