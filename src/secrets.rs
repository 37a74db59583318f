//! What in an address or a command is a secret, and what tells one shard from another.
//!
//! In: a shard spec as the operator wrote it: a URL, a command, or several of them with braces. Out, by [`Manner`]: text that may be
//! shown, text that may be stored, or what is left when all that is renewed from day to day is taken away. Passwords, tokens and
//! signatures are told by their names and places: `user:password@`, `X-Amz-Signature=`, `--token`, `Authorization:`. A secret
//! without such a sign in the path of a URL, or bare in a command, is not noticed.

use xxhash_rust::xxh3::xxh3_64;

/// What is put in the place of a secret.
const HIDDEN: &str = "***";
/// What a spec that is a command begins with.
pub(crate) const PIPE: &str = "pipe:";
/// Longer values of unknown parameters are stored as a hash: they may be keys.
const LONGEST_PLAIN_VALUE: usize = 24;
/// Shorter words are too common to be taken out of other texts.
const SHORTEST_SECRET: usize = 4;
/// Parameters of Azure's signatures. Their short names mean something else where no `sig` stands beside them.
const AZURE: [&str; 17] = [
    "se", "sp", "sv", "sr", "st", "spr", "sip", "si", "ss", "srt", "ses", "skoid", "sktid", "skt", "ske", "sks", "skv",
];
/// Names that change with every signature, and mean nothing else.
const SIGNATURES: [&str; 11] = [
    "sig",
    "hmac",
    "policy",
    "expires",
    "expire",
    "expiry",
    "keypairid",
    "googleaccessid",
    "hdnts",
    "hdnea",
    "authkey",
];
/// Other names that are secrets as a whole.
const NAMES: [&str; 9] = ["pwd", "md5", "bearer", "basic", "oauth2bearer", "pass", "cookie", "proxyuser", "auth"];
/// Names that are secrets if this is a part of them.
const PARTS: [&str; 9] =
    ["token", "secret", "passw", "signature", "apikey", "accesskey", "credential", "authoriz", "sessionkey"];

/// What becomes of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// For messages and names: no user, no query, no fragment.
    Show,
    /// For files: everything but the secrets, of which a mark stays.
    Store,
    /// For comparisons: what stays the same when a URL is signed anew.
    Compare,
    /// For telling one address from another, never kept: without users and what is a signature for certain.
    Tell,
}

/// The text as it may be shown: URLs without `user:password@`, `?query` and `#fragment`, commands without secrets.
pub(crate) fn shown(text: &str) -> String {
    scrub(text, Manner::Show)
}

/// The text as it may be stored. [`was_stored`] knows it again if anything was left out.
pub(crate) fn stored(text: &str) -> String {
    scrub(text, Manner::Store)
}

/// What identifies the text's shards: the same for a URL that was signed anew, and for the [`stored`] text.
pub(crate) fn identity(text: &str) -> String {
    scrub(text, Manner::Compare)
}

/// The text without what is renewed with every signature. Holds secrets: for comparisons on the spot alone.
pub(crate) fn unsigned(text: &str) -> String {
    scrub(text, Manner::Tell)
}

/// Whether secrets were taken out of this text to store it, so that it names no shard any more.
pub(crate) fn was_stored(text: &str) -> bool {
    let is_hash = |hash: &str| hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let has_hash = || text.match_indices('~').any(|(at, _)| text[at + 1..].get(..16).is_some_and(is_hash));
    (text.contains("://") || text.starts_with(PIPE)) && (text.contains(HIDDEN) || has_hash())
}

/// What of a text is not [`shown`], in words long enough to be secrets.
pub(crate) fn hidden_words(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+/=_.-~%".contains(c);
    let kept = shown(text);
    let words = text.split(|c| !is_part(c)).flat_map(|word| [word, word.rsplit('=').next().unwrap_or(word)]);
    words.filter(|word| word.len() >= SHORTEST_SECRET && !kept.contains(word)).map(str::to_owned).collect()
}

/// The parameters of a URL that say which object is meant, in order of their names; none for a URL that is all signature.
pub(crate) fn identifying_query(url: &str) -> Option<String> {
    let query = url.split('#').next()?.split_once('?')?.1;
    let mut kept: Vec<&str> = query.split('&').filter(|parameter| !is_signature(parameter, query)).collect();
    kept.retain(|parameter| !parameter.is_empty());
    kept.sort_unstable();
    (!kept.is_empty()).then(|| kept.join("&"))
}

