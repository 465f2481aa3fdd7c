//! Round-to-nearest compression of a row.
