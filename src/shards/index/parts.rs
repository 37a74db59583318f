//! Indices of shards that several ranks share, each of which hears of its own samples only.
//!
//! Every rank leaves the part that it knows beside the place of the whole; who leaves the last one makes the whole of them. Nobody
//! waits or asks another. A part that stays alone, since another rank began in the middle of the shard, is of use in a later pass, which
//! deals the same parts to other ranks.

use super::{Index, ShardIndex, read, remove_file, write};
use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Of the samples of a shard, those whose ordinals leave the remainder `member` when divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The remainder.
    pub member: u64,
    /// Parts of the shard; 1 for all of it.
    pub of: u64,
}

impl Part {
    /// A shard that is not shared.
    pub const WHOLE: Self = Self { member: 0, of: 1 };
}

impl Index {
    /// Writes what is known of a part of a shard. True if the whole shard is known now.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_part(&self, index: &ShardIndex, part: Part) -> Result<bool> {
        if part == Part::WHOLE {
            return self.write(index).map(|()| true);
        }
        let whole = self.path(&index.shard);
        let is_known = || self.summary(&index.shard).ok().flatten().is_some_and(|known| known.stamp == index.stamp);
        if !is_known() {
            write(index, &place(&whole, part))?;
            match join(&whole, index, part.of) {
                Some(joined) => write(&joined, &whole)?,
                // another rank may have made it just now, of this part as it was in an earlier pass
                None if !is_known() => return Ok(false),
                None => {}
            }
        }
        remove_parts(&whole)?;
        Ok(true)
    }
}

fn place(whole: &Path, part: Part) -> PathBuf {
    whole.with_extension(format!("{}-{}.part", part.member, part.of))
}

/// The whole of `of` parts, if all are there, of the version of `one` of them, and fit together.
fn join(whole: &Path, one: &ShardIndex, of: u64) -> Option<ShardIndex> {
    let mut joined = ShardIndex { samples: 0, rows: Vec::new(), ..one.clone() };
    let mut counts = Vec::new();
    for member in 0..of {
        // One that cannot be read is written anew by a later pass; or another rank has just made the whole.
        let part = read(&place(whole, Part { member, of })).ok().filter(|part| part.stamp == one.stamp)?;
        counts.push(part.samples);
        joined.samples += part.samples;
        joined.rows.extend(part.rows);
    }
    joined.rows.sort_unstable_by_key(|row| row.offset);
    // Parts that were dealt by other counts, as by another `max_member_mib` before, have samples in common or lack some.
    let is_dealt = (0..of).zip(counts).all(|(member, count)| count == (joined.samples + of - 1 - member) / of);
    let is_once = joined.rows.windows(2).all(|pair| pair[0].offset < pair[1].offset);
    (is_dealt && is_once).then_some(joined)
}

/// Takes away the parts of a shard that is known, those of other divisions too.
fn remove_parts(whole: &Path) -> Result<()> {
    let (Some(folder), Some(stem)) = (whole.parent(), whole.file_stem()) else { return Ok(()) };
    let failed = |source: &std::io::Error| Error::file("remove the parts beside", whole, source);
    for file in std::fs::read_dir(folder).map_err(|source| failed(&source))? {
        let path = file.map_err(|source| failed(&source))?.path();
        let is_part = path.extension() == Some(OsStr::new("part"))
            && path.file_stem().map(Path::new).and_then(Path::file_stem) == Some(stem);
        if is_part {
            remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Row, Stamp};
    use super::*;
    use crate::shards::reason::Reason;

    fn part_of(version: &str, offsets: &[u64]) -> ShardIndex {
        let rows = offsets.iter().map(|&offset| Row::lost_at(offset, Reason::NoImage)).collect();
        let stamp = Stamp { bytes: Some(9), version: Some(version.to_owned()) };
        ShardIndex { shard: "a.tar".into(), stamp, samples: offsets.len() as u64, rows }
    }

    fn files(folder: &Path) -> usize {
        glob::glob(&folder.join("*/*").to_string_lossy()).expect("a pattern").count()
    }

    #[test]
    fn who_leaves_the_last_part_makes_the_whole() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::new(folder.path());
        // of a run with two ranks before, which ended in the middle
        assert!(!index.write_part(&part_of("1", &[0]), Part { member: 0, of: 2 })?);
        for (member, offsets) in [(2, &[2_048][..]), (0, &[0, 3_072])] {
            assert!(!index.write_part(&part_of("1", offsets), Part { member, of: 3 })?, "{member}");
            assert_eq!(index.shard("a.tar")?, None);
        }
        assert!(index.write_part(&part_of("1", &[1_024, 4_096]), Part { member: 1, of: 3 })?);
        assert_eq!(index.shard("a.tar")?, Some(part_of("1", &[0, 1_024, 2_048, 3_072, 4_096])));
        assert_eq!(files(folder.path()), 1, "no part is left");
        Ok(())
    }

    #[test]
    fn parts_that_do_not_fit_or_cannot_be_read_wait_for_a_later_pass() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::new(folder.path());
        let [first, second] = [0, 1].map(|member| Part { member, of: 2 });
        let broken = place(&index.path("a.tar"), second);
        assert!(!index.write_part(&part_of("1", &[0, 2_048]), first)?);
        std::fs::write(&broken, "").expect("a file");
        assert!(!index.write_part(&part_of("1", &[0, 2_048]), first)?);
        assert!(!index.write_part(&part_of("1", &[1_024, 2_048]), second)?, "one sample is in both");
        assert!(!index.write_part(&part_of("1", &[]), second)?, "one sample is lacking");
        assert_eq!(index.shard("a.tar")?, None);
        assert!(index.write_part(&part_of("1", &[1_024]), second)?);
        assert_eq!(index.shard("a.tar")?, Some(part_of("1", &[0, 1_024, 2_048])));
        assert!(index.write_part(&part_of("1", &[0, 2_048]), first)?, "known already");
        assert_eq!(files(folder.path()), 1, "and no part is left");
        Ok(())
    }

    #[test]
    fn parts_of_other_versions_are_no_whole() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::new(folder.path());
        let [first, second] = [0, 1].map(|member| Part { member, of: 2 });
        assert!(!index.write_part(&part_of("1", &[0]), first)?);
        assert!(!index.write_part(&part_of("2", &[1_024]), second)?);
        assert_eq!(index.shard("a.tar")?, None);
        assert!(index.write_part(&part_of("2", &[0]), first)?);
        assert_eq!(index.shard("a.tar")?, Some(part_of("2", &[0, 1_024])));
        Ok(())
    }

    #[test]
    fn ranks_that_write_at_once_make_one_whole() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::new(folder.path());
        for round in 0..20 {
            let version = round.to_string();
            let made: Vec<Result<bool>> = std::thread::scope(|scope| {
                let ranks: Vec<_> = (0..4)
                    .map(|member| {
                        let (index, part) = (&index, part_of(&version, &[member * 512]));
                        scope.spawn(move || index.write_part(&part, Part { member, of: 4 }))
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
            });
            assert!(made.into_iter().collect::<Result<Vec<_>>>()?.contains(&true), "round {round}");
            assert_eq!(index.shard("a.tar")?, Some(part_of(&version, &[0, 512, 1_024, 1_536])), "round {round}");
        }
        Ok(())
    }
}
