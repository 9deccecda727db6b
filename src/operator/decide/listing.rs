//! Lists of names in messages, bounded in length.

/// Joins the first `most` of `names` by `separator`, and adds the number of the others.
pub(crate) fn first_of(names: &[String], most: usize, separator: &str) -> String {
    let named = names.iter().take(most).map(String::as_str).collect::<Vec<_>>();
    let named = named.join(separator);
    match names.len().saturating_sub(most) {
        0 => named,
        more => format!("{named}{separator}and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_past_the_limit_are_counted() {
        let names: Vec<String> = (1..=4).map(|number| number.to_string()).collect();
        assert_eq!(first_of(&names[..3], 3, ", "), "1, 2, 3");
        assert_eq!(first_of(&names, 3, "; "), "1; 2; 3; and 1 more");
        assert_eq!(first_of(&[], 3, ", "), "");
    }
}
