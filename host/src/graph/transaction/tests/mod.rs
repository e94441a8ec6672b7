//! Graph changes of small real graphs, with requests going on all the while.
//!
//! `scene` builds graphs and shows them as text; `load` writes without pause and knows what it wrote.

mod actions;
mod bitmaps;
mod chains;
mod checkpoint;
mod failures;
mod given_up;
mod half_way;
mod late;
mod load;
mod opening;
mod pause;
mod random;
mod resize;
mod scene;
mod watched;
mod workers;
