//! On a GPU: the decoder, its cache and the image tokenizer against the golden tensors. Without a device it says so.

use candle_core::{DType, Device};
use tests::{check_decoder, check_greedy, check_tokenizer, fixture};

fn device() -> Option<Device> {
    if !candle_core::utils::cuda_is_available() {
        eprintln!("skipped: this build has no CUDA (--features cuda)");
        return None;
    }
    Device::new_cuda(0).inspect_err(|e| eprintln!("skipped: no CUDA device ({e})")).ok()
}

#[test]
fn the_decoder_and_its_cache() {
    let Some(device) = device() else { return };
    for (dtype, near) in [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::BF16, 2e-1)] {
        check_decoder(dtype, &device, near);
    }
    check_greedy(DType::F32, &device);
}

#[test]
fn the_image_tokenizer() {
    let Some(device) = device() else { return };
    check_tokenizer(&fixture("qlip/eva"), DType::F32, &device, 1e-4, 1e-3);
}
