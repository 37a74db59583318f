//! What all pictures share: dark ink on light paper, rectangles, photographs cut to squares.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

pub(super) const PAPER: Rgb<u8> = Rgb([252, 252, 250]);
pub(super) const INK: Rgb<u8> = Rgb([24, 26, 31]);
pub(super) const QUIET_INK: Rgb<u8> = Rgb([74, 79, 89]);
pub(super) const HAIRLINE: Rgb<u8> = Rgb([222, 222, 218]);
pub(super) const ACCENT: Rgb<u8> = Rgb([38, 110, 150]);

/// Colours of groups and lines, told apart also without seeing red from green (Okabe and Ito, and three more).
pub(super) const GROUPS: [[u8; 3]; 10] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [60, 60, 60],
    [200, 190, 40],
    [120, 70, 40],
    [110, 80, 190],
];

pub(super) const MARGIN: u32 = 40;
/// Above what is shown: room for two lines.
pub(super) const HEADER: u32 = 84;
const TITLE_SIZE: f32 = 34.0;
const SUBTITLE_SIZE: f32 = 19.0;

/// Draws a title and a line below it, as far as the picture is wide.
pub(super) fn draw_header(canvas: &mut RgbImage, pen: &super::text::Pen, title: &str, subtitle: &str) {
    let left = MARGIN as f32;
    let limit = canvas.width() as f32 - 2.0 * left;
    let title = pen.fit(title, TITLE_SIZE, limit);
    pen.draw(canvas, &title, left, (MARGIN + 24) as f32, TITLE_SIZE, INK);
    let subtitle = pen.fit(subtitle, SUBTITLE_SIZE, limit);
    pen.draw(canvas, &subtitle, left, (MARGIN + 52) as f32, SUBTITLE_SIZE, QUIET_INK);
}

/// Width in pixels that a title and the line below it want.
pub(super) fn header_width(pen: &super::text::Pen, title: &str, subtitle: &str) -> u32 {
    pen.width(title, TITLE_SIZE).max(pen.width(subtitle, SUBTITLE_SIZE)).ceil() as u32
}

/// Paints a rectangle, as far as it lies on the canvas.
pub(super) fn fill(canvas: &mut RgbImage, left: u32, top: u32, width: u32, height: u32, colour: Rgb<u8>) {
    for y in top..(top + height).min(canvas.height()) {
        for x in left..(left + width).min(canvas.width()) {
            canvas.put_pixel(x, y, colour);
        }
    }
}

/// The middle of a picture as a square of `side` pixels.
pub(super) fn square(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let short = width.min(height);
    if short == 0 {
        return RgbImage::from_pixel(side, side, HAIRLINE);
    }
    let middle = imageops::crop_imm(picture, (width - short) / 2, (height - short) / 2, short, short).to_image();
    if short == side {
        return middle;
    }
    imageops::resize(&middle, side, side, FilterType::CatmullRom)
}
