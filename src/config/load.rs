//! From the text of a pipeline file, and overrides, to a checked plan; and back to text.
//!
//! In comes a path or the bare name of a file in `pipelines/`, with `--set` overrides that win over it; out comes a
//! [`Plan`]. Paths in `stream.shards` stay as they are written: like all paths of the command line they are taken relative
//! to the current directory, not to the pipeline file.
//!
//! Refused with [`Error::usage`]: a file that is missing or no TOML; unknown sections and keys; values of the wrong type
//! or out of range. Each line of the message names a place; unknown keys and wrong types come first, and ranges are only
//! looked at once there are none.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Plan;
use super::set::{Origin, Setting, SourceFile, is_text_list, nearest, parse_override};
use crate::secrets::stored;
use crate::{Error, Result};

const FOLDER: &str = "pipelines";
const HEADER: &str = "# A pipeline as shoal resolved it: the file given, the overrides, and every default.\n";
const SECRETS_LEFT_OUT: &str =
    "# Credentials in stream.shards are left out: to go on with the run, give the pipeline file that has them.\n";

impl Plan {
    /// Reads the pipeline file at `path`, or the one of that name in `pipelines/`, and applies `overrides` of the form
    /// `section.key=value`, later ones over earlier ones.
    ///
    /// # Errors
    /// [`Error::Usage`] with one line for each problem.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let path = find(path)?;
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::usage(format!("cannot read the pipeline file {}: {error}", path.display())))?;
        Self::parse(&text, &path, overrides)
    }

    /// As [`Plan::load`], for text at hand; `path` is only named in messages.
    ///
    /// # Errors
    /// [`Error::Usage`] with one line for each problem.
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let known = Self::default().to_table()?;
        let mut problems = Vec::new();
        let mut settings = SourceFile { path: path.to_owned(), text }.settings(&known, &mut problems);
        for one in overrides {
            match parse_override(one, &known) {
                Ok(setting) => settings.push(setting),
                Err(problem) => problems.push(problem),
            }
        }

        let mut table = known.clone();
        for setting in &mut settings {
            if let Err(problem) = fit(setting, &known) {
                problems.push(problem);
            } else if let Some(keys) = table.get_mut(&setting.section).and_then(Value::as_table_mut) {
                keys.insert(setting.key.clone(), setting.value.clone());
            }
        }
        refuse(problems)?;

        let plan: Self = table.try_into().map_err(|error: toml::de::Error| {
            Error::usage(format!("{}: {}", path.display(), error.message().trim_end()))
        })?;
        let problems = plan.check();
        refuse(
            problems
                .iter()
                .map(|problem| format!("{}: {}", place(&problem.keys, &settings, path), problem.what))
                .collect(),
        )?;
        Ok(plan)
    }

    /// The plan as a pipeline file with every key, which loads as the same plan. Credentials and signatures in
    /// `stream.shards` are left out: where there are any, the file is a record, and not enough to read the shards again.
    ///
    /// # Errors
    /// [`Error::Usage`] where TOML has no words for a value: a seed above 2^63 - 1.
    pub fn to_toml(&self) -> Result<String> {
        let mut kept = self.clone();
        for spec in &mut kept.stream.shards {
            *spec = stored(spec);
        }
        let note = if kept.stream.shards == self.stream.shards { "" } else { SECRETS_LEFT_OUT };
        let body =
            toml::to_string(&kept).map_err(|error| Error::usage(format!("cannot write the plan as TOML: {error}")))?;
        Ok(format!("{HEADER}# Made by shoal {}.\n{note}\n{body}", env!("CARGO_PKG_VERSION")))
    }

    /// Sections of keys of values.
    pub(super) fn to_table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|error| Error::usage(format!("cannot write the plan as TOML: {error}")))
    }
}

/// The file meant by `name`: a path, or else the name of a file in `pipelines/`.
fn find(name: &Path) -> Result<PathBuf> {
    if name.is_dir() {
        let error = Error::usage(format!("{} is a folder, not a pipeline file", name.display()));
        return Err(error.with_hint("to go on with a run, name its pipeline file and --run FOLDER"));
    }
    if name.exists() {
        return Ok(name.to_owned());
    }
    let is_bare = name.components().count() == 1;
    let candidates = [Path::new(FOLDER).join(name), Path::new(FOLDER).join(name).with_added_extension("toml")];
    if let Some(found) = candidates.into_iter().find(|path| is_bare && path.is_file()) {
        return Ok(found);
    }

    let names = pipeline_names();
    let mut what = format!("there is no pipeline file {}", name.display());
    let stem = name.file_stem().unwrap_or_default().to_string_lossy();
    if let Some(near) = nearest(&stem, names.iter().map(String::as_str)) {
        what.push_str(&format!("; did you mean `{near}`?"));
    }
    if names.is_empty() {
        return Err(Error::usage(what).with_hint("give the path of a TOML file"));
    }
    Err(Error::usage(what).with_hint(format!("{FOLDER}/ has {}", names.join(", "))))
}

fn pipeline_names() -> Vec<String> {
    let files = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_pipeline = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let mut names: Vec<String> =
        files.filter(is_pipeline).filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Makes the value of `setting` that of its key's type, or says why it cannot be.
fn fit(setting: &mut Setting, known: &Table) -> Result<(), String> {
    let Setting { section, key, value, origin } = setting;
    let Some(default) = known.get(section.as_str()).and_then(|keys| keys.get(key.as_str())) else {
        return Err(format!("{origin}: unknown key {section}.{key}"));
    };
    if value.is_str() && is_text_list(key, default) {
        *value = Value::Array(vec![value.clone()]);
    }

    let mut keys = Table::new();
    keys.insert(key.clone(), value.clone());
    let mut alone = Table::new();
    alone.insert(section.clone(), Value::Table(keys));
    let Err(error) = alone.try_into::<Plan>() else {
        return Ok(());
    };
    let reason = match default {
        Value::String(_) if value.is_str() => error.message().trim_end().to_owned(),
        Value::String(_) => "is not a string".to_owned(),
        Value::Integer(_) => "is not a whole number from 0 up".to_owned(),
        Value::Float(_) => "is not a number".to_owned(),
        Value::Boolean(_) => "is neither true nor false".to_owned(),
        Value::Array(_) if is_text_list(key, default) => "is not a list of strings".to_owned(),
        Value::Array(numbers) if numbers.is_empty() => "is not a list of numbers".to_owned(),
        Value::Array(numbers) => format!("is not a list of {} numbers", numbers.len()),
        Value::Datetime(_) | Value::Table(_) => error.message().trim_end().to_owned(),
    };
    Err(format!("{origin}: {section}.{key} = {value} {reason}"))
}

/// Where the first of `keys` that was set at all was set: the last setting wins.
fn place(keys: &[&str], settings: &[Setting], path: &Path) -> String {
    let set_at = |name: &&str| {
        let is_it = |setting: &&Setting| format!("{}.{}", setting.section, setting.key) == *name;
        settings.iter().rfind(is_it).map(|setting: &Setting| &setting.origin)
    };
    keys.iter().find_map(set_at).map_or_else(|| path.display().to_string(), Origin::to_string)
}

fn refuse(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::usage(problems.join("\n"))
        .with_hint(format!("{FOLDER}/reference.toml lists every key, with its default")))
}
