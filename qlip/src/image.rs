//! Files to oriented RGB pictures, pictures to normalised pixels, and back.

use crate::resample::{resize, resize_window};
use ::image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use candle_core::{DType, Device, Tensor};
use nn::{Error, Result, checkpoint::write_atomic};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Cursor, Seek};
use std::path::Path;

/// Largest picture that is decoded; a larger one is refused by its header.
const MAX_PIXELS: u64 = 200_000_000;

/// An 8-bit RGB picture, upright, row-major, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    /// A byte a pixel, where the file had one that is not everywhere opaque.
    alpha: Option<Vec<u8>>,
}

/// Formats that are read.
const READ: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, TGA, ICO or QOI";

impl Image {
    /// From `width * height * 3` bytes; a picture has at least one pixel.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0 && rgb.len() == width * height * 3, "{width}x{height} RGB");
        Self { width, height, rgb, alpha: None }
    }

    /// The picture over white, where its file said how much of it shows: value x alpha + 255 (1 - alpha), in float, truncated, as
    /// Chameleon's authors do it.
    pub fn on_white(&self) -> Self {
        let Some(alpha) = &self.alpha else { return self.clone() };
        let over = |(pixel, &a): (&[u8], &u8)| {
            let a = f64::from(a) / 255.0;
            [0, 1, 2].map(|c| (f64::from(pixel[c]) * a + 255.0 * (1.0 - a)) as u8)
        };
        let rgb = self.rgb.chunks_exact(3).zip(alpha).flat_map(over).collect();
        Self::from_rgb(self.width, self.height, rgb)
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }
    /// Bytes, three a pixel.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
    /// One pixel.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Reads a JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, TGA, ICO or QOI file, whatever its name says: palette, grey, 16 bit and alpha become
    /// RGB (alpha is dropped, not blended), and the camera's orientation is applied.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.is_dir() {
            return Err(Error::bad_file(path, "is a folder; name a picture"));
        }
        Self::decode(path, std::io::BufReader::new(file))
    }

    /// As [`Self::open`], from bytes; `origin` names them in errors.
    pub fn from_bytes(origin: &Path, bytes: &[u8]) -> Result<Self> {
        Self::decode(origin, Cursor::new(bytes))
    }

    fn decode<R: BufRead + Seek>(origin: &Path, mut reader: R) -> Result<Self> {
        if let Some(kind) = unread_kind(reader.fill_buf().map_err(Error::io(origin))?) {
            return Err(Error::bad_file(
                origin,
                format!("{kind}, which is not read here; save it as JPEG or PNG first"),
            ));
        }
        let mut reader = ImageReader::new(reader).with_guessed_format().map_err(Error::io(origin))?;
        // the one format whose first bytes say nothing
        if reader.format().is_none() && origin.extension().is_some_and(|e| e.eq_ignore_ascii_case("tga")) {
            reader.set_format(::image::ImageFormat::Tga);
        }
        if reader.format().is_none() {
            return Err(Error::bad_file(origin, format!("not a picture; use a {READ} file")));
        }
        if reader.format() == Some(::image::ImageFormat::Jpeg) {
            return Self::jpeg(origin, reader.into_inner());
        }
        Self::decoded(origin, reader)
    }

    /// A JPEG. The decoder fills what a cut file lacks with grey; here that is an error, but for a missing end mark alone.
    fn jpeg<R: BufRead + Seek>(origin: &Path, mut reader: R) -> Result<Self> {
        let mut bytes = Vec::new();
        reader.rewind().and_then(|()| reader.read_to_end(&mut bytes)).map_err(Error::io(origin))?;
        let decode = |bytes: &[u8]| {
            let reader = ImageReader::with_format(Cursor::new(bytes), ::image::ImageFormat::Jpeg);
            Self::decoded(origin, reader)
        };
        let whole = decode(&bytes)?;
        // after the last scan's beginning: a preview in the file has an end mark of its own
        let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap_or(0);
        if bytes[scan..].windows(2).any(|w| w == [0xff, 0xd9]) {
            return Ok(whole);
        }
        // where the last numbers of the file end up: in the picture's last rows, or in its middle
        let progressive = bytes.windows(2).any(|w| w == [0xff, 0xc2]);
        let shorter = decode(&bytes[..bytes.len().saturating_sub(32)]);
        let width = whole.width() * 3;
        let first = match &shorter {
            Ok(s) => s.rgb.chunks(width).zip(whole.rgb.chunks(width)).position(|(a, b)| a != b),
            Err(_) => Some(0),
        };
        // two rows of 16 x 16 blocks
        if progressive || first.is_some_and(|row| row + 32 < whole.height()) {
            return Err(Error::bad_file(origin, "a JPEG that is cut short: its last part is missing; fetch it again"));
        }
        Ok(whole)
    }

    fn decoded<R: BufRead + Seek>(origin: &Path, mut reader: ImageReader<R>) -> Result<Self> {
        let bad = |e: ::image::ImageError| {
            let why = e.to_string().replace('\n', " ");
            Error::bad_file(origin, format!("not a picture that can be read ({why}); use a whole {READ} file"))
        };
        let mut limits = Limits::default();
        limits.max_alloc = Some(2 << 30);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(bad)?;
        let (w, h) = decoder.dimensions();
        if u64::from(w) * u64::from(h) > MAX_PIXELS {
            return Err(Error::bad_file(
                origin,
                format!("{w}x{h} pixels is more than the {MAX_PIXELS} that are accepted; scale it down"),
            ));
        }
        if w == 0 || h == 0 {
            return Err(Error::bad_file(origin, "a picture without pixels"));
        }
        let orientation = decoder.orientation().map_err(bad)?;
        let mut img = DynamicImage::from_decoder(decoder).map_err(bad)?;
        img.apply_orientation(orientation);
        let alpha = img.color().has_alpha().then(|| img.to_rgba8().pixels().map(|p| p.0[3]).collect::<Vec<u8>>());
        let rgb = img.into_rgb8();
        let found = Self::from_rgb(rgb.width() as usize, rgb.height() as usize, rgb.into_raw());
        Ok(Self { alpha: alpha.filter(|a| a.iter().any(|&a| a != 255)), ..found })
    }

    /// The picture as PNG bytes.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        self.to_png_with(&[])
    }

    /// The picture as PNG bytes, with texts under keywords (uncompressed iTXt).
    pub fn to_png_with(&self, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
        let bad = |e: png::EncodingError| Error::invalid(format!("writing a PNG: {e}"));
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in texts {
            encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned()).map_err(bad)?;
        }
        let mut writer = encoder.write_header().map_err(bad)?;
        writer.write_image_data(&self.rgb).map_err(bad)?;
        writer.finish().map_err(bad)?;
        Ok(out)
    }

    /// Pictures in rows, as square as it gets, `gap` white pixels between them.
    pub fn grid(images: &[Self], gap: usize) -> Self {
        Self::table(images, (1..).find(|c| c * c >= images.len()).unwrap_or(1), gap)
    }

    /// Pictures in rows of `columns` (at least 1), `gap` white pixels between them; cells have the largest picture's size.
    pub fn table(images: &[Self], columns: usize, gap: usize) -> Self {
        let columns = columns.max(1);
        let rows = images.len().div_ceil(columns).max(1);
        let cell = |side: fn(&Self) -> usize| images.iter().map(side).max().unwrap_or(1);
        let (w, h) = (cell(Self::width), cell(Self::height));
        let (width, height) = (columns * (w + gap) - gap, rows * (h + gap) - gap);
        let mut rgb = vec![255; width * height * 3];
        for (i, image) in images.iter().enumerate() {
            let (left, top) = ((i % columns) * (w + gap), (i / columns) * (h + gap));
            for (y, row) in image.rgb.chunks_exact(image.width * 3).enumerate() {
                let at = ((top + y) * width + left) * 3;
                rgb[at..at + row.len()].copy_from_slice(row);
            }
        }
        Self::from_rgb(width, height, rgb)
    }

    /// Writes a PNG file, whole or not at all.
    pub fn save_png(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_png()?)
    }

    /// The same with middle grey from this row on.
    pub fn grey_below(&self, row: usize) -> Self {
        let mut rgb = self.rgb.clone();
        rgb[(row.min(self.height) * self.width * 3)..].fill(128);
        Self::from_rgb(self.width, self.height, rgb)
    }

    /// The same picture mirrored left to right.
    pub fn flipped(&self) -> Self {
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for row in self.rgb.chunks_exact(self.width * 3) {
            rgb.extend(row.chunks_exact(3).rev().flatten());
        }
        Self::from_rgb(self.width, self.height, rgb)
    }
}

