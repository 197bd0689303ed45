//! The limits of a chat template: how much it can make, how deep its values are, how long it takes.
//!
//! A template is a program of whoever published the model. minijinja counts its steps and the bytes
//! of each text and list, and does not know what a value holds in all: forty times `[x, x]` takes
//! no memory and has no end where it is shown, and a list within a hundred thousand lists ends the
//! process where it is dropped. So each operation that can make a larger value is followed by a
//! check, which is put into the compiled template. What is lazy becomes a list there, and a namespace
//! holds data alone, so that no value holds itself. A comparison pays for all that it looks at. What
//! the parser would go too deep into is refused before it is parsed.
//!
//! The compiled form is minijinja's own and has no promise of stability: Cargo.toml names one version.

use std::collections::{BTreeMap, HashSet};

use minijinja::{
    AutoEscape, Environment, Error, State, Value,
    machinery::{
        CodeGenerator, Instruction, Instructions, Token, eval, make_string_output, parse, tokenize,
    },
    syntax::SyntaxConfig,
    value::Kwargs,
};

use super::growth::{bounded, limit_comparisons, method, refused};

/// Steps of a template, and portions of 64 bytes that it makes: 256 MiB in all.
const FUEL: u64 = 4_000_000;
/// Bytes of a template; published ones have less than 50,000.
const MAX_SOURCE: usize = 1 << 18;
/// Names, signs and values of one tag: the parser goes one call deeper with most of them.
const MAX_TAG: usize = 2048;
/// Branches of the template, which are parsed within each other.
const MAX_BRANCHES: usize = 1024;

/// The filters that are put into a template; no template can name them.
const BOUNDED: &str = "(bounded)";
const DATA: &str = "(data)";

/// Renders a template within the limits.
pub(super) fn render(
    mut environment: Environment<'_>,
    syntax: &SyntaxConfig,
    source: &str,
    context: Value,
) -> Result<String, Error> {
    refuse_depth(source, syntax)?;
    limit(&mut environment);
    let tree = parse(source, NAME, syntax.clone())?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (instructions, _) = generator.finish();
    let instructions = checked(&instructions, source);
    let (mut text, blocks) = (String::new(), BTreeMap::new());
    let mut output = make_string_output(&mut text);
    eval(&environment, &instructions, context, &blocks, &mut output, AutoEscape::None)?;
    drop(output);
    Ok(text)
}

const NAME: &str = "chat_template";

/// Refuses templates that the parser would go too deep into.
fn refuse_depth(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(refused(format!("it is longer than {MAX_SOURCE} bytes")));
    }
    let (mut in_tag, mut branches) = (0, 0);
    // Values that are written out are computed by the compiler, without a limit for lists.
    let (mut is_behind_value, mut has_list, mut repeats) = (false, false, false);
    for token in tokenize(source, false, syntax.clone()) {
        let token = token?.0;
        in_tag += 1;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (in_tag, has_list, repeats) = (0, false, false)
            }
            Token::Ident("elif") => branches += 1,
            Token::Mul => repeats = true,
            Token::BracketOpen if !is_behind_value => has_list = true,
            _ => {}
        }
        is_behind_value = match token {
            Token::Ident(word) => !WORDS_BEFORE_VALUES.contains(&word),
            Token::BracketClose
            | Token::ParenClose
            | Token::BraceClose
            | Token::Str(_)
            | Token::String(_) => true,
            _ => false,
        };
        if has_list && repeats {
            return Err(refused("a tag of it has both a list and `*`".to_owned()));
        }
        if in_tag > MAX_TAG {
            return Err(refused(format!("a tag of it has more than {MAX_TAG} parts")));
        }
        if branches > MAX_BRANCHES {
            return Err(refused(format!("it has more than {MAX_BRANCHES} `elif`")));
        }
    }
    Ok(())
}

/// Behind these, `[` begins a list, and is no subscript.
const WORDS_BEFORE_VALUES: [&str; 7] = ["in", "and", "or", "not", "if", "else", "is"];

