//! Why something was lost, and what was done to things that were kept: the vocabulary of the ledger.
//!
//! A [`Reason`] names a loss: a shard, a member or a sample that does not reach training. A [`Notice`] names something
//! odd about a sample that does reach it. A [`Filtered`] names the rule of the pipeline by which a sound sample is passed
//! over on purpose: no loss. All are closed sets, shared by reading and decoding, so that counts by reason add up across
//! the stages. A [`Trouble`] is a reason with the particulars, before anybody knows which pass it befell.

use serde::{Deserialize, Serialize};

macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// All of them, in the order of the path through the program.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it stands in the ledger and in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

vocabulary! {
    /// Why a shard, a member or a sample was lost.
    Reason {
        /// No connection to the server of the shard, after every retry.
        Unreachable = "unreachable",
        /// No such file; HTTP 404 or 410.
        NotFound = "not_found",
        /// HTTP 401 or 403; a file without permission to read.
        Forbidden = "forbidden",
        /// Another HTTP status than success.
        HttpStatus = "http_status",
        /// The operating system cannot read the file.
        Unreadable = "unreadable",
        /// The first bytes are of no tar, zip, gzip or zstd: an HTML page, for instance.
        NotAnArchive = "not_an_archive",
        /// A whole archive without a single sample.
        EmptyShard = "empty_shard",
        /// The archive ends without its end marker, or in the middle of a header or of data.
        TruncatedShard = "truncated_shard",
        /// The connection broke in the middle of the shard.
        ConnectionLost = "connection_lost",
        /// The command of a `pipe:` failed, or was silent for too long.
        CommandFailed = "command_failed",
        /// gzip or zstd found its own data damaged.
        CorruptCompression = "corrupt_compression",
        /// The shard is not what it was when the cursor was written.
        ShardChanged = "shard_changed",
        /// Bytes after the end marker: two archives joined, for instance. They are not read.
        TrailingData = "trailing_data",
        /// Blocks where a member's header should be, skipped up to the next header.
        GarbledHeader = "garbled_header",
        /// A member larger than `stream.max_member_mib`.
        MemberTooLarge = "member_too_large",
        /// A sample without an image.
        NoImage = "no_image",
        /// An image of zero bytes.
        EmptyImage = "empty_image",
        /// The bytes are of no image: an HTML page, for instance.
        NotAnImage = "not_an_image",
        /// An image in a format or variant that is not decoded.
        UnsupportedFormat = "unsupported_format",
        /// An image larger than `stream.max_megapixels`, by its header.
        TooManyPixels = "too_many_pixels",
        /// The decoder gave up.
        DecodeFailed = "decode_failed",
        /// The rest of a shard of which more than `stream.max_shard_loss` was lost: it is passed over.
        Quarantined = "quarantined",
        /// A member of a zip that is encrypted, or compressed by a method that is not read.
        UnsupportedMember = "unsupported_member",
        /// The data of a member of a zip are not those that its checksum was taken of.
        ChecksumMismatch = "checksum_mismatch",
        /// The directory at the end of a zip names other members than were found before it.
        DirectoryMismatch = "directory_mismatch",
        /// No class (`.cls`), or one beyond `train.classes`, where classes are what is learnt.
        Unlabelled = "unlabelled",
    }
}

impl Reason {
    /// Whether the same bytes may well be there later.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unreachable | Self::HttpStatus | Self::ConnectionLost | Self::CommandFailed)
    }

    /// Whether it is decoding that finds it: all others are found by reading.
    pub fn is_of_decoding(self) -> bool {
        use Reason::{DecodeFailed, EmptyImage, NotAnImage, TooManyPixels, Unlabelled, UnsupportedFormat};
        matches!(self, EmptyImage | NotAnImage | UnsupportedFormat | TooManyPixels | DecodeFailed | Unlabelled)
    }
}

vocabulary! {
    /// What was odd about a sample that was kept. Counted, never written line by line.
    Notice {
        /// A second member with the same extension in one sample: the first is kept.
        RepeatedExtension = "repeated_extension",
        /// A `.cls` member that is no integer: the sample goes without a class.
        BadClass = "bad_class",
        /// The list could not be read again at the end of a pass: the old one is kept.
        StaleList = "stale_list",
        /// An image cut short: the rows that came are kept, the rest is gray.
        TruncatedPixels = "truncated_pixels",
        /// Pixels turned upright by their EXIF orientation.
        Rotated = "rotated",
        /// CMYK, 16-bit, palette, alpha or gray pixels turned into 8-bit RGB.
        Converted = "converted",
    }
}

vocabulary! {
    /// Why a sample was passed over on purpose, by a rule of the pipeline. Counted, never written line by line, and never
    /// counted against `stream.max_loss_rate`.
    Filtered {
        /// Its licence is not among those asked for.
        Licence = "licence",
        /// Nobody says under which licence it is.
        UnknownLicence = "unknown_licence",
        /// Fewer bytes than `filter.min_bytes`.
        TooFewBytes = "too_few_bytes",
        /// A side of fewer pixels than `filter.min_side`.
        TooSmall = "too_small",
        /// Longer side over shorter side above `filter.max_aspect`.
        TooElongated = "too_elongated",
        /// Nearly one colour, by `filter.uniform`.
        Uniform = "uniform",
        /// What a server gives for a photograph that is gone, by `filter.placeholders`.
        Placeholder = "placeholder",
        /// The very bytes of another sample, by `filter.duplicates`.
        DuplicateBytes = "duplicate_bytes",
        /// Nearly the pixels of another sample, by `filter.duplicates`.
        NearDuplicate = "near_duplicate",
    }
}

/// Samples passed over, by rule.
pub type FilteredCounts = std::collections::BTreeMap<Filtered, u64>;

/// Why a sample does not reach training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It cannot: a loss.
    Lost(Trouble),
    /// It could, but the pipeline does not want it.
    Filtered(Filtered),
}

impl From<Trouble> for Rejection {
    fn from(trouble: Trouble) -> Self {
        Self::Lost(trouble)
    }
}

impl From<Filtered> for Rejection {
    fn from(filtered: Filtered) -> Self {
        Self::Filtered(filtered)
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(trouble) => trouble.fmt(f),
            Self::Filtered(filtered) => filtered.fmt(f),
        }
    }
}

impl std::error::Error for Rejection {}

/// A reason with its particulars: what a reader reports to whoever keeps the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of loss.
    pub reason: Reason,
    /// In words, for the operator. Never holds credentials.
    pub detail: String,
}

impl Trouble {
    /// A reason with its particulars.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.reason, self.detail)
    }
}

impl std::error::Error for Trouble {}
