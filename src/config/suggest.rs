//! Did-you-mean: the nearest known name for one that is not known.

/// The longest name that is compared.
const MOST_BYTES: usize = 256;

/// The candidate closest to `name`, if it is close enough to be what was meant: at most two edits
/// (Damerau-Levenshtein), or one for names of up to four letters, or a shared long prefix.
///
/// A name of more than `MOST_BYTES` is nobody's slip, and has none: comparing takes as many steps as the
/// lengths multiplied.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MOST_BYTES {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .filter(|c| c.len() <= MOST_BYTES)
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .filter(|&(distance, c)| {
            // Two names of one letter have nothing in common.
            let allowed = match name.chars().count() {
                0..=1 => 0,
                2..=4 => 1,
                _ => 2,
            };
            distance <= allowed || strsim::jaro_winkler(&lower, &c.to_lowercase()) > 0.9
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, c)| c)
}

/// The known name nearest to the unknown one, from what serde says of a key that is not known:
/// ``unknown field `nat`, expected one of `net`, `read` ``.
pub fn for_unknown_field(said: &str) -> Option<&str> {
    let mut names = said.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    nearest(unknown, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_letter_is_no_typing_mistake_for_another() {
        assert_eq!(nearest("f", ["t"]), None);
        assert_eq!(nearest("F", ["f"]), Some("f"));
    }

    #[test]
    fn a_long_name_is_not_compared() {
        let (name, near) = ("a".repeat(256), "a".repeat(255));
        assert_eq!(nearest(&name, [near.as_str()]), Some(near.as_str()));
        // Hundreds of gigabytes, if it were.
        let (long, longer) = ("a".repeat(1 << 20), "a".repeat(1 + (1 << 20)));
        assert_eq!(nearest(&long, [longer.as_str()]), None);
        assert_eq!(nearest(&name, [longer.as_str(), near.as_str()]), Some(near.as_str()));
    }

    #[test]
    fn serdes_words_are_understood() {
        let said = "unknown field `nat`, expected one of `read`, `net`";
        assert_eq!(for_unknown_field(said), Some("net"));
        assert_eq!(for_unknown_field("unknown field `nat`, there are no fields"), None);
        assert_eq!(for_unknown_field("expected `,`"), None);
    }

    #[test]
    fn finds_a_misspelt_option_and_nothing_far_away() {
        let known = ["weight_decay", "lr", "betas", "gradient_clipping"];
        assert_eq!(nearest("weigth_decay", known), Some("weight_decay"));
        assert_eq!(nearest("LR", known), Some("lr"));
        assert_eq!(nearest("gradient_cliping", known), Some("gradient_clipping"));
        assert_eq!(nearest("scheduler", known), None);
    }
}
