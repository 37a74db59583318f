//! Keys as a file or the command line sets them, before they have types.
//!
//! In comes TOML text, or `section.key=value`; out go [`Setting`]s, each with the place it came from, so that whatever is
//! found wrong later can be told with a line number. The known keys are those of the default plan: a key that it lacks is
//! refused together with the nearest name.

use std::fmt;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Where a key was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// In a file, at a line counted from 1.
    File { path: PathBuf, line: usize },
    /// On the command line.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Override => write!(f, "--set"),
        }
    }
}

/// One key with a value that fits nothing yet.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub section: String,
    pub key: String,
    pub value: Value,
    pub origin: Origin,
}

/// A TOML file, with the place of every key.
pub(super) struct SourceFile<'a> {
    pub path: PathBuf,
    pub text: &'a str,
}

impl SourceFile<'_> {
    /// The keys that the file sets, in the order of its lines. Problems with single keys are added to `problems`; a file that
    /// is no TOML gives nothing but that problem.
    pub fn settings(&self, known: &Table, problems: &mut Vec<String>) -> Vec<Setting> {
        let parsed = DeTable::parse(self.text).and_then(|places| Ok((places, toml::from_str::<Table>(self.text)?)));
        let (places, values) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                let origin = self.origin(error.span().map_or(0, |span| span.start));
                problems.push(format!("{origin}: {}", error.message().trim_end()));
                return Vec::new();
            }
        };

        let mut settings = Vec::new();
        for (section, place) in places.get_ref() {
            let section_origin = self.origin(section.span().start);
            let section = section.get_ref().as_ref();
            let Some(known_keys) = known.get(section).and_then(Value::as_table) else {
                let suggestion = suggest_section(section, known);
                problems.push(format!("{section_origin}: unknown section `{section}`{suggestion}"));
                continue;
            };
            let DeValue::Table(keys) = place.get_ref() else {
                problems.push(format!(
                    "{section_origin}: `{section}` is a section: write [{section}] on a line of its own"
                ));
                continue;
            };
            for key in keys.keys() {
                let origin = self.origin(key.span().start);
                let key = key.get_ref().as_ref();
                if !known_keys.contains_key(key) {
                    problems.push(format!("{origin}: {}", unknown_key(section, key, known)));
                } else if let Some(value) = values.get(section).and_then(|keys| keys.get(key)) {
                    let (section, key) = (section.to_owned(), key.to_owned());
                    settings.push(Setting { section, key, value: value.clone(), origin });
                }
            }
        }
        settings.sort_by_key(|setting| match setting.origin {
            Origin::File { line, .. } => line,
            Origin::Override => usize::MAX,
        });
        settings
    }

    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        Origin::File { path: self.path.clone(), line: 1 + before.filter(|byte| **byte == b'\n').count() }
    }
}

/// Reads `section.key=value`. The value is TOML, or, where it is not, a string without its quotes.
pub(super) fn parse_override(text: &str, known: &Table) -> Result<Setting, String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("--set {text}: needs the form section.key=value, as in --set train.lr=0.02"));
    };
    let (name, value) = (name.trim(), value.trim());
    let Some((section, key)) = name.split_once('.') else {
        return Err(format!("--set: unknown key `{name}`{}", suggest_section(name, known)));
    };
    let Some(known_keys) = known.get(section).and_then(Value::as_table) else {
        return Err(format!("--set: unknown section `{section}`{}", suggest_section(section, known)));
    };
    let Some(default) = known_keys.get(key) else {
        return Err(format!("--set: {}", unknown_key(section, key, known)));
    };
    let value = override_value(value, is_text_list(key, default), default);
    Ok(Setting { section: section.to_owned(), key: key.to_owned(), value, origin: Origin::Override })
}

