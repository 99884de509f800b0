//! The nano model's files, inside the library.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/nano/", $name)))),*]
    };
}

/// Path in the model's folder, and content.
pub const NANO: &[(&str, &[u8])] = files![
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "qlip/config.json",
    "qlip/model.safetensors",
    "qlip/preprocessor_config.json",
    "qlip/tokenizer.json",
];
