//! Did-you-mean: the nearest known name for one that is not known.

/// The candidate closest to `name`, if it is close enough to be what was meant: at most two edits
/// (Damerau-Levenshtein), or one for names of up to four letters, or a shared long prefix.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .filter(|&(distance, c)| {
            let allowed = if name.chars().count() <= 4 { 1 } else { 2 };
            distance <= allowed || strsim::jaro_winkler(&lower, &c.to_lowercase()) > 0.9
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_misspelt_option_and_nothing_far_away() {
        let known = ["weight_decay", "lr", "betas", "gradient_clipping"];
        assert_eq!(nearest("weigth_decay", known), Some("weight_decay"));
        assert_eq!(nearest("LR", known), Some("lr"));
        assert_eq!(nearest("gradient_cliping", known), Some("gradient_clipping"));
        assert_eq!(nearest("scheduler", known), None);
    }
}