/// The text under a keyword in a PNG file's bytes, as [`Image::to_png_with`] writes it; nothing if there is none.
pub fn png_text(bytes: &[u8], keyword: &str) -> Option<String> {
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
    reader.info().utf8_text.iter().find(|t| t.keyword == keyword)?.get_text().ok()
}

/// Normalised pixels [batch, 3, size, size], float32.
#[derive(Debug, Clone)]
pub struct Pixels(pub Tensor);

impl Pixels {
    /// Pixels in -1..1 as pictures, cut to that range and truncated as the authors of Janus, Chameleon and Emu3 do it.
    pub fn to_images(&self) -> Result<Vec<Image>> {
        let (_, _, h, w) = self.0.dims4()?;
        let plane = h * w;
        let picture = |b: &[u8]| {
            let rgb = (0..plane).flat_map(|i| [b[i], b[plane + i], b[2 * plane + i]]).collect();
            Image::from_rgb(w, h, rgb)
        };
        Ok(self.to_bytes()?.chunks_exact((3 * plane).max(1)).map(picture).collect())
    }

    /// Values in -1..1 as bytes, in the tensor's order, as the authors of Janus, Emu3 and LlamaGen make them:
    /// (x + 1) / 2 x 255, clipped, truncated.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let values = self.0.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(|v| ((v + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8).collect())
    }
}