/// A shard may be called `2024` or `true`: where text is wanted, only quotes and brackets make TOML of a value.
fn override_value(text: &str, is_text_list: bool, default: &Value) -> Value {
    let wants_text = matches!(default, Value::String(_)) || is_text_list;
    match text.parse::<Value>() {
        Ok(value) if !wants_text || value.is_str() || value.is_array() => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Whether a list takes text. A list of numbers has its numbers by default, but for the one that is empty.
pub(super) fn is_text_list(key: &str, default: &Value) -> bool {
    key != "weights" && default.as_array().is_some_and(|items| items.iter().all(Value::is_str))
}

fn unknown_key(section: &str, key: &str, known: &Table) -> String {
    let keys_of = |section: &str| known.get(section).and_then(Value::as_table).into_iter().flat_map(Table::keys);
    let elsewhere = || known.keys().find(|other| keys_of(other).any(|candidate| candidate == key));
    let suggestion = if let Some(name) = nearest(key, keys_of(section).map(String::as_str)) {
        format!("; did you mean `{name}`?")
    } else if let Some(other) = elsewhere() {
        format!("; `{key}` belongs in [{other}]")
    } else {
        format!("; [{section}] has {}", keys_of(section).cloned().collect::<Vec<_>>().join(", "))
    };
    format!("unknown key `{key}` in [{section}]{suggestion}")
}

/// The way out for a name that is no section: perhaps a key whose section was left out.
fn suggest_section(name: &str, known: &Table) -> String {
    if let Some(section) = nearest(name, known.keys().map(String::as_str)) {
        return format!("; did you mean `{section}`?");
    }
    let owner = known.iter().find(|(_, keys)| keys.get(name).is_some());
    if let Some((section, _)) = owner {
        return format!("; did you mean `{section}.{name}`?");
    }
    format!("; the sections are {}", known.keys().cloned().collect::<Vec<_>>().join(", "))
}

/// The candidate most like `name`, if any is near enough to be a slip of the pen.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed_slips = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(slips, _)| *slips <= allowed_slips)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Table {
        "[train]\nlr = 0.1\nbatch_size = 2\nhead = 'reset'\n[stream]\nshards = []\nweights = []\n[views]\narea = [0.1, 1.0]"
            .parse()
            .unwrap()
    }

    #[test]
    fn every_setting_knows_its_line() {
        let text = "# comment\r\n[train]\r\nlr = 1\r\n\r\nbatch_size = 8\r\n";
        let mut problems = Vec::new();
        let settings = SourceFile { path: "a.toml".into(), text }.settings(&known(), &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        let places: Vec<_> = settings.iter().map(|one| format!("{} {}", one.origin, one.key)).collect();
        assert_eq!(places, ["a.toml:3 lr", "a.toml:5 batch_size"]);
    }

    #[test]
    fn unknown_names_are_told_with_line_and_nearest_name() {
        let text = "lr = 3\n[trian]\nlr = 1\n[stream]\nbatch_size = 1\n[train]\nbatchsize = 2\nzebra = 1\n";
        let mut problems = Vec::new();
        let settings = SourceFile { path: "a.toml".into(), text }.settings(&known(), &mut problems);
        assert!(settings.is_empty());
        problems.sort();
        assert_eq!(
            problems,
            [
                "a.toml:1: unknown section `lr`; did you mean `train.lr`?",
                "a.toml:2: unknown section `trian`; did you mean `train`?",
                "a.toml:5: unknown key `batch_size` in [stream]; `batch_size` belongs in [train]",
                "a.toml:7: unknown key `batchsize` in [train]; did you mean `batch_size`?",
                "a.toml:8: unknown key `zebra` in [train]; [train] has batch_size, head, lr",
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_with_its_line() {
        let mut problems = Vec::new();
        SourceFile { path: "a.toml".into(), text: "[train]\nlr = \n" }.settings(&known(), &mut problems);
        SourceFile { path: "a.toml".into(), text: "[train]\nlr = 1\nlr = 2\n" }.settings(&known(), &mut problems);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("a.toml:2: "), "{problems:?}");
        assert!(problems[1].starts_with("a.toml:3: duplicate key"), "{problems:?}");
    }

    #[test]
    fn overrides_are_toml_or_bare_strings() {
        let value = |text: &str| parse_override(text, &known()).map(|setting| setting.value);
        assert_eq!(value("train.lr=0.02"), Ok(Value::Float(0.02)));
        assert_eq!(value("train.lr = 1e-3"), Ok(Value::Float(0.001)));
        assert_eq!(value("train.head=match"), Ok(Value::String("match".into())));
        assert_eq!(value("train.head='match'"), Ok(Value::String("match".into())));
        assert_eq!(value("stream.shards=2024"), Ok(Value::String("2024".into())));
        assert_eq!(value("stream.weights=2"), Ok(Value::Integer(2)));
        assert_eq!(value("stream.shards=a=b.tar"), Ok(Value::String("a=b.tar".into())));
        assert_eq!(value("views.area=[0.3, 1]"), Ok(Value::Array(vec![Value::Float(0.3), Value::Integer(1)])));
    }

    #[test]
    fn overrides_of_unknown_keys_are_refused() {
        let refusal = |text: &str| parse_override(text, &known()).map(|_| ()).unwrap_err();
        assert_eq!(refusal("train.lr"), "--set train.lr: needs the form section.key=value, as in --set train.lr=0.02");
        assert_eq!(refusal("lr=1"), "--set: unknown key `lr`; did you mean `train.lr`?");
        assert_eq!(
            refusal("train.batchsize=1"),
            "--set: unknown key `batchsize` in [train]; did you mean `batch_size`?"
        );
    }
}
