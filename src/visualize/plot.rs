//! Plots of measures over steps or settings, as SVG or pixels.
//!
//! In: named series of points, and what the axes are called. Out: the text of an SVG file or a picture, dark on light, with a legend
//! beside the lines where there are several; one plot, or several in a grid. What can go wrong: no point is a finite number.

use super::canvas::GROUPS;
use crate::error::{Error, Result};
use image::RgbImage;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::register_font;
use std::sync::OnceLock;

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Side of a letter, in pixels.
const LETTERS: u32 = 15;

/// One line of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// Points by x; those that are not finite are left out.
    pub points: Vec<Point>,
}

/// A point, and how far it is uncertain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// How much.
    pub y: f64,
    /// Half the height of its bar; 0 draws none.
    pub spread: f64,
}

/// What a plot shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it, with the unit.
    pub x: &'a str,
    /// Beside it, with the unit.
    pub y: &'a str,
    /// Whether x is drawn by its logarithm.
    pub log_x: bool,
    /// Its lines.
    pub series: &'a [Series],
    /// Width and height in pixels.
    pub size: (u32, u32),
}

impl Plot<'_> {
    /// The text of an SVG file.
    ///
    /// # Errors
    /// There is no point to show.
    pub fn svg(&self) -> Result<String> {
        svg(std::slice::from_ref(self), 1)
    }

    fn draw_on<B>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let (x, y) = self.ranges()?;
        let drawn = match self.log_x {
            true => self.draw(area, (x.0..x.1).log_scale(), y),
            false => self.draw(area, x.0..x.1, y),
        };
        drawn.map_err(|why| Error::data(format!("cannot draw {}: {why}", self.title)))
    }

    /// Smallest and largest x and y, with some room around.
    fn ranges(&self) -> Result<((f64, f64), (f64, f64))> {
        let mut points = self.shown().peekable();
        if points.peek().is_none() {
            return Err(Error::data(format!("there is no point to show of {}", self.title)));
        }
        let mut x = (f64::INFINITY, f64::NEG_INFINITY);
        let mut y = x;
        for point in points {
            x = (x.0.min(point.x), x.1.max(point.x));
            y = (y.0.min(point.y - point.spread), y.1.max(point.y + point.spread));
        }
        let room = |(low, high): (f64, f64), share: f64| {
            let margin = if high > low { (high - low) * share } else { low.abs().max(1.0) * 0.1 };
            (low - margin, high + margin)
        };
        let x = match self.log_x {
            true => {
                let (low, high) = room((x.0.ln(), x.1.ln()), 0.04);
                (low.exp(), high.exp())
            }
            false => room(x, 0.02),
        };
        let (low, high) = room(y, 0.08);
        // Above the lines there is room for what they are called.
        let names = if self.series.len() > 1 { self.series.len() as f64 + 0.5 } else { 0.0 };
        let share = (names * f64::from(LETTERS) / f64::from(self.size.1 - 6 * LETTERS)).min(0.5);
        Ok((x, (low, high + (high - low) * share / (1.0 - share))))
    }

    fn shown(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|series| self.finite(series))
    }

    fn finite<'a>(&self, series: &'a Series) -> impl Iterator<Item = &'a Point> + use<'a> {
        let positive = self.log_x;
        series.points.iter().filter(move |point| {
            point.x.is_finite() && point.y.is_finite() && point.spread.is_finite() && (!positive || point.x > 0.0)
        })
    }

    fn draw<B, X>(
        &self,
        area: &DrawingArea<B, Shift>,
        x: X,
        (low, high): (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        area.fill(&WHITE)?;
        let letters = |size: u32| ("sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .caption(self.title, letters(LETTERS + 3))
            .x_label_area_size(3 * LETTERS)
            .y_label_area_size(4 * LETTERS)
            .build_cartesian_2d(x, low..high)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(letters(LETTERS - 2))
            .axis_desc_style(letters(LETTERS))
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|value| number(*value))
            .draw()?;
        for (series, colour) in self.series.iter().zip(GROUPS.iter().cycle()) {
            let &[red, green, blue] = colour;
            let colour = RGBColor(red, green, blue);
            let points: Vec<&Point> = self.finite(series).collect();
            let line = LineSeries::new(points.iter().map(|point| (point.x, point.y)), colour.stroke_width(2));
            let drawn = chart.draw_series(line)?;
            if self.series.len() > 1 {
                drawn
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
            }
            let bars = points.iter().filter(|point| point.spread > 0.0).map(|point| {
                let ends = [(point.x, point.y - point.spread), (point.x, point.y + point.spread)];
                PathElement::new(ends, colour.stroke_width(1))
            });
            chart.draw_series(bars)?;
            // Among many points the line alone is read more easily.
            if points.len() <= 40 {
                chart.draw_series(points.iter().map(|point| Circle::new((point.x, point.y), 3, colour.filled())))?;
            }
        }
        if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font(letters(LETTERS - 2))
                .draw()?;
        }
        Ok(())
    }
}

