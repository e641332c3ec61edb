//! The benchmark: what a site under attack delivers with Postfix's own means, and what with the sentinel.
//!
//! A [profile](profiles) is a load: legitimate senders, and what comes on top of them. A [scenario](scenarios) is how the
//! site is set up against it. All scenarios of one profile meet the same load, by the same seeds, in labs of their own, as
//! many at a time as there are processors, and each with 20 slots unless the profile says otherwise. Everything is measured
//! from outside: by the clients' own clocks, the kernel's /proc, and master.cf; of the daemon only its public contracts are
//! asked. [`measure`] and what comes after it is pure.
//!
//! Nothing here asserts a time in a test: figures are for people, who know what else their machine did meanwhile
//! ([`expect`] holds them against the lines that the project promises, when asked to).

mod course;
pub mod docs;
pub mod expect;
pub mod measure;
mod plot;
pub mod profiles;
pub mod reaction;
pub mod report;
mod sampler;
pub mod scenarios;
mod store;
mod table;

pub use course::{Phases, side_by_side};
pub use plot::draw;
pub use store::Store;
pub use table::{of_profile, summary};
