//! Reports to machines: the metric families, and the small HTTP server that hands them out.
//!
//! Everything comes from the [`Board`](crate::status::Board) at the moment of the scrape, so that /metrics and `status`
//! cannot tell different stories. Nothing here measures, and nothing here can hold up the tick.

mod exposition;
pub mod families;
pub mod http;

#[cfg(test)]
mod tests;