/// preprocessor_config.json: how a picture becomes pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Shortest edge after resizing.
    #[serde(deserialize_with = "edge")]
    pub size: usize,
    /// Side of the centre crop.
    #[serde(deserialize_with = "edge")]
    pub crop_size: usize,
    /// Mean of each channel, of values in 0..1.
    #[serde(default = "clip_mean")]
    pub image_mean: [f32; 3],
    /// Deviation of each channel.
    #[serde(default = "clip_std")]
    pub image_std: [f32; 3],
}

fn clip_mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}
fn clip_std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_6, 0.275_777_1]
}

/// A side as the processors write it: 224, {"shortest_edge": 224} or {"height": 224, "width": 224}.
fn edge<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<usize, D::Error> {
    use serde::de::Error as _;
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Edge {
        One(usize),
        Shortest { shortest_edge: usize },
        Square { height: usize, width: usize },
    }
    match Edge::deserialize(d)? {
        Edge::One(n) | Edge::Shortest { shortest_edge: n } if n > 0 => Ok(n),
        Edge::Square { height, width } if height == width && height > 0 => Ok(height),
        _ => Err(D::Error::custom("a size must be one positive side")),
    }
}

/// What a file is that is no picture that can be read, by its first bytes, whatever its name says.
fn unread_kind(head: &[u8]) -> Option<&'static str> {
    let brand = head.get(4..12).filter(|b| b.starts_with(b"ftyp")).map(|b| &b[4..]);
    match brand {
        Some(b"heic" | b"heix" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => return Some("a HEIC picture"),
        Some(b"avif" | b"avis") => return Some("an AVIF picture"),
        _ => {}
    }
    let start = String::from_utf8_lossy(&head[..head.len().min(256)]).trim_start().to_lowercase();
    (start.starts_with("<svg") || (start.starts_with("<?xml") && start.contains("<svg"))).then_some("an SVG drawing")
}

/// Longest side of a picture that is padded to a square: its square takes a gigabyte.
const LONGEST: usize = 20_000;

impl Preprocess {
    /// CLIP's mean and deviation at this size.
    pub fn clip(size: usize) -> Self {
        Self { size, crop_size: size, image_mean: clip_mean(), image_std: clip_std() }
    }

    /// Pixels in -1..1 at this size, as LlamaGen's tokenizer takes and gives them.
    pub fn half(size: usize) -> Self {
        Self { image_mean: [0.5; 3], image_std: [0.5; 3], ..Self::clip(size) }
    }