fn scrub(text: &str, manner: Manner) -> String {
    let (mut kept, mut rest, mut depth) = (String::new(), text, 0);
    let is_command = text.trim_start().starts_with(PIPE);
    while let Some(colon) = rest.find("://") {
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let before = rest[..colon].trim_end_matches(is_scheme);
        depth += before.matches('{').count();
        depth = depth.saturating_sub(before.matches('}').count());
        let begin = before.len();
        let end = colon + 3 + url_length(&rest[colon + 3..], depth > 0, is_command);
        kept.push_str(before);
        kept.push_str(&url(&rest[begin..end], manner));
        rest = &rest[end..];
    }
    kept.push_str(rest);
    match kept.split_once(PIPE) {
        Some((before, command)) if is_command => format!("{before}{PIPE}{}", words(command, manner)),
        _ => kept,
    }
}

/// Bytes of the URL that begins here, its scheme left out. In braces it ends with the choice, in commands with the word.
fn url_length(text: &str, in_braces: bool, in_command: bool) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 && in_braces => return at,
            '}' => depth = depth.saturating_sub(1),
            '\'' | '"' | '`' | '|' | ')' | '>' | '<' | ';' if in_command => return at,
            c if in_command && c.is_whitespace() => return at,
            ':' if !in_command && text[at..].starts_with("::") && !is_in_address(&text[..at]) => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whether the brackets of an IPv6 address are open.
fn is_in_address(before: &str) -> bool {
    before.contains('[') && !before.contains(']')
}

fn url(url: &str, manner: Manner) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (has_user, rest) = split_user(rest);
    // A store's keys may hold any sign, and it has no queries.
    let is_store = ["s3", "gs", "az"].contains(&scheme);
    let located = if is_store { rest } else { rest.split('#').next().unwrap_or_default() };
    let (place, query) = match located.split_once('?') {
        Some((place, query)) if !is_store || query.contains('=') => (place, Some(query)),
        _ => (located, None),
    };
    let mut kept = format!("{scheme}://");
    if has_user && manner == Manner::Store {
        kept.push_str(&format!("{HIDDEN}@"));
    }
    kept.push_str(place);
    let parameters = match manner {
        Manner::Show => Vec::new(),
        Manner::Store | Manner::Compare | Manner::Tell => parameters(query.unwrap_or_default(), manner),
    };
    if !parameters.is_empty() {
        kept.push_str(&format!("?{}", parameters.join("&")));
    }
    kept
}

/// Whether what follows `://` begins with a user, and what follows that.
fn split_user(rest: &str) -> (bool, &str) {
    let (authority, after) = rest.split_at(rest.find(['/', '#', '?']).unwrap_or(rest.len()));
    if let Some((user, _)) = authority.rsplit_once('@') {
        return (true, &rest[user.len() + 1..]);
    }
    let is_port = |c: char| c.is_ascii_digit() || "{},.".contains(c);
    let has_port =
        authority.ends_with(']') || authority.rsplit_once(':').is_none_or(|(_, port)| port.chars().all(is_port));
    match after.rfind('@') {
        // no port but a password with a sign in it that should have been escaped
        Some(at) if !has_port => (true, &after[at + 1..]),
        _ => (false, rest),
    }
}

fn parameters(query: &str, manner: Manner) -> Vec<String> {
    let mut kept = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (is_signature(parameter, query), manner) {
            (_, Manner::Tell) if is_certainly_signature(parameter, query) => {}
            (_, Manner::Tell) => kept.push(parameter.to_owned()),
            (true, Manner::Store) => kept.push(format!("{name}={HIDDEN}")),
            (true, _) => {}
            // the key of an object as well as a secret one
            (false, _) if name == "key" && !is_hash(value) => kept.push(format!("{name}={}", hashed(value))),
            (false, _) if value.len() > LONGEST_PLAIN_VALUE => kept.push(format!("{name}={}", hashed(value))),
            (false, _) if name.len() > LONGEST_PLAIN_VALUE => kept.push(hashed(parameter)),
            (false, _) => kept.push(parameter.to_owned()),
        }
    }
    kept
}

fn hashed(text: &str) -> String {
    format!("~{:016x}", xxh3_64(text.as_bytes()))
}

