//! What runs on a GPU (operations composed of candle's, caches of tensors) on the CPU: in float64 it is the formula, in float16
//! and bfloat16 it is near it.

use candle_core::{DType, Device};
use tests::{check_decoder, check_greedy, check_tokenizer, fixture};

#[test]
fn the_decoder_and_its_cache_in_every_type() {
    for (dtype, near) in [(DType::F64, 1e-5), (DType::F16, 2e-2), (DType::BF16, 2e-1)] {
        check_decoder(dtype, &Device::Cpu, near);
    }
    check_greedy(DType::F64, &Device::Cpu);
}

#[test]
fn a_tokenizer_in_half_precision() {
    for case in std::fs::read_dir(fixture("qlip")).unwrap() {
        let dir = case.unwrap().path();
        if !dir.join("config.json").is_file() {
            continue;
        }
        for (dtype, near) in [(DType::F64, 1e-4), (DType::F16, 3e-2)] {
            check_tokenizer(&dir, dtype, &Device::Cpu, near, 2.0 * near);
        }
    }
}
