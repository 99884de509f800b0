//! Metrics of answers, captions, rankings and features, each under the name of the rule that computes it.

pub mod calibration;
pub mod captions;
pub mod clipscore;
pub mod features;
pub mod inception;
pub mod ptb;
pub mod retrieval;
pub mod vqa;
pub mod yes_no;