    /// Reads preprocessor_config.json.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|e| Error::bad_file(path, e.to_string()))
    }

    /// Shortest edge to `size`, then the centre crop, as CLIP's processor does it.
    pub fn crop(&self, img: &Image) -> Image {
        let (w, h) = (img.width(), img.height());
        let long = |short: usize, long: usize| (self.size as u128 * long as u128 / short as u128) as usize;
        let (rw, rh) = if w <= h { (self.size, long(w, h)) } else { (long(h, w), self.size) };
        let side = self.crop_size;
        if rw < side || rh < side {
            // a crop larger than the resized edge would need padding; no published tokenizer asks for it
            return resize(img, side, side);
        }
        resize_window(img, (rw, rh), ((rw - side) / 2, (rh - side) / 2), (side, side))
    }

    /// Pads to a square with the mean colour, resizes to `size`: LLaVA's way.
    pub fn pad(&self, img: &Image) -> Result<Image> {
        let (w, h) = (img.width(), img.height());
        let side = w.max(h);
        if side > LONGEST {
            return Err(Error::invalid(format!("a picture of {w} x {h} pixels is too long for a square; cut it")));
        }
        let colour = self.image_mean.map(|m| (m * 255.0) as u8);
        let mut rgb: Vec<u8> = std::iter::repeat_n(colour, side * side).flatten().collect();
        let (left, top) = ((side - w) / 2, (side - h) / 2);
        for y in 0..h {
            let at = ((top + y) * side + left) * 3;
            rgb[at..at + w * 3].copy_from_slice(&img.rgb()[y * w * 3..(y + 1) * w * 3]);
        }
        Ok(self.crop(&Image::from_rgb(side, side, rgb)))
    }

    /// (v / 255 - mean) / std of pictures that have the crop's size.
    pub fn normalise(&self, images: &[Image], device: &Device) -> Result<Pixels> {
        let side = self.crop_size;
        let plane = side * side;
        let mut values = vec![0f32; images.len() * 3 * plane];
        for (img, out) in images.iter().zip(values.chunks_exact_mut(3 * plane)) {
            if img.width() != side || img.height() != side {
                return Err(Error::invalid(format!(
                    "a {}x{} picture where {side}x{side} is needed",
                    img.width(),
                    img.height()
                )));
            }
            for (i, px) in img.rgb().chunks_exact(3).enumerate() {
                for c in 0..3 {
                    out[c * plane + i] = (f32::from(px[c]) / 255.0 - self.image_mean[c]) / self.image_std[c];
                }
            }
        }
        Ok(Pixels(Tensor::from_vec(values, (images.len(), 3, side, side), device)?))
    }

    /// Crop and normalise.
    pub fn pixels(&self, images: &[Image], device: &Device) -> Result<Pixels> {
        let cropped: Vec<Image> = images.iter().map(|i| self.crop(i)).collect();
        self.normalise(&cropped, device)
    }

    /// Back to pictures: times deviation, plus mean, clamped to 0..1, rounded to 8 bits.
    pub fn images(&self, pixels: &Pixels) -> Result<Vec<Image>> {
        let (b, _, h, w) = pixels.0.dims4()?;
        let values = pixels.0.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let plane = h * w;
        Ok((0..b)
            .map(|i| {
                let mut rgb = vec![0u8; 3 * plane];
                for c in 0..3 {
                    for p in 0..plane {
                        let v = values[(i * 3 + c) * plane + p] * self.image_std[c] + self.image_mean[c];
                        rgb[p * 3 + c] = (v.clamp(0.0, 1.0) * 255.0).round() as u8;
                    }
                }
                Image::from_rgb(w, h, rgb)
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_live_in_a_png() {
        let img = Image::from_rgb(2, 1, vec![1, 2, 3, 4, 5, 6]);
        let bytes = img.to_png_with(&[("unified", "{\"prompt\": \"ein Kreis, größer\"}")]).unwrap();
        assert_eq!(Image::from_bytes(Path::new("x"), &bytes).unwrap(), img);
        assert_eq!(png_text(&bytes, "unified").unwrap(), "{\"prompt\": \"ein Kreis, größer\"}");
        assert_eq!(png_text(&bytes, "other"), None);
        assert_eq!(png_text(&img.to_png().unwrap(), "unified"), None);
        assert_eq!(png_text(b"no png", "unified"), None);
    }

    #[test]
    fn a_grid_is_as_square_as_it_gets() {
        let dot = |v: u8| Image::from_rgb(1, 1, vec![v; 3]);
        let grid = Image::grid(&[dot(1), dot(2), dot(3)], 1);
        assert_eq!((grid.width(), grid.height()), (3, 3));
        let red: Vec<u8> = grid.rgb().chunks_exact(3).map(|p| p[0]).collect();
        assert_eq!(red, [1, 255, 2, 255, 255, 255, 3, 255, 255]);
        assert_eq!((Image::grid(&[dot(1)], 2).width(), Image::grid(&[dot(1), dot(2)], 0).height()), (1, 1));
    }
}
