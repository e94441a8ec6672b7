mod cases;
mod crash;
mod image;
mod interop;
