//! libjpeg-turbo through its C interface, for the one thing that the crate over it leaves out: decoding part of a picture.
//!
//! [`TurboDecoder::decode`] reads the header, asks the caller which part at which scale it wants, and decodes that part.
//! Columns outside it are neither transformed nor coloured; rows below it are not read at all. Errors are libjpeg's own
//! words; a warning (data missing or corrupt, all rows written all the same) is no error.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;
use turbojpeg::raw;

/// A decompressor of libjpeg-turbo. After an error it must be dropped: it may stand in the middle of the broken header.
#[derive(Debug)]
pub struct TurboDecoder {
    handle: NonNull<std::ffi::c_void>,
}

// SAFETY: a handle may be used from any thread, from one at a time.
unsafe impl Send for TurboDecoder {}

/// What libjpeg-turbo reads in front of the first scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurboHeader {
    /// Pixels in a row, as stored.
    pub width: u32,
    /// Rows, as stored.
    pub height: u32,
    /// CMYK or YCCK, which are not turned into RGB.
    pub inks: bool,
    /// Neither scaled nor cropped while it is decoded.
    pub lossless: bool,
    /// Columns, at full size, at multiples of which a part may begin; none where the sampling has no name.
    pub column_step: Option<u32>,
}

/// What to decode: pixels of the picture after scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurboPart {
    /// Scale, in eighths: 1 to 16.
    pub eighths: u8,
    /// First column: a multiple of `column_step`, scaled.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl TurboDecoder {
    /// A decompressor that refuses progressive files of more than `max_scans` scans.
    pub fn new(max_scans: u32) -> Result<Self, String> {
        // SAFETY: no arguments but a constant.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle = NonNull::new(handle.cast()).ok_or("libjpeg-turbo has no memory for a decompressor")?;
        let decoder = Self { handle };
        let limit = c_int::try_from(max_scans).unwrap_or(c_int::MAX);
        // SAFETY: the handle is alive.
        decoder.check(unsafe { raw::tj3Set(decoder.raw(), raw::TJPARAM_TJPARAM_SCANLIMIT as c_int, limit) })?;
        Ok(decoder)
    }

    /// Decodes the part that `choose` asks for into the front of `rgb`, `[height, width, 3]`, which grows where it is
    /// too short. Says whether libjpeg warned.
    ///
    /// # Errors
    ///
    /// What `choose` answers, and libjpeg's words as `E`.
    pub fn decode<E: From<String>>(
        &mut self,
        bytes: &[u8],
        choose: impl FnOnce(TurboHeader) -> Result<TurboPart, E>,
        rgb: &mut Vec<u8>,
    ) -> Result<bool, E> {
        let header = self.read_header(bytes)?;
        let part = choose(header)?;
        self.set_part(header, part)?;
        let row_bytes = part.width as usize * 3;
        let len = row_bytes * part.height as usize;
        if rgb.len() < len {
            rgb.resize(len, 0);
        }
        let pitch = c_int::try_from(row_bytes).map_err(|_| "rows are too long".to_owned())?;
        let format = raw::TJPF_TJPF_RGB as c_int;
        // SAFETY: the bytes are those whose header was read, so the part lies inside the picture, `rgb` has room for its
        // rows, and both live through the call.
        let code = unsafe {
            raw::tj3Decompress8(self.raw(), bytes.as_ptr(), bytes.len() as _, rgb.as_mut_ptr(), pitch, format)
        };
        Ok(self.warned(code)?)
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<TurboHeader, String> {
        // SAFETY: the handle is alive, and so are the bytes.
        let code = unsafe { raw::tj3DecompressHeader(self.raw(), bytes.as_ptr(), bytes.len() as _) };
        // what libjpeg warns of here it warns of again when it decodes
        self.warned(code)?;
        let colours = self.get(raw::TJPARAM_TJPARAM_COLORSPACE);
        let sampling = usize::try_from(self.get(raw::TJPARAM_TJPARAM_SUBSAMP)).ok();
        let size = |value: c_int| u32::try_from(value).map_err(|_| "the header gives no size".to_owned());
        Ok(TurboHeader {
            width: size(self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH))?,
            height: size(self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT))?,
            inks: [raw::TJCS_TJCS_CMYK, raw::TJCS_TJCS_YCCK].map(|inks| inks as c_int).contains(&colours),
            lossless: self.get(raw::TJPARAM_TJPARAM_LOSSLESS) != 0,
            column_step: sampling.and_then(|sampling| COLUMN_STEPS.get(sampling)).copied(),
        })
    }

    /// Scale and part of the next call. A part that is the whole picture is not set at all, which every file allows.
    fn set_part(&mut self, header: TurboHeader, part: TurboPart) -> Result<(), String> {
        // libjpeg-turbo knows its scales in lowest terms only.
        let common = 1 << part.eighths.trailing_zeros().min(3);
        let factor = raw::tjscalingfactor { num: c_int::from(part.eighths) / common, denom: 8 / common };
        let scaled = |length: u32| (u64::from(length) * u64::from(part.eighths)).div_ceil(8);
        let whole = (scaled(header.width), scaled(header.height));
        let is_whole = (part.left, part.top) == (0, 0) && (part.width.into(), part.height.into()) == whole;
        let region = match part {
            _ if is_whole => raw::tjregion { x: 0, y: 0, w: 0, h: 0 },
            // A width or height of 0 would mean the rest of the picture.
            TurboPart { width: 0, .. } | TurboPart { height: 0, .. } => return Err("an empty part".to_owned()),
            TurboPart { left, top, width, height, .. } => {
                let [x, y, w, h] = [left, top, width, height].map(|value| c_int::try_from(value).unwrap_or(c_int::MAX));
                raw::tjregion { x, y, w, h }
            }
        };
        // SAFETY: the handle is alive. Both calls check their arguments against the header.
        self.check(unsafe { raw::tj3SetScalingFactor(self.raw(), factor) })?;
        self.check(unsafe { raw::tj3SetCroppingRegion(self.raw(), region) })
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is alive.
        unsafe { raw::tj3Get(self.raw(), parameter as c_int) }
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 { Ok(()) } else { Err(self.words()) }
    }

    /// Whether a call that went through did so with a warning.
    fn warned(&self, code: c_int) -> Result<bool, String> {
        if code == 0 {
            return Ok(false);
        }
        // SAFETY: the handle is alive.
        let severity = unsafe { raw::tj3GetErrorCode(self.raw()) };
        if severity == raw::TJERR_TJERR_WARNING as c_int { Ok(true) } else { Err(self.words()) }
    }

    fn words(&self) -> String {
        // SAFETY: libjpeg-turbo gives a string that lives until the next call on the handle.
        unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.raw())) }.to_string_lossy().into_owned()
    }

    fn raw(&self) -> raw::tjhandle {
        self.handle.as_ptr().cast()
    }
}

/// Width of a minimal coded unit by the number of its sampling: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1, 4:4:1.
const COLUMN_STEPS: [u32; 7] = [8, 16, 16, 8, 8, 32, 8];

impl Drop for TurboDecoder {
    fn drop(&mut self) {
        // SAFETY: the handle was made by us and is given up here.
        unsafe { raw::tj3Destroy(self.raw()) };
    }
}
