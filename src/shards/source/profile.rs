//! Credentials of Amazon's own tools: profiles in `~/.aws/credentials` and `~/.aws/config`.
//!
//! In: the two files (others where `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name them) and the name of a profile
//! (`AWS_PROFILE`, or "default"). Out: its keys, session token, region and endpoint. What the environment says wins over all of them.
//! A profile whose keys must be fetched first (single sign-on, a role, a command) is refused with the way out. Nothing of this is ever
//! shown.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// How keys of a profile are fetched that shoal does not fetch.
const FETCHED: [&str; 5] = ["sso_session", "sso_start_url", "role_arn", "credential_process", "credential_source"];

/// What requests are signed with.
#[derive(PartialEq, Eq)]
pub(super) struct Keys<'a> {
    pub(super) id: &'a str,
    pub(super) secret: &'a str,
    pub(super) session_token: Option<&'a str>,
}

/// What a profile says.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Profile {
    name: String,
    settings: HashMap<String, String>,
}

impl Profile {
    /// The profile that the environment chooses; none where there is no such file, or none by the name "default".
    ///
    /// # Errors
    /// `AWS_PROFILE` names one that is not there, or a file cannot be read.
    pub(super) fn of_environment() -> Result<Option<Self>, String> {
        let named = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let home = std::env::home_dir().unwrap_or_default();
        let path = |key: &str, file: &str| named(key).map_or_else(|| home.join(".aws").join(file), PathBuf::from);
        let credentials = path("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = path("AWS_CONFIG_FILE", "config");
        Self::find(named("AWS_PROFILE").as_deref(), &credentials, &config)
    }

    fn find(wanted: Option<&str>, credentials: &Path, config: &Path) -> Result<Option<Self>, String> {
        let name = wanted.unwrap_or("default");
        let text = |path: &Path| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map_err(|error| format!("{} cannot be read: {error}", path.display())),
        };
        // keys of the first file win; in the second a profile other than "default" has a word before its name
        let of_config = section(&text(config)?, &[name, &format!("profile {name}")]);
        let of_credentials = section(&text(credentials)?, &[name]);
        if of_config.is_none() && of_credentials.is_none() {
            return match wanted {
                Some(name) => Err(format!(
                    "AWS_PROFILE is {name}, which neither {} nor {} has",
                    credentials.display(),
                    config.display()
                )),
                None => Ok(None),
            };
        }
        let mut settings = of_config.unwrap_or_default();
        settings.extend(of_credentials.unwrap_or_default());
        Ok(Some(Self { name: name.to_owned(), settings }))
    }

    /// A setting, as `region`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Its keys; none where the profile has none at all.
    ///
    /// # Errors
    /// They would have to be fetched.
    pub(super) fn keys(&self) -> Result<Option<Keys<'_>>, String> {
        // keys beside a role are there to ask for the role with
        let is_role = self.settings.contains_key("role_arn");
        if !is_role && let (Some(id), Some(secret)) = (self.get("aws_access_key_id"), self.get("aws_secret_access_key"))
        {
            return Ok(Some(Keys { id, secret, session_token: self.get("aws_session_token") }));
        }
        match FETCHED.into_iter().find(|key| self.settings.contains_key(*key)) {
            Some(key) => Err(format!(
                "the profile {} has {key}, which shoal does not follow: run \
                 eval \"$(aws configure export-credentials --profile {} --format env)\" first, or set fetch.anonymous",
                self.name, self.name
            )),
            None => Ok(None),
        }
    }
}

/// Keys and values below the header `[name]`, for any of the names; none where there is no such header.
fn section(text: &str, names: &[&str]) -> Option<HashMap<String, String>> {
    let mut found: Option<HashMap<String, String>> = None;
    let mut is_within = false;
    for line in text.lines() {
        // a setting that belongs to the one above is set in, and none that is asked for
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
            is_within = names.contains(&header.as_str());
            if is_within {
                found.get_or_insert_default();
            }
        } else if is_within && !is_nested && !line.starts_with(['#', ';']) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let settings = found.get_or_insert_default();
            settings.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = ID\naws_secret_access_key=a/b+c==\n\n\
        [work]\naws_access_key_id=WORK\naws_secret_access_key=W\naws_session_token = T\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\ns3 =\n    endpoint_url = nested\n[profile work]\nregion=us-west-2\n\
        endpoint_url = http://127.0.0.1:9000\n[profile sso]\nsso_session = x\n; comment = y\n";

    fn find(wanted: Option<&str>) -> Result<Option<Profile>, String> {
        let folder = tempfile::tempdir().unwrap();
        let (credentials, config) = (folder.path().join("credentials"), folder.path().join("config"));
        std::fs::write(&credentials, CREDENTIALS).unwrap();
        std::fs::write(&config, CONFIG).unwrap();
        Profile::find(wanted, &credentials, &config)
    }

    #[test]
    fn a_profile_has_what_both_files_say_of_it() {
        let default = find(None).unwrap().unwrap();
        assert!(default.keys() == Ok(Some(Keys { id: "ID", secret: "a/b+c==", session_token: None })));
        assert_eq!((default.get("region"), default.get("endpoint_url")), (Some("eu-central-1"), None));
        let work = find(Some("work")).unwrap().unwrap();
        assert!(work.keys() == Ok(Some(Keys { id: "WORK", secret: "W", session_token: Some("T") })));
        assert_eq!((work.get("region"), work.get("endpoint_url")), (Some("us-west-2"), Some("http://127.0.0.1:9000")));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_the_way_out() {
        let refused = find(Some("sso")).unwrap().unwrap().keys().err().unwrap();
        assert!(refused.contains("sso_session") && refused.contains("export-credentials --profile sso"), "{refused}");
        let missing = find(Some("none")).err().unwrap();
        assert!(missing.contains("AWS_PROFILE is none"), "{missing}");
        let nowhere = Path::new("/nowhere/at/all");
        assert!(Profile::find(None, nowhere, nowhere) == Ok(None));
    }
}