/// Puts the limits into an environment.
fn limit(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.add_filter(BOUNDED, |state: &State, value: Value| bounded(state, value, true));
    environment.add_filter(DATA, |state: &State, value: Value| bounded(state, value, false));
    limit_comparisons(environment);
    // It would show all that there is.
    environment.remove_global("debug");
    let namespace = environment.globals().find(|(name, _)| *name == "namespace");
    if let Some((_, namespace)) = namespace {
        let checked = move |state: &mut State, first: Option<Value>, named: Kwargs| {
            for name in named.args() {
                bounded(state, named.get(name)?, false)?;
            }
            let given: Vec<Value> = first.into_iter().chain([named.into()]).collect();
            namespace.call(state, &given)
        };
        environment.add_function("namespace", checked);
    }
    environment.set_unknown_method_callback(method);
}

/// The instructions with checks between them.
fn checked<'s>(instructions: &Instructions<'s>, source: &'s str) -> Instructions<'s> {
    let mut all: Vec<_> = (0..).map_while(|i| instructions.get(i).cloned()).collect();
    let targets: HashSet<u32> = all.iter_mut().filter_map(|i| target(i).copied()).collect();
    let (mut places, mut made) = (Vec::with_capacity(all.len() + 1), Vec::new());
    let mut last = None;
    for (i, instruction) in (0..).zip(all) {
        places.push(u32::try_from(made.len()).unwrap_or(u32::MAX));
        let line = instructions.get_line(i).and_then(|line| line.try_into().ok()).unwrap_or(1);
        if targets.contains(&i) {
            last = None;
        }
        let (before, behind) = (checks_before(&instruction, last.as_ref()), grows(&instruction));
        last = Some(instruction.clone());
        let behind = behind.then(|| check(BOUNDED));
        let around = before.iter().cloned().chain([instruction]).chain(behind);
        made.extend(around.map(|instruction| (instruction, line)));
    }
    places.push(u32::try_from(made.len()).unwrap_or(u32::MAX));
    let mut instructions = Instructions::new(NAME, source);
    for (mut instruction, line) in made {
        if let Some(target) = target(&mut instruction) {
            *target = places[*target as usize];
        }
        instructions.add_with_line(instruction, line);
    }
    instructions
}

/// The filter with this name, applied to the value on top.
fn check<'s>(name: &'static str) -> Instruction<'s> {
    // The number is that of filters which are looked up each time.
    Instruction::ApplyFilter(name, Some(1), u8::MAX)
}

/// The checks of values that an instruction takes, where the one before it is `last`.
fn checks_before<'s>(
    instruction: &Instruction<'s>,
    last: Option<&Instruction<'s>>,
) -> Vec<Instruction<'s>> {
    use Instruction::*;
    // A comparison with a text or a number does not walk through the other value.
    let is_short = matches!(last, Some(LoadConst(value)) if value.as_object().is_none());
    match instruction {
        // The value lies beneath the namespace.
        SetAttr(_) => vec![Swap, check(DATA), Swap],
        GetItem if !is_short => vec![check(BOUNDED)],
        Eq | Ne | Gt | Gte | Lt | Lte | In | CompareAndPreserve(_) if !is_short => {
            vec![Swap, check(BOUNDED), Swap, check(BOUNDED)]
        }
        _ => vec![],
    }
}

/// Whether the value that an instruction leaves can be larger than those that it takes, or takes
/// long to make.
fn grows(instruction: &Instruction<'_>) -> bool {
    use Instruction::*;
    matches!(
        instruction,
        Slice
            | BuildMap(_)
            | BuildList(_)
            | BuildTuple(_)
            | Add
            | Mul
            | Pow
            | StringConcat
            | ApplyFilter(..)
            | CallFunction(..)
            | CallMethod(..)
            | CallObject(_)
    )
}

