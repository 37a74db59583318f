//! What is shown, stored and compared of addresses and commands that hold secrets.

use super::*;
use proptest::prelude::*;

#[test]
fn a_url_is_shown_without_its_query_and_stored_without_its_signature() {
    let url = "https://me:pa@ss@host:8443/a%20b/c@d-{0..3}.tar?id=7&X-Amz-Signature=abc&X-Amz-Date=1#x";
    assert_eq!(shown(url), "https://host:8443/a%20b/c@d-{0..3}.tar");
    assert_eq!(stored(url), "https://***@host:8443/a%20b/c@d-{0..3}.tar?id=7&X-Amz-Signature=***&X-Amz-Date=***");
    assert_eq!(identity(url), "https://host:8443/a%20b/c@d-{0..3}.tar?id=7");
    assert_eq!(identifying_query(url).as_deref(), Some("id=7"));
    assert!(was_stored(&stored(url)) && !was_stored(url));
}

#[test]
fn plain_specs_stay_as_they_are() {
    for spec in ["shards/a-{000..127}.tar", "@list.txt", "s3://bucket/a#b/*.tar", "s3://b/a?.tar", "a::https://h/b"] {
        assert_eq!((shown(spec), stored(spec), identity(spec)), (spec.into(), spec.into(), spec.into()));
        assert!(!was_stored(spec));
    }
}

#[test]
fn short_names_are_signatures_only_beside_one() {
    assert_eq!(identity("https://h/a?sv=1&se=2&sig=x&snapshot=4"), "https://h/a?snapshot=4");
    assert_eq!(identity("https://h/a?sv=1&se=2"), "https://h/a?sv=1&se=2");
}

#[test]
fn every_url_of_a_spec_is_looked_at() {
    let spec = "{https://u:p1@h/a?sig=s1,https://u:p2@h/b?sig=s2}/c::@https://u:p3@h/l.txt?token=s3";
    assert_eq!(shown(spec), "{https://h/a,https://h/b}/c::@https://h/l.txt");
    assert_eq!(identity(spec), shown(spec));
}

#[test]
fn a_command_loses_its_secrets_alone() {
    let cases = [
        ("pipe:aws s3 cp s3://b/{000..009}.tar -", "pipe:aws s3 cp s3://b/{000..009}.tar -"),
        ("pipe:curl -s 'https://u:p@h/a.tar?sig=1' | cat", "pipe:curl -s 'https://h/a.tar' | cat"),
        ("pipe:curl -H 'Authorization: Bearer abc' https://h/a", "pipe:curl -H 'Authorization: ' https://h/a"),
        ("pipe:TOKEN=abc get --password hush --secret-key=x a", "pipe:TOKEN= get --password  --secret-key= a"),
        ("pipe:get --token \"two words\" a -u me:pw", "pipe:get --token \" a -u "),
        ("pipe:curl -sfLu me:pw --basic https://h/a", "pipe:curl -sfLu --basic https://h/a"),
        ("pipe:curl -U 'me:two words' -ume:pw --user=me:pw a", "pipe:curl -U ' -u --user= a"),
        ("pipe:curl -sb sid=1 -H 'Cookie: sid=2; x=3' a", "pipe:curl -sb -H 'Cookie: ' a"),
        (
            "pipe:curl --oauth2-bearer t --pass p --cookie c --proxy-user m:p a",
            "pipe:curl --oauth2-bearer --pass --cookie --proxy-user a",
        ),
        ("pipe:cat -u a.tar | sort -b --user me", "pipe:cat -u a.tar | sort -b --user me"),
    ];
    for (command, expected) in cases {
        let kept = shown(command);
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(plain(&kept), plain(expected), "{command}");
    }
    for (command, _) in cases.iter().filter(|(command, _)| !command.contains("two words")) {
        assert_eq!(identity(&stored(command)), identity(command));
    }
}

#[test]
fn a_password_with_a_sign_that_ends_a_host_is_not_shown() {
    for sign in ["/", "#", "?", "/a@b#"] {
        let url = format!("https://me:pa{sign}ss@host/c.tar?id=1");
        assert_eq!((shown(&url), identity(&url)), ("https://host/c.tar".into(), "https://host/c.tar?id=1".into()));
        assert_eq!(stored(&url), "https://***@host/c.tar?id=1");
    }
    assert_eq!(shown("https://[::1]:80/a@b"), "https://[::1]:80/a@b");
    assert_eq!(shown("https://h:{80..82}/a@b"), "https://h:{80..82}/a@b");
}

#[test]
fn a_key_may_be_a_secret_and_still_tells_objects_apart() {
    let [one, other] = ["a.tar", "b.tar"].map(|key| format!("https://h/get?key={key}"));
    assert!(!stored(&one).contains("a.tar") && was_stored(&stored(&one)));
    assert_ne!(identity(&one), identity(&other));
    assert_eq!((identity(&stored(&one)), stored(&stored(&one))), (identity(&one), stored(&one)));
}

/// A text with one secret in it, and the secret.
fn with_secret() -> impl Strategy<Value = (String, String)> {
    let secret = "[a-zA-Z0-9%+/._~-]{25,60}".prop_map(|text| format!("Q{text}Q"));
    (secret, 0..12_usize, "[a-z]{1,6}", "[a-z0-9]{1,8}").prop_map(|(secret, shape, name, path)| {
        let safe = secret.replace('/', "-");
        let text = match shape {
            0 => format!("https://{name}:{secret}@host/{path}.tar"),
            1 => format!("https://host/{path}.tar?X-Amz-Signature={secret}&x={name}"),
            2 => format!("https://host/{path}.tar?{name}={secret}"),
            3 => format!("https://host/{path}.tar?se=1&sig={secret}#{name}"),
            4 => format!("@https://host/{path}.txt?access_token={secret}"),
            5 => format!("{path}.tar::https://host/{{0..3}}.tar?Signature={secret}&Expires=3"),
            6 => format!("pipe:curl -sH 'Authorization: Bearer {secret}' https://host/{path}"),
            7 => format!("pipe:{name}_TOKEN={secret} get {path}"),
            8 => format!("pipe:get --api-key {secret} {path} | cat"),
            9 => format!("pipe:curl https://{name}:{safe}@host/{path}"),
            10 => format!("pipe:curl \"https://host/{path}?{name}={secret}\" | zstd -d"),
            _ => format!("{{https://host/{path}?sig={secret},https://host/{name}}}"),
        };
        (text, secret)
    })
}

proptest! {
    #[test]
    fn no_secret_stays((text, secret) in with_secret()) {
        let safe = secret.replace('/', "-");
        for kept in [shown(&text), stored(&text), identity(&text)] {
            prop_assert!(!kept.contains(&secret) && !kept.contains(&safe), "{} in {}", secret, kept);
        }
    }

    #[test]
    fn what_was_stored_is_the_same_shard_and_stays_as_it_is((text, _) in with_secret()) {
        let kept = stored(&text);
        prop_assert_eq!(identity(&kept), identity(&text));
        prop_assert_eq!(&stored(&kept), &kept);
        prop_assert!(was_stored(&kept), "{}", kept);
    }

    #[test]
    fn any_text_can_be_scrubbed(text in "\\PC{0,60}") {
        let kept = stored(&text);
        prop_assert_eq!(stored(&kept), kept);
        shown(&text);
    }
}
