//! Published numbers to stand beside those of a run, in percent.
//!
//! Rows of other methods are those that Zhang et al. print ("Split-Brain Autoencoders", CVPR 2017), from which the paper takes them. Of DeepCluster's own
//! rows some are stated in its text and some are quoted from memory of its ECCV 2018 tables: those are marked, and want a look
//! into the print before they are quoted on. A number that is not known is none.

/// A row of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Published<const N: usize> {
    /// Who.
    pub(super) method: &'static str,
    /// One for each column.
    pub(super) numbers: [Option<f64>; N],
    /// Quoted from memory.
    pub(super) recalled: bool,
}

const fn row<const N: usize>(method: &'static str, numbers: [Option<f64>; N]) -> Published<N> {
    Published { method, numbers, recalled: false }
}

const fn recalled<const N: usize>(method: &'static str, numbers: [Option<f64>; N]) -> Published<N> {
    Published { method, numbers, recalled: true }
}

const fn all<const N: usize>(numbers: [f64; N]) -> [Option<f64>; N] {
    let mut some = [None; N];
    let mut at = 0;
    while at < N {
        some[at] = Some(numbers[at]);
        at += 1;
    }
    some
}

/// Table 1, ImageNet: top-1 of linear probes on conv1 to conv5 of AlexNet.
pub(super) const IMAGENET: [Published<5>; 11] = [
    row("ImageNet labels", all([19.3, 36.3, 44.2, 48.3, 50.5])),
    row("Random", all([11.6, 17.1, 16.9, 16.3, 14.1])),
    row("Krähenbühl et al.", all([17.5, 23.0, 24.5, 23.2, 20.6])),
    row("Pathak et al.", all([14.1, 20.7, 21.0, 19.8, 15.5])),
    row("Doersch et al.", all([16.2, 23.3, 30.2, 31.7, 29.6])),
    row("Zhang et al. (colour)", all([13.1, 24.8, 31.0, 32.6, 31.8])),
    row("Donahue et al. (BiGAN)", all([17.7, 24.5, 31.0, 29.9, 28.0])),
    row("Noroozi & Favaro", all([19.2, 30.1, 34.7, 33.9, 28.3])),
    row("Split-Brain", all([17.7, 29.3, 35.4, 35.2, 32.8])),
    row("DeepCluster, text (38.2 = 50.5 - 12.3)", [None, None, None, None, Some(38.2)]),
    recalled("DeepCluster", all([13.4, 32.3, 41.0, 39.6, 38.2])),
];

/// Table 1, Places205.
pub(super) const PLACES: [Published<5>; 11] = [
    row("Places labels", all([22.1, 35.1, 40.2, 43.3, 44.6])),
    row("ImageNet labels", all([22.7, 34.8, 38.4, 39.4, 38.7])),
    row("Random", all([15.7, 20.3, 19.8, 19.1, 17.5])),
    row("Krähenbühl et al.", all([21.4, 26.2, 27.1, 26.1, 24.0])),
    row("Pathak et al.", all([18.2, 23.2, 23.4, 21.9, 18.4])),
    row("Doersch et al.", all([19.7, 26.7, 31.9, 32.7, 30.9])),
    row("Zhang et al. (colour)", all([16.0, 25.7, 29.6, 30.3, 29.7])),
    row("Donahue et al. (BiGAN)", all([22.0, 28.7, 31.8, 31.3, 29.7])),
    row("Noroozi & Favaro", all([23.0, 32.1, 35.5, 34.8, 31.3])),
    row("Split-Brain", all([21.3, 30.7, 34.0, 34.1, 32.5])),
    recalled("DeepCluster", all([19.6, 33.2, 39.2, 39.8, 34.7])),
];

/// Columns of Table 2.
pub(super) const VOC_COLUMNS: [&str; 6] = ["cls fc6-8", "cls all", "det fc6-8", "det all", "seg fc6-8", "seg all"];

/// Table 2: VOC07 classification and detection in mAP, VOC12 segmentation in mean IU, AlexNet.
pub(super) const VOC: [Published<6>; 8] = [
    row("ImageNet labels", [Some(78.9), Some(79.9), None, Some(56.8), None, Some(48.0)]),
    row("Gaussian", [None, Some(53.3), None, Some(43.4), None, Some(19.8)]),
    row("Krähenbühl et al.", [Some(39.2), Some(56.6), None, Some(45.6), None, Some(32.6)]),
    row("Donahue et al. (BiGAN)", [Some(52.3), Some(60.1), None, Some(46.9), None, Some(35.2)]),
    row("Zhang et al. (colour)", [Some(61.5), Some(65.9), None, Some(46.9), None, Some(35.6)]),
    row("Split-Brain", [Some(63.0), Some(67.1), None, Some(46.7), None, Some(36.0)]),
    row("DeepCluster, BN fixed (authors' erratum)", [Some(70.4), None, None, None, None, None]),
    recalled("DeepCluster", all([72.0, 73.7, 51.4, 55.4, 43.2, 45.1])),
];

/// Table 5: instance retrieval in mAP, VGG-16, R-MAC at 1,024 pixels, Oxford and Paris.
pub(super) const RETRIEVAL: [Published<2>; 5] = [
    row("ImageNet labels, Sobel", all([72.4, 81.5])),
    recalled("Random", all([6.9, 22.0])),
    recalled("Doersch et al.", all([35.4, 53.1])),
    recalled("Wang et al.", all([42.3, 58.0])),
    recalled("DeepCluster", all([61.0, 72.0])),
];
