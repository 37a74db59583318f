//! PASCAL VOC (Everingham et al., IJCV 2010): the folder as its authors hand it out, and what is measured on it.
//!
//! In goes a `VOCdevkit/VOC2007` or `VOC2012` folder; [`devkit`] reads lists, annotations and photographs of it, [`classify`]
//! fine-tunes a network to tell its classes, and [`segment`] to tell them at every pixel.

pub mod classify;
pub mod devkit;
pub mod segment;
mod state;
