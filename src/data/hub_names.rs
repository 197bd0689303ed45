//! The short names that users of transformers and datasets know, and the hub's names for them.

/// The hint for a text that names nothing here and is no name on the hub.
pub fn hub_hint(text: &str) -> Option<String> {
    if text.is_empty() || text.contains(['/', '.', '~', '*']) {
        return None;
    }
    let known = NAMES.iter().find(|(short, _)| *short == text);
    Some(match known {
        Some((_, whole)) => format!("on the hub it is \"{whole}\""),
        None => format!("a name on the hub has its owner before it: \"Owner/{text}\""),
    })
}

/// The hint for a name on the hub that fails: a path with one slash looks like one.
pub fn no_path_hint(text: &str) -> String {
    format!("there is no file or directory {text} here either")
}

const NAMES: &[(&str, &str)] = &[
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2"),
    ("t5-small", "google-t5/t5-small"),
    ("t5-base", "google-t5/t5-base"),
    ("t5-large", "google-t5/t5-large"),
    ("wikitext", "Salesforce/wikitext:wikitext-2-raw-v1"),
    ("openwebtext", "Skylion007/openwebtext"),
    ("c4", "allenai/c4:en"),
    ("squad", "rajpurkar/squad"),
    ("imdb", "stanfordnlp/imdb"),
    ("ag_news", "fancyzhx/ag_news"),
    ("gsm8k", "openai/gsm8k:main"),
    ("xsum", "EdinburghNLP/xsum"),
    ("cnn_dailymail", "abisee/cnn_dailymail:3.0.0"),
    ("samsum", "knkarthick/samsum"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_known_and_paths_are_none() {
        assert_eq!(hub_hint("gpt2").unwrap(), "on the hub it is \"openai-community/gpt2\"");
        assert!(hub_hint("mine").unwrap().contains("Owner/mine"));
        for path in ["a/b", "rows.txt", "./x", "~/x", "", "a*"] {
            assert_eq!(hub_hint(path), None, "{path}");
        }
    }
}
