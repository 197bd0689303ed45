//! Help for a name, from the reference and from the session's own functions.

use rhai::AST;

use super::session::Live;
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    recipe::{
        description::without_marks,
        translate::{friendly, parameters},
    },
    script::reference::{self, ReferenceEntry},
};

/// An option's help is cut here.
const MOST_CHARACTERS: usize = 70;

impl Live {
    /// The help for `name`: a function, a property, a type, `engine.loss`, or `value.member` with a
    /// variable of the session. The error for an unknown name has the nearest names.
    pub fn help(&self, name: &str) -> Result<Vec<ReferenceEntry>> {
        let name = name.trim().trim_end_matches("()").trim_end_matches('(');
        let of_session = self.functions_called(name);
        if !of_session.is_empty() {
            return Ok(of_session);
        }
        if let Some((value, member)) = name.split_once('.')
            && let Some(value) = self.scope.get(value)
        {
            let owner = friendly(&self.engine, value.type_name());
            return self.member_of(&owner, member);
        }
        if let Some(value) = self.scope.get(name) {
            let owner = friendly(&self.engine, value.type_name());
            if let Ok(found) = reference::find(&owner) {
                return Ok(found);
            }
        }
        match reference::find(name) {
            Ok(found) => Ok(found),
            Err(error) => {
                let standard = self.standard(name);
                if standard.is_empty() { Err(self.near(name, error)) } else { Ok(standard) }
            }
        }
    }

    fn member_of(&self, owner: &str, member: &str) -> Result<Vec<ReferenceEntry>> {
        let first = member.split(['.', '(', '[']).next().unwrap_or(member);
        let all = self.docs();
        let is_of_owner = |entry: &&ReferenceEntry| {
            let group = owner.to_lowercase();
            entry.name == first
                && (entry.group == group
                    || entry.signature.starts_with(&format!("{group}."))
                    || entry.signature.contains(&format!(": {owner}")))
        };
        let found: Vec<_> = all.iter().filter(is_of_owner).cloned().collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let standard = self.standard(first);
        if !standard.is_empty() {
            return Ok(standard);
        }
        let group = owner.to_lowercase();
        let names =
            all.iter().filter(|entry| entry.group == group).map(|entry| entry.name.as_str());
        let error = Error::new(
            Code::UnknownFunction,
            format!("a value of type {owner} has no member `{first}`"),
        );
        Err(error.hint_if(nearest(first, names).map(|near| format!("did you mean `{near}`?"))))
    }

    /// The functions that inputs have defined.
    fn functions_called(&self, name: &str) -> Vec<ReferenceEntry> {
        let own = self.functions.iter_functions().filter(|f| f.name == name);
        own.map(|f| ReferenceEntry {
            name: f.name.to_owned(),
            group: "session".to_owned(),
            signature: format!("fn {}({})", f.name, f.params.join(", ")),
            doc: without_marks(&f.comments.join("\n")),
        })
        .collect()
    }

    /// Functions of Rhai itself.
    fn standard(&self, name: &str) -> Vec<ReferenceEntry> {
        let read = |f: rhai::FuncInfo<'_>| {
            let meta = f.metadata;
            if meta.name != name || meta.comments.is_empty() {
                return None;
            }
            let doc = meta.comments.iter().map(|c| c.as_str()).collect::<Vec<_>>().join("\n");
            Some(ReferenceEntry {
                name: name.to_owned(),
                group: "rhai".to_owned(),
                signature: format!("{name}({})", parameters(&self.engine, &f)),
                doc: without_marks(&doc),
            })
        };
        let mut found = self.engine.collect_fn_metadata(None, read, true);
        found.sort_by(|a, b| a.signature.cmp(&b.signature));
        found
    }

    /// The error, with near names of the session if the reference has none.
    fn near(&self, name: &str, error: Error) -> Error {
        if error.hints().iter().any(|hint| hint.starts_with("did you mean")) {
            return error;
        }
        let own = self.functions.iter_functions().map(|f| f.name.to_owned());
        let variables = self.scope.iter_raw().map(|(name, ..)| name.to_owned());
        let names: Vec<_> = own.chain(variables).collect();
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => {
                Error::new(error.code(), error.message()).hint(format!("did you mean `{near}`?"))
            }
            None => error,
        }
    }

    /// The reference, read once.
    pub(super) fn docs(&self) -> &[ReferenceEntry] {
        self.docs.get_or_init(reference::entries)
    }

    /// The help for an option in the documentation of a function: the words behind its name.
    pub(super) fn option_help(&self, call: &str, option: &str) -> String {
        let option = format!("`{option}`");
        let (source, name) = self.source_of(call);
        let mut own = source.into_iter().flat_map(AST::iter_functions).filter(|f| f.name == name);
        let said = own.find_map(|f| said_of(&without_marks(&f.comments.join("\n")), &option));
        let mut docs = self.docs().iter().filter(|entry| entry.name == name);
        said.or_else(|| docs.find_map(|entry| said_of(&entry.doc, &option))).unwrap_or_default()
    }

    /// The source that may define the function of a call such as `f` or `trainer::fit`, and the
    /// function's name.
    pub(super) fn source_of<'a>(&self, call: &'a str) -> (Option<&AST>, &'a str) {
        match call.split_once("::") {
            Some((module, name)) => (self.known.modules.get(module), name),
            None => (Some(&self.functions), call),
        }
    }
}

/// The words of `doc` for `name`: in a list, or in a sentence.
fn said_of(doc: &str, name: &str) -> Option<String> {
    let said = in_list(doc, name).or_else(|| in_sentence(doc, name))?;
    let said = shortened(&said);
    (!said.is_empty()).then_some(said)
}

/// A help that fits beside a candidate.
pub(super) fn shortened(help: &str) -> String {
    help.trim().trim_end_matches(['.', ';', ',']).chars().take(MOST_CHARACTERS).collect()
}

/// The words behind the dash of a list's line that begins with the name, or with it among others.
fn in_list(doc: &str, name: &str) -> Option<String> {
    let lines = doc.split("\n* ").filter_map(|line| line.split_once(" - "));
    let mut said = lines.filter(|(names, _)| names.split(", ").any(|other| other == name));
    let words: Vec<_> = said.next()?.1.split("\n\n").next()?.split_whitespace().collect();
    let said = words.join(" ");
    let ends = ["; ", ". "].iter().filter_map(|end| said.find(end));
    Some(said[..ends.min().unwrap_or(said.len())].to_owned())
}

/// The words behind the name up to the next option or sentence.
fn in_sentence(doc: &str, name: &str) -> Option<String> {
    let (_, rest) = doc.split_once(name)?;
    let rest = rest.replace('\n', " ");
    let rest = rest.trim_start_matches([':', ',', ' ']);
    if rest.starts_with('(')
        && let Some(end) = rest.find(')')
    {
        // Its default.
        return Some(rest[..=end].to_owned());
    }
    let ends = [", `", "; ", ". ", " `", " * "].iter().filter_map(|end| rest.find(end));
    Some(rest[..ends.min().unwrap_or(rest.len())].to_owned())
}
