//! What was made of pictures that were seen before, so that a picture is encoded once in a conversation.

use crate::Result;
use qlip::Image;
use std::sync::{Mutex, PoisonError};

/// Pictures that are remembered.
const PICTURES: usize = 64;

/// Codes or features by picture, the last seen last.
pub(crate) struct Seen<T>(Mutex<Vec<(u64, T)>>);

impl<T: Clone> Seen<T> {
    pub fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// What was made of the picture, or is made now; and the picture's key.
    pub fn get(&self, image: &Image, make: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
        let key = key(image);
        let held = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut all = held();
            if let Some(at) = all.iter().position(|s| s.0 == key) {
                let found = all.remove(at);
                all.push(found.clone());
                return Ok(found);
            }
        }
        let made = make()?;
        let mut all = held();
        all.push((key, made.clone()));
        if all.len() > PICTURES {
            all.remove(0);
        }
        Ok((key, made))
    }
}

/// A number that tells a picture from others.
fn key(image: &Image) -> u64 {
    let mut h = nn::rng::mix((image.width() as u64) << 32 | image.height() as u64);
    for part in image.rgb().chunks(8) {
        let mut word = [0u8; 8];
        word[..part.len()].copy_from_slice(part);
        h = nn::rng::mix(h ^ u64::from_le_bytes(word));
    }
    h
}
