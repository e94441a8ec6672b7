//! The packed data-plane layout.
#![no_std]
#![forbid(unsafe_code)]
