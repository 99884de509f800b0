//! What a validation leaves to look at: a table of pictures.

use crate::Result;
use nn::train::Sheet;
use qlip::Image;

/// Pictures in a row.
pub(super) const PICTURES: usize = 8;

/// Rows of pictures, one above the other; nothing where there are no pictures.
pub(super) fn table(rows: Vec<Vec<Image>>) -> Result<Option<Sheet>> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    if columns == 0 {
        return Ok(None);
    }
    let whole = Image::table(&rows.concat(), columns, 2);
    Ok(Some(Sheet { png: whole.to_png()?, width: whole.width(), height: whole.height() }))
}
