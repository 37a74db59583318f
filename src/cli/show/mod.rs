//! `shoal show`: pictures of what a run has found.

mod activations;
mod curves;
mod filters;
mod map;
mod sheet;
mod top;

use crate::error::{Error, Result};
use image::RgbImage;
use std::path::Path;

/// The pictures.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The filters of the first layer (Figure 3), of one network or several side by side
    Filters(filters::Arguments),
    /// For filters of a layer, the image that each answers most, by gradient ascent (Figure 4)
    Activations(activations::Arguments),
    /// For filters of a layer, the images of a list that each answers most (Figures 4 and 5)
    Top(top::Arguments),
    /// Clusters as a contact sheet: a row each, photographs by their distance to its centroid
    Sheet(sheet::Arguments),
    /// Images in the plane, with photographs: what the network takes for alike
    Map(map::Arguments),
    /// Curves of one run or several: loss, agreement of clusterings, sizes of clusters, speed (Figure 2)
    Curves(curves::Arguments),
}

pub(super) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Filters(arguments) => filters::run(arguments),
        Command::Activations(arguments) => activations::run(arguments),
        Command::Top(arguments) => top::run(arguments),
        Command::Sheet(arguments) => sheet::run(arguments),
        Command::Map(arguments) => map::run(arguments),
        Command::Curves(arguments) => curves::run(arguments),
    }
}

/// Writes a picture in the format that its name ends with. Where it goes into a run, the folder that its page looks in is made.
fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    make_pictures_folder(path)?;
    let saved = picture.save(path);
    saved.map_err(|error| {
        Error::data(format!("cannot write {}: {error}", path.display()))
            .with_hint("--out names a PNG in a folder that exists")
    })
}

/// Makes `RUN/pictures` for a file in it, where RUN is there.
fn make_pictures_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent().filter(|folder| folder.ends_with("pictures")) else { return Ok(()) };
    let is_run = folder.parent().is_some_and(|run| run.join("pipeline.toml").is_file());
    if !is_run || folder.is_dir() {
        return Ok(());
    }
    std::fs::create_dir(folder).map_err(|error| Error::file("create", folder, &error))
}