fn is_hash(text: &str) -> bool {
    text.strip_prefix('~').is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a parameter that may be a secret is part of a signature, and no name of what is asked for.
fn is_certainly_signature(parameter: &str, query: &str) -> bool {
    let plain = |parameter: &str| plain_name(parameter.split('=').next().unwrap_or_default());
    let name = plain(parameter);
    let expires = || query.split('&').any(|other| ["expires", "expire", "expiry"].contains(&plain(other).as_str()));
    let is_sure = ["xamz", "xgoog"].iter().any(|prefix| name.starts_with(prefix))
        || SIGNATURES.contains(&name.as_str())
        || AZURE.contains(&name.as_str())
        || name.contains("signature")
        || expires();
    is_sure && is_signature(parameter, query)
}

/// Whether a parameter of a query is part of a signature, or a credential.
fn is_signature(parameter: &str, query: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
    let signed_by_azure = || query.split('&').any(|other| other.to_ascii_lowercase().starts_with("sig="));
    name.starts_with("x-amz-")
        || name.starts_with("x-goog-")
        || is_secret_name(&name)
        || (AZURE.contains(&name.as_str()) && signed_by_azure())
}

/// Whether what goes by this name is a secret.
fn is_secret_name(name: &str) -> bool {
    let plain = plain_name(name);
    SIGNATURES.contains(&plain.as_str())
        || NAMES.contains(&plain.as_str())
        || PARTS.iter().any(|part| plain.contains(part))
}

/// A name as the lists have it: `X-Amz-Date` is `xamzdate`.
fn plain_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// A command without the secrets among its words. Its URLs are done already.
fn words(command: &str, manner: Manner) -> String {
    if manner == Manner::Tell {
        return command.to_owned();
    }
    let hidden = if manner == Manner::Store { HIDDEN } else { "" };
    let mut hiding = Hiding::Nothing;
    let mut out = String::new();
    for word in command.split_inclusive(char::is_whitespace) {
        let (bare, space) = word.split_at(word.trim_end().len());
        let kept = if bare.is_empty() { String::new() } else { hiding.take(bare, hidden) };
        out.push_str(&kept);
        out.push_str(space);
    }
    out
}

/// What of the words to come is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hiding {
    Nothing,
    NextWord,
    /// The next word, if this sign is in it: of `me:password` or `name=cookie`.
    NextWith(char),
    UntilQuote(char),
}

impl Hiding {
    /// What may be kept of the next word.
    fn take(&mut self, word: &str, hidden: &str) -> String {
        match *self {
            Self::UntilQuote(quote) => match word.find(quote) {
                Some(end) => {
                    *self = Self::Nothing;
                    format!("{hidden}{}", &word[end..])
                }
                None => hidden.to_owned(),
            },
            Self::NextWord => {
                *self = Self::begun(word);
                hidden.to_owned()
            }
            Self::NextWith(sign) => {
                *self = Self::begun(word);
                let is_secret = word.contains(sign) || word.contains(HIDDEN) || *self != Self::Nothing;
                if is_secret { hidden.to_owned() } else { self.look(word, hidden) }
            }
            Self::Nothing => self.look(word, hidden),
        }
    }

    /// A word that may begin a secret.
    fn look(&mut self, word: &str, hidden: &str) -> String {
        let opening = word.chars().next().filter(|&c| c == '\'' || c == '"');
        let names_secret = |&at: &usize| is_secret_name(&word[..at]) && !word[..at].contains("://");
        if let Some(at) = word.match_indices(['=', ':']).map(|(at, _)| at).find(names_secret) {
            let value = &word[at + 1..];
            *self = match (opening, value) {
                (Some(quote), _) if !value.contains(quote) => Self::UntilQuote(quote),
                (None, "") => Self::NextWord,
                _ => Self::begun(value),
            };
            let closing = opening.filter(|&quote| value.contains(quote)).map(String::from).unwrap_or_default();
            return format!("{}{hidden}{closing}", &word[..=at]);
        }
        // tells a method, and takes no value
        let is_option = word.starts_with('-') && is_secret_name(word) && word != "--basic";
        if is_option || ["Bearer", "Basic"].contains(&word) {
            *self = Self::NextWord;
        }
        let Some((option, sign)) = option_with_secret(word) else {
            return word.to_owned();
        };
        let value = &word[option.len()..];
        if value.is_empty() {
            *self = Self::NextWith(sign);
            return word.to_owned();
        }
        let is_open = Self::begun(value);
        if is_open == Self::Nothing && !value.contains(sign) && !value.contains(HIDDEN) {
            return word.to_owned();
        }
        *self = is_open;
        format!("{option}{hidden}")
    }

    /// After a secret that began with this text: a quote may still be open.
    fn begun(text: &str) -> Self {
        match text.chars().next() {
            Some(quote @ ('\'' | '"')) if !text[1..].contains(quote) => Self::UntilQuote(quote),
            _ => Self::Nothing,
        }
    }
}

/// The part of a word up to a value that is a secret if the sign is in it: `--user`, or the last of curl's short options.
fn option_with_secret(word: &str) -> Option<(&str, char)> {
    if let Some(value) = word.strip_prefix("--user") {
        let length = word.len() - value.len();
        return (value.is_empty() || value.starts_with('='))
            .then(|| (&word[..length + usize::from(!value.is_empty())], ':'));
    }
    let flags = word.strip_prefix('-')?;
    let at = flags.find(|c: char| !c.is_ascii_alphabetic() || matches!(c, 'u' | 'U' | 'b'))?;
    match flags[at..].chars().next()? {
        'u' | 'U' => Some((&word[..at + 2], ':')),
        'b' => Some((&word[..at + 2], '=')),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
