//! A method's page: what its file says of it before the first line of code.
//!
//! The text is written once, where the method is; documentation and the command line show it.

/// The head of `source`, the text of a file: its lines of inner documentation, as a terminal shows them.
/// Equations stand four columns in, and links to code are its names.
pub fn page_of(source: &str) -> String {
    let mut page = String::new();
    let mut is_equation = false;
    for line in source.lines().map_while(|line| line.strip_prefix("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        match line.starts_with("```") {
            true => is_equation = !is_equation,
            false if is_equation && !line.is_empty() => page += &format!("    {line}\n"),
            false => page += &format!("{}\n", without_links(line)),
        }
    }
    page
}

/// `line` with the names that links to code stand for.
fn without_links(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once("[`") {
        out += before;
        let Some((name, after)) = behind.split_once("`]") else {
            rest = &rest[before.len()..];
            break;
        };
        out += &format!("`{name}`");
        let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
        rest = target.map_or(after, |(_, after)| after);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_the_head_of_a_file_without_its_marks() {
        let source = "//! Of [`a`](super::A) and [`B`], [1] and [`open.\n//!\n//! ```text\n//! x = 1\n\
                      //!\n//!   + 2\n//! ```\n//! <https://a.b>\n\nuse x;\n//! not this\n";
        let page = "Of `a` and `B`, [1] and [`open.\n\n    x = 1\n\n      + 2\n<https://a.b>\n";
        assert_eq!(page_of(source), page);
    }
}