/// Plots of one size in a grid, row by row: the text of an SVG file.
///
/// # Errors
/// One of them has no point to show.
pub fn svg(plots: &[Plot<'_>], columns: usize) -> Result<String> {
    let grid = Grid::of(plots, columns)?;
    let mut text = String::new();
    grid.draw_on(&SVGBackend::with_string(&mut text, grid.size()).into_drawing_area())?;
    Ok(text)
}

/// As [`svg`], as pixels.
///
/// # Errors
/// One of them has no point to show.
pub fn picture(plots: &[Plot<'_>], columns: usize) -> Result<RgbImage> {
    let grid = Grid::of(plots, columns)?;
    let (width, height) = grid.size();
    let mut pixels = vec![255; 3 * width as usize * height as usize];
    grid.draw_on(&BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area())?;
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| Error::data("a plot is not as large as it was to be"))
}

/// Plots of one size, row by row.
struct Grid<'p> {
    plots: &'p [Plot<'p>],
    columns: usize,
    rows: usize,
    each: (u32, u32),
}

impl<'p> Grid<'p> {
    fn of(plots: &'p [Plot<'p>], columns: usize) -> Result<Self> {
        let Some(first) = plots.first() else { return Err(Error::data("there is nothing to plot")) };
        let columns = columns.clamp(1, plots.len());
        Ok(Self { plots, columns, rows: plots.len().div_ceil(columns), each: first.size })
    }

    fn size(&self) -> (u32, u32) {
        (self.each.0 * self.columns as u32, self.each.1 * self.rows as u32)
    }

    fn draw_on<B>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        know_typeface()?;
        let cannot = |why: &dyn std::fmt::Display| Error::data(format!("cannot draw: {why}"));
        area.fill(&WHITE).map_err(|why| cannot(&why))?;
        for (plot, part) in self.plots.iter().zip(area.split_evenly((self.rows, self.columns))) {
            plot.draw_on(&part)?;
        }
        area.present().map_err(|why| cannot(&why))
    }
}

/// Tells the plotting library, once, what letters look like: they are measured by it in SVGs too.
fn know_typeface() -> Result<()> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let register = || register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok();
    match KNOWN.get_or_init(register) {
        true => Ok(()),
        false => Err(Error::data("the embedded typeface cannot be read")),
    }
}

/// A number on an axis: as many digits as tell neighbours apart, thousands as such.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        _ if size >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::GenericImageView;

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        let points = points.iter().map(|&(x, y)| Point { x, y, spread: 0.0 }).collect();
        Series { name: name.to_owned(), points }
    }

    fn plot(series: &[Series], log_x: bool) -> Plot<'_> {
        Plot { title: "Accuracy", x: "k", y: "k-NN, %", log_x, series, size: (640, 400) }
    }

    #[test]
    fn names_axes_and_points_are_there() -> Result<()> {
        let lines = [series("reset", &[(50.0, 80.0), (1e3, 84.0)]), series("match", &[(50.0, 82.0), (f64::NAN, 1.0)])];
        for log_x in [false, true] {
            let svg = plot(&lines, log_x).svg()?;
            for word in ["Accuracy", "k-NN, %", "reset", "match"] {
                assert!(svg.contains(word), "{word}");
            }
            assert_eq!(svg.matches("<circle").count(), 3, "a point that is no number is left out");
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
        Ok(())
    }

    #[test]
    fn a_grid_holds_all_plots_and_pixels_show_what_svg_does() -> Result<()> {
        let lines = [series("one", &[(1.0, 2.0), (2.0, 3.0)])];
        let plots = [plot(&lines, false), plot(&lines, true), plot(&lines, false)];
        let text = svg(&plots, 2)?;
        assert_eq!(text.matches("Accuracy").count(), 3);
        assert!(text.contains("width=\"1280\" height=\"800\""));
        let pixels = picture(&plots, 2)?;
        assert_eq!(pixels.dimensions(), (1_280, 800));
        let blue = |x: u32, y: u32| pixels.view(x, y, 640, 400).pixels().any(|(_, _, pixel)| pixel.0 == [0, 114, 178]);
        assert!(blue(0, 0) && blue(640, 0) && blue(0, 400) && !blue(640, 400));
        assert!(svg(&[], 2).is_err());
        Ok(())
    }

    #[test]
    fn one_point_or_one_height_still_has_axes() -> Result<()> {
        for points in [&[(5.0, 0.3)][..], &[(1.0, 0.3), (2.0, 0.3)]] {
            assert!(plot(&[series("one", points)], false).svg()?.contains("<polyline"));
        }
        Ok(())
    }

    #[test]
    fn nothing_to_show_is_an_error() {
        for points in [&[][..], &[(f64::NAN, 1.0)], &[(-1.0, 1.0)]] {
            let error = plot(&[series("none", points)], true).svg().expect_err("no point").to_string();
            assert!(error.contains("Accuracy"), "{error}");
        }
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let texts = [0.0, 0.25, 83.5, 1_500.0, 20_000.0, 1.5e6, -0.5].map(number);
        assert_eq!(texts, ["0", "0.25", "83.5", "1500", "20k", "1.5M", "-0.5"]);
    }
}
