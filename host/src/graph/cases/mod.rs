//! Cases that the core must get right, by name: each a small graph of native nodes, and what must come of it.
//!
//! | file | what it shows |
//! |---|---|
//! | `order.rs` | graphs in which copies could wait for each other for ever are refused, and no others |
//! | `order_by_chance.rs` | the same of graphs by chance: against a naive relation, and against what really ends |
//! | `views.rs` | streams and copy-on-read dirty nothing, through any filters (E1, E17, E18) |
//! | `pivots.rs` | a drive's bitmap goes on after commit, snapshot and mirror (E2 to E5) |
//! | `read_only.rs` | nodes that refuse changes by the graph's word |
//! | `refusals.rs` | what is refused, word for word |
//! | `growing.rs` | containers that grow under a format, bitmaps of them; clusters that are filled |
//! | `closing.rs` | drivers that close, and what they do beside requests |
//! | `data_file.rs` | formats with a container for data beside that for entries |
//! | `durable.rs` | what a drive wrote before a snapshot is durable after the next flush |
//! | `section.rs` | formats that write while everything stands still |
//! | `fleecing.rs` | copies before writes into an overlay of what is written |
//! | `endless.rs` | what must never wait for ever: writes that copy first, copies over copies, full filters |
//!
//! `stage.rs` builds graphs, `filter.rs` has the filters that do what tests need, `schedule.rs` runs
//! tasks in an order by chance that is the same for the same seed.

mod closing;
mod data_file;
mod durable;
mod endless;
mod filter;
mod fleecing;
mod growing;
mod order;
mod order_by_chance;
mod pivots;
mod read_only;
mod refusals;
mod schedule;
mod section;
mod stage;
mod views;
