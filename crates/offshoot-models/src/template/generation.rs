//! transformers' `{% generation %}` tags, which mark what an assistant says and print nothing.

use std::borrow::Cow;

/// Source with the tags turned into `{% with %}` and `{% endwith %}`: blocks that print nothing
/// either, cut white space as any tag does, and keep what is set inside to themselves, as there.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        if let Some((marks, name)) = generation_name(tag) {
            out.push_str(&tag[..marks]);
            out.push_str(if name == "generation" { "with" } else { "endwith" });
            rest = &tag[marks + name.len()..];
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Where the name stands and the name, if `tag`, which starts after its `{%`, is nothing but
/// `generation` or `endgeneration`. Looks no further than the tag, so all tags take linear time.
fn generation_name(tag: &str) -> Option<(usize, &'static str)> {
    let from_name = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
    let name = ["generation", "endgeneration"].into_iter().find(|n| from_name.starts_with(n))?;
    let after = from_name[name.len()..].trim_start();
    let after = after.strip_prefix(['-', '+']).unwrap_or(after);
    after.starts_with("%}").then_some((tag.len() - from_name.len(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_blocks_that_keep_their_white_space_marks() {
        let source = "a {%- generation -%} b {% endgeneration +%} {{ add_generation_prompt }}";
        let expected = "a {%- with -%} b {% endwith +%} {{ add_generation_prompt }}";
        assert_eq!(without_generation_tags(source), expected);
    }

    #[test]
    fn other_tags_stay() {
        let source = "{% if add_generation_prompt %}{% generations %}{%generation{% endif %}é{%";
        assert_eq!(without_generation_tags(source), source);
    }
}