/// Where an instruction goes on.
fn target<'i>(instruction: &'i mut Instruction<'_>) -> Option<&'i mut u32> {
    use Instruction::*;
    match instruction {
        Iterate(target)
        | Jump(target)
        | JumpIfFalse(target)
        | JumpIfFalseOrPop(target)
        | JumpIfTrueOrPop(target)
        | BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::{ChatTemplate, Message};
    use crate::error::Code;

    /// The text of a template, or the words of its error.
    fn rendered(source: &str) -> Result<String, String> {
        let template = ChatTemplate::of_source(source);
        let messages = [Message::new("user", "Hello"), Message::new("assistant", "Hi")];
        template.render(&messages, true).map_err(|e| {
            assert_eq!(e.code(), Code::Tokenizer);
            e.to_string()
        })
    }

    /// A namespace `ns`, changed `times` times.
    fn repeated(change: &str, times: usize, behind: &str) -> String {
        let start = "{% set ns = namespace(x=['a'], y=['a'], t='ab') %}";
        format!("{start}{{% for i in range({times}) %}}{change}{{% endfor %}}{behind}")
    }

    #[test]
    fn what_grows_has_an_end() {
        let doubled = |new: &str| repeated(&format!("{{% set ns.x = {new} %}}"), 60, "{{ ns.x }}");
        let sources = [
            "{{ '%1000000000d'|format(1) }}".to_owned(),
            "{{ '{:1000000000d}'.format(1) }}".to_owned(),
            "{{ '{:>{}}'.format('a', 1000000000) }}".to_owned(),
            "{{ ('{0}' * 100000).format('a' * 100000) }}".to_owned(),
            "{{ 'a' * 10**10 }}".to_owned(),
            "{{ range(10**9) }}".to_owned(),
            "{{ 'a\nb'|indent(10**10) }}".to_owned(),
            "{{ ('a' * 10**5)|replace('', 'b' * 10**5) }}".to_owned(),
            "{{ ('a' * 10**5).replace('', 'b' * 10**5) }}".to_owned(),
            "{{ ('a' * 10**7).split('') }}".to_owned(),
            "{{ ('a' * 10**5).join(range(10**5)) }}".to_owned(),
            "{{ strftime_now('%c' * 10**6) }}".to_owned(),
            "{{ [1] * 10**8 == [1] * 10**8 }}".to_owned(),
            "{{ ([[1]] and [2] or 3) * 10**8 == 1 }}".to_owned(),
            repeated("{% set ns.t = ns.t ~ ns.t %}", 60, "{{ ns.t }}"),
            repeated("{% set ns.t = ns.t + ns.t %}", 60, "{{ ns.t }}"),
            doubled("ns.x + ns.x"),
            doubled("ns.x|chain(ns.x)"),
            doubled("ns.x * 2"),
            doubled("[ns.x, ns.x]"),
            doubled("(ns.x, ns.x)"),
            doubled("{'a': ns.x, 'b': ns.x}"),
            doubled("dict(a=ns.x, b=ns.x)"),
            doubled("[ns.x, ns.x]|map('list')|list"),
            format!("{{% set x = ['a'] %}}{}{{{{ x ~ '' }}}}", "{% set x = [x, x] %}".repeat(60)),
            "{% macro f(x, n) %}{{ f([x, x], n + 1) if n < 60 else x }}{% endmacro %}{{ f([1], 0) }}"
                .to_owned(),
        ];
        for source in sources {
            assert!(rendered(&source).is_err(), "{source}");
        }
    }

    #[test]
    fn no_value_is_too_deep_or_holds_itself() {
        let deeper =
            |new: &str| repeated(&format!("{{% set ns.x = {new} %}}"), 90_000, "{{ ns.x }}");
        let sources = [
            deeper("[ns.x]"),
            deeper("{'a': ns.x}"),
            deeper("dict(a=ns.x)"),
            deeper("namespace(a=ns.x)"),
            deeper("ns.x|zip"),
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned(),
            "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}".to_owned(),
            "{% set ns = namespace() %}{% set ns.x = {'a': ns} %}{{ ns }}".to_owned(),
            "{% set ns = namespace() %}{% set f = namespace %}{% set ns.x = f(a=ns) %}".to_owned(),
            "{% set ns = namespace() %}{% macro m() %}{% endmacro %}{% set ns.x = m %}".to_owned(),
            format!("{{% set x = ['a'] %}}{}", "{% set x = [x] %}".repeat(9000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
            format!("{{{{ {}1 }}}}", "1 ~ ".repeat(50_000)),
            format!("{{{{ x{} }}}}", ".a".repeat(50_000)),
            format!("{{{{ x{} }}}}", "|list".repeat(50_000)),
            format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000)),
            "a".repeat(1 << 20),
        ];
        for source in sources {
            assert!(rendered(&source).is_err(), "{}", &source[..100]);
        }
        // Lazy values are lists at once, and go no deeper.
        for flat in ["ns.x[0:]", "ns.x|reverse", "ns.x * 1", "ns.x + []"] {
            let source = repeated(&format!("{{% set ns.x = {flat} %}}"), 20_000, "{{ ns.x[0] }}");
            assert_eq!(rendered(&source), Ok("a".to_owned()), "{flat}");
        }
    }

    /// Each compares what is large, again and again, and pays for it: without that they take hours.
    #[test]
    fn comparisons_have_an_end() {
        let large = "{% set a = [range(50000)|list] %}{% set b = [range(50000)|list] %}";
        let conditions =
            ["a == b", "{1: 1}[a]", "[a, b]|min", "[[a, 1]]|select('eq', [b, 2])|list"];
        for condition in conditions {
            let rounds = "{% for i in range(99999) %}{% for j in range(99999) %}";
            let source = format!(
                "{large}{rounds}{{% if {condition} %}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
            );
            assert!(rendered(&source).is_err(), "{condition}");
        }
    }

    #[test]
    fn what_templates_do_is_as_before() {
        let cases = [
            ("{% set m = messages[1:] %}{{ m[0].role }}{{ m|length }}", "assistant1"),
            ("{{ messages|map(attribute='role')|join(',') }}", "user,assistant"),
            ("{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}{{ v }}{% endfor %}", "a1b[2]"),
            (
                "{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}",
                "assistant1user1",
            ),
            ("{{ 'a' if messages[0]['role'] == 'user' else 'b' }}{{ 1 < 2 < 3 }}", "aTrue"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' and not ns.n %}{% set ns.n = loop.index + 1 %}{% endif %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(1, y=[3]) }}",
                "121[3]",
            ),
            (
                "{% macro f(n) %}{% set n.x = n.x + 1 %}{% endmacro %}{% set ns = namespace(x=1) %}{{ f(n=ns) }}{{ ns.x }}",
                "2",
            ),
            ("{{ (messages[0].role or 'x') == 'user' }}{{ ('' or messages) == [] }}", "TrueFalse"),
            ("{{ dict(a=1).a }}{{ dict({'b': 2}, a=1).b }}{{ [1, 2] + [3] }}", "12[1, 2, 3]"),
            ("{{ '{:>4}|{}'.format('a', 2) }}{{ '%03d'|format(7) }}", "   a|2007"),
            ("{{ 'a-b'.split('-')[1] }}{{ 'user' in messages|map(attribute='role') }}", "bTrue"),
            (
                "{% for i in [1, [2]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
                "12",
            ),
            (
                "{{ (2, 1)|sort }}{{ [3, 1]|min }}{{ [1, 1]|unique|list }}{{ (1, 2) }}",
                "[1, 2]1[1](1, 2)",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(rendered(source), Ok(expected.to_owned()), "{source}");
        }
        // A long conversation, whose messages are gathered in a namespace.
        let gathered = "{% set ns = namespace(all=[]) %}{% for i in range(1000) %}{% set ns.all = ns.all + [i] %}{% endfor %}{{ ns.all|length }}";
        assert_eq!(rendered(gathered), Ok("1000".to_owned()));
    }
}
