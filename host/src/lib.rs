//! Blockloom.
