//! Plugins that mean harm, or are broken: whatever one does, the daemon lives, its neighbours go on, and
//! each request ends exactly once, with the right bytes below.
//!
//! A [`guest::Guest`] is a plugin written as WebAssembly text, one behaviour each; a [`scene::Scene`] puts it
//! over a [`disk::Disk`] that keeps books, beside a drive with a plugin of its own that must not notice.
//!
//! | behaviour | guest | tests |
//! |---|---|---|
//! | never comes back | loops in `poll`, `poll-one`, while it is told of a node | `time`, `policies` |
//! | many calls, each just below the limit | burns milliseconds in each call | `counting::many_calls_each_just_below_the_limit` |
//! | never comes back while it is set up, gives memory, cleans up | loops in `start`, `cabi_realloc`, post-return | `time` |
//! | takes memory, tables | grows them without end | `traps`, `policies` |
//! | overflows its stack | calls itself | `traps`, `time` |
//! | traps | at a request, an end, a job, in its next life | `traps`, `answers`, `jobs`, `policies` |
//! | traps in a call to the host | messages and lists that are not there | `flood`, `claims` |
//! | forged, stale ids; those of another node | makes them up, keeps them, crosses two nodes | `answers`, `shared` |
//! | answers twice, or what was never asked | completes again, or without the child | `answers`, `shared` |
//! | never answers; holds for ever | keeps ids; forwards at the end of time | `holding`, `policies` |
//! | ranges out of bounds, empty, past all offsets | copies, reads, writes there | `claims`, `operations`, `protocol` |
//! | false claims: unchanged, copied | claims without a proof, or too late; clears its bitmaps | `claims`, `answers`, `counting`, `views` |
//! | clears what is lent to it | copies with `clear`, sets, merges | `counting::a_lent_bitmap_is_not_cleared` |
//! | writes what it may not | copies, writes, zeroes without a grant | `operations`, `claims`, `jobs` |
//! | lists that are too long, or not there | returns them | `protocol`, `claims` |
//! | asks without end: requests, jobs, buffers, bitmaps | each answer is another question | `operations`, `claims`, `jobs` |
//! | a job that never begins, never ends, ends at once | ignores it; timers and reads for ever; reads once | `jobs` |
//! | keeps flush, drain, end from coming | holds or drops them | `holding`, `answers` |
//! | floods the log, forges lines | logs a thousand times, with escapes | `flood` |
//! | is no plugin, or one for another host | damaged files, foreign imports | `loading` |
//! | counts on its own state over a fault | marks its lives in a bitmap | `policies` |
//! | keeps a point in time and lets changes pass | forwards, sets rules, is bypassed | `views` |
//! | tightens rules while requests are in flight | is told too early that they are armed | `rules` |
//! | faults while several workers ask | traps among hundreds of requests | `workers`, `policies` |

mod answers;
mod bytes;
mod claims;
mod counting;
mod disk;
mod flood;
mod guest;
mod holding;
mod jobs;
mod loading;
mod operations;
mod policies;
mod protocol;
mod reload;
mod rules;
mod scene;
mod shared;
mod suite;
mod time;
mod traps;
mod views;
mod workers;
