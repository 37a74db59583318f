//! Braces, `::` and the shapes of specs: text to text, without looking at any file.
//!
//! `{000..127}` counts with the zero padding of its first number, upwards or downwards; `{a,b}` lists; both nest and multiply.
//! Unbalanced braces, too many of them and absurdly large products are refused. In a command (`pipe:`) braces are also the shell's: there only those
//! stand for something that hold a range, or a comma and no space, and follow no `$`.

use crate::error::{Error, Result};
use crate::secrets::{PIPE, shown};

/// More shards than anybody has: a slip in a pattern.
const MOST: usize = 10_000_000;
/// Braces within or after one another.
const DEEPEST: usize = 64;

/// The parts of `a::b`. A `::` inside brackets belongs to an IPv6 address or a glob, one in a command to the command.
pub(super) fn split_joined(spec: &str) -> Vec<&str> {
    let bytes = spec.as_bytes();
    let mut parts = Vec::new();
    let (mut begin, mut at, mut brackets) = (0, 0, 0_usize);
    while at < bytes.len() {
        if at == begin && spec[at..].trim_start().starts_with(PIPE) {
            break;
        }
        match bytes[at] {
            b'[' => brackets += 1,
            b']' => brackets = brackets.saturating_sub(1),
            b':' if brackets == 0 && bytes.get(at + 1) == Some(&b':') => {
                parts.push(&spec[begin..at]);
                at += 1;
                begin = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&spec[begin..]);
    parts
}

/// Everything that the braces of a spec stand for, in order.
pub(super) fn expand_braces(spec: &str) -> Result<Vec<String>> {
    let expanded = expand(spec, 0).map_err(|what| {
        Error::usage(format!("shard spec \"{}\": {what}", shown(spec)))
            .with_hint("write {000..127} for a range and {a,b} for a choice")
    })?;
    Ok(expanded)
}

/// Everything that a command stands for, in order.
pub(super) fn expand_command(command: &str) -> Result<Vec<String>> {
    expand_command_from(command, 0, 0)
        .map_err(|what| Error::usage(format!("shard spec \"{}\": {what}", shown(&format!("{PIPE}{command}")))))
}

fn expand_command_from(command: &str, from: usize, depth: usize) -> Result<Vec<String>, String> {
    ensure_shallow(depth)?;
    let mut at = from;
    while let Some(open) = command[at..].find('{').map(|found| at + found) {
        let Some(close) = matching_brace(command, open) else { break };
        let inner = &command[open + 1..close];
        let is_shells = command[..open].ends_with('$') || inner.contains(char::is_whitespace);
        if is_shells || (counted(inner)?.is_none() && !inner.contains(',')) {
            at = close + 1;
            continue;
        }
        let mut all = Vec::new();
        for choice in expand(&command[open..=close], depth)? {
            let chosen = format!("{}{choice}{}", &command[..open], &command[close + 1..]);
            all.extend(expand_command_from(&chosen, open + choice.len(), depth + 1)?);
            if all.len() > MOST {
                return Err(format!("stands for more than {MOST} shards"));
            }
        }
        return Ok(all);
    }
    Ok(vec![command.to_owned()])
}

fn ensure_shallow(depth: usize) -> Result<(), String> {
    match depth > DEEPEST {
        true => Err(format!("more than {DEEPEST} braces within or after one another")),
        false => Ok(()),
    }
}

fn expand(text: &str, depth: usize) -> Result<Vec<String>, String> {
    ensure_shallow(depth)?;
    let Some(open) = text.find(['{', '}']) else {
        return Ok(vec![text.to_owned()]);
    };
    if text.as_bytes()[open] == b'}' {
        return Err("a closing brace without an opening one".to_owned());
    }
    let close = matching_brace(text, open).ok_or("an opening brace without a closing one")?;
    let inner = &text[open + 1..close];
    let choices = match counted(inner)? {
        Some(numbers) => numbers,
        None => {
            let mut choices = Vec::new();
            for choice in split_choices(inner) {
                choices.extend(expand(choice, depth + 1)?);
            }
            choices
        }
    };
    let tails = expand(&text[close + 1..], depth + 1)?;
    if choices.len().saturating_mul(tails.len()) > MOST {
        return Err(format!("stands for more than {MOST} shards"));
    }
    let head = &text[..open];
    let mut all = Vec::with_capacity(choices.len() * tails.len());
    for choice in &choices {
        for tail in &tails {
            all.push(format!("{head}{choice}{tail}"));
        }
    }
    Ok(all)
}

fn matching_brace(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The commas of this level, not those of braces within.
fn split_choices(inner: &str) -> Vec<&str> {
    let mut choices = Vec::new();
    let (mut begin, mut depth) = (0, 0);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                choices.push(&inner[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    choices.push(&inner[begin..]);
    choices
}

/// `first..last` as numbers, none if the text is no range.
fn counted(inner: &str) -> Result<Option<Vec<String>>, String> {
    let Some((first_text, last_text)) = inner.split_once("..") else {
        return Ok(None);
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first_text) || !is_number(last_text) {
        return Ok(None);
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is too large a number"));
    let (first, last) = (number(first_text)?, number(last_text)?);
    if first.abs_diff(last) >= MOST as u64 {
        return Err(format!("{{{inner}}} stands for more than {MOST} shards"));
    }
    let width = first_text.len();
    let text = |value: u64| format!("{value:0width$}");
    let numbers =
        if first <= last { (first..=last).map(text).collect() } else { (last..=first).rev().map(text).collect() };
    Ok(Some(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_choices_and_nesting() {
        let cases: [(&str, &[&str]); 7] = [
            ("a.tar", &["a.tar"]),
            ("{008..011}", &["008", "009", "010", "011"]),
            ("{2..0}", &["2", "1", "0"]),
            ("{train,val}-{0..1}", &["train-0", "train-1", "val-0", "val-1"]),
            ("{a{1,2},b}", &["a1", "a2", "b"]),
            ("x{,.gz}", &["x", "x.gz"]),
            ("{solo}", &["solo"]),
        ];
        for (spec, expected) in cases {
            assert_eq!(expand_braces(spec).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn bad_braces_name_the_spec() {
        for spec in ["a{0..3", "a}b", "{{a,b}", "{0..99999999999}", "{0..99999}{0..99999}", "{0..99999999999999999999}"]
        {
            let error = expand_braces(spec).unwrap_err();
            assert!(error.to_string().contains(spec), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn braces_nest_so_deep_and_no_deeper() {
        let nested = |depth: usize| format!("{}a,b{}", "{".repeat(depth), "}".repeat(depth));
        assert_eq!(expand_braces(&nested(DEEPEST)).unwrap(), ["a", "b"]);
        for spec in [nested(DEEPEST + 1), nested(100_000), "{a}".repeat(100_000)] {
            assert_eq!(expand_braces(&spec).unwrap_err().exit_code(), 2);
            assert!(expand_command(&format!("cat {}", spec.replace("{a}", "{a,a}"))).is_err());
        }
    }

    #[test]
    fn braces_of_the_shell_stay_in_commands() {
        let cases: [(&str, &[&str]); 5] = [
            (
                "aws s3 cp s3://b/{08..10}.tar -",
                &["aws s3 cp s3://b/08.tar -", "aws s3 cp s3://b/09.tar -", "aws s3 cp s3://b/10.tar -"],
            ),
            ("cat {a,b}.tar", &["cat a.tar", "cat b.tar"]),
            ("cat ${HOME}/a | awk '{print $1, $2}'", &["cat ${HOME}/a | awk '{print $1, $2}'"]),
            ("x() { cat {0..1}; }; x", &["x() { cat {0..1}; }; x"]),
            ("echo } {", &["echo } {"]),
        ];
        for (command, expected) in cases {
            assert_eq!(expand_command(command).unwrap(), expected, "{command}");
        }
        assert_eq!(split_joined("a::pipe:c++ x::y"), ["a", "pipe:c++ x::y"]);
    }

    #[test]
    fn joined_lists_leave_addresses_alone() {
        assert_eq!(split_joined("a::b/{0..1}.tar"), ["a", "b/{0..1}.tar"]);
        assert_eq!(split_joined("http://[::1]:80/x.tar::y"), ["http://[::1]:80/x.tar", "y"]);
        assert_eq!(split_joined("https://host/x.tar"), ["https://host/x.tar"]);
    }

    proptest! {
        #[test]
        fn a_range_counts_every_number_once(first in 0_u64..2_000, count in 1_u64..300, width in 0_usize..7, tail in "[a-z.]{0,4}") {
            let last = first + count - 1;
            let all = expand_braces(&format!("s-{{{first:0width$}..{last:0width$}}}{tail}")).unwrap();
            prop_assert_eq!(all.len() as u64, count);
            for (i, text) in all.iter().enumerate() {
                let number = first + i as u64;
                prop_assert_eq!(text, &format!("s-{number:0width$}{tail}"));
            }
        }

        #[test]
        fn any_text_expands_or_is_refused(text in "[a-c{},.0-3]{0,24}") {
            let opened = text.matches('{').count();
            let closed = text.matches('}').count();
            let result = expand_braces(&text);
            prop_assert!(opened == closed || result.is_err());
            for item in result.unwrap_or_default() {
                let braces = item.matches(['{', '}']).count();
                prop_assert_eq!(braces, 0);
            }
        }
    }
}
