//! Which runs a sweep has: every combination of the values that its settings name.
//!
//! In: `KEY=VALUE[,VALUE]...` as given on the command line. Out: combinations in the order of the settings, the last one changing
//! fastest. A comma inside brackets or quotes belongs to its value.

use crate::error::{Error, Result};

/// A key, and the values that it takes in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// A key of the pipeline.
    pub(super) key: String,
    /// As they stand in the pipeline file.
    pub(super) values: Vec<String>,
}

/// One run: the value of each axis.
pub(super) type Combination = Vec<String>;

impl Axis {
    /// From `KEY=VALUE[,VALUE]...`.
    pub(super) fn parse(setting: &str) -> Result<Self> {
        let Some((key, values)) = setting.split_once('=') else {
            return Err(
                Error::usage(format!("--set {setting} is no KEY=VALUE")).with_hint("for example cluster.k=100,1000")
            );
        };
        let values: Vec<String> = split(values).into_iter().map(|value| value.trim().to_owned()).collect();
        if values.iter().any(String::is_empty) {
            return Err(Error::usage(format!("--set {setting} has an empty value")));
        }
        Ok(Self { key: key.trim().to_owned(), values })
    }

    /// Whether runs differ in it.
    pub(super) fn varies(&self) -> bool {
        self.values.len() > 1
    }
}

/// Every combination.
pub(super) fn combinations(axes: &[Axis]) -> Vec<Combination> {
    let mut all = vec![Combination::new()];
    for axis in axes {
        let longer = |start: &Combination| {
            let start = start.clone();
            axis.values
                .iter()
                .map(move |value| [start.as_slice(), std::slice::from_ref(value)].concat())
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// At commas outside brackets and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0i32, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_there_once() -> Result<()> {
        let axes = [Axis::parse("cluster.k=50, 200")?, Axis::parse("train.lr=0.1")?, Axis::parse("stream.seed=1,2,3")?];
        let all = combinations(&axes);
        assert_eq!(all.len(), 6);
        assert_eq!((all[0].join(" "), all[5].join(" ")), ("50 0.1 1".to_owned(), "200 0.1 3".to_owned()));
        assert_eq!(axes.map(|axis| axis.varies()), [true, false, true]);
        assert_eq!(combinations(&[]), [Combination::new()]);
        Ok(())
    }

    #[test]
    fn commas_of_lists_and_texts_stay() -> Result<()> {
        let axis = Axis::parse(r#"views.area=[0.1,1.0],[0.5,1.0]"#)?;
        assert_eq!(axis.values, ["[0.1,1.0]", "[0.5,1.0]"]);
        assert_eq!(Axis::parse(r#"stream.shards="a,b.tar""#)?.values, [r#""a,b.tar""#]);
        for wrong in ["cluster.k", "cluster.k=", "cluster.k=1,,2"] {
            assert_eq!(Axis::parse(wrong).expect_err(wrong).exit_code(), 2);
        }
        Ok(())
    }
}
