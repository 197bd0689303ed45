//! What of a Markdown page can run, and its links.

/// A fenced block.
pub(crate) struct Block {
    /// The first word behind the fence.
    pub(crate) language: String,
    /// Whether it is not to run.
    pub(crate) is_ignored: bool,
    pub(crate) text: String,
    /// The line of its first line, from 1.
    pub(crate) line: usize,
}

/// The fenced blocks of a page, in order.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (Some(words), None) => {
                let (language, rest) = words.split_once(',').unwrap_or((words, ""));
                open = Some(Block {
                    language: language.trim().to_owned(),
                    is_ignored: rest.trim() == "ignore",
                    text: String::new(),
                    line: number + 2,
                });
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// The name of the file that a recipe is to be written to: its first line, `// NAME.rhai`.
pub(crate) fn file_name(recipe: &str) -> Option<&str> {
    let name = recipe.lines().next()?.strip_prefix("// ")?;
    (name.ends_with(".rhai") && !name.contains(char::is_whitespace)).then_some(name)
}

/// The commands of a console block, each with the output that is shown for it.
pub(crate) fn commands(console: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in console.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => {
                output.push_str(line);
                output.push('\n');
            }
            (None, None) => panic!("a console block begins with a command: {console}"),
        }
    }
    commands
}

/// Where the links of a page lead, blocks and code left out.
pub(crate) fn links(page: &str) -> Vec<String> {
    let mut in_block = false;
    let mut links = Vec::new();
    for line in page.lines() {
        in_block ^= line.starts_with("```");
        if in_block {
            continue;
        }
        let without_code: String = line.split('`').step_by(2).collect::<Vec<_>>().join("");
        for part in without_code.split("](").skip(1) {
            links.extend(part.split(')').next().map(str::to_owned));
        }
    }
    links
}

#[test]
fn a_page_is_taken_apart() {
    let page = "a [b](c.md#d) `[x](y)`\n```rhai\n// e.rhai\n1\n```\n\n```sh,ignore\nmake\n```\n";
    let all = blocks(page);
    let seen: Vec<_> = all.iter().map(|b| (b.language.as_str(), b.is_ignored, b.line)).collect();
    assert_eq!(seen, [("rhai", false, 3), ("sh", true, 8)]);
    assert_eq!(file_name(&all[0].text), Some("e.rhai"));
    assert_eq!(file_name("// Trains.\n"), None);
    assert_eq!(links(page), ["c.md#d"]);
    let pair = |command: &str, output: &str| (command.to_owned(), output.to_owned());
    assert_eq!(commands("$ a\nb\n$ c\n"), [pair("a", "b\n"), pair("c", "")]);
}
