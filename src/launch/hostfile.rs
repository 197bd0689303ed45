//! The machines and slots that take part: DeepSpeed's hostfile and filters.
//!
//! ```text
//! # one machine a line, with the number of its GPUs (or of processes, on the CPU)
//! worker-0 slots=4
//! worker-1 slots=4
//! ```
//!
//! A filter is `NAME[:SLOT[,SLOT ...]]`, several of them joined by `@`: `worker-0@worker-1:0,2`.

use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
};

/// A machine and the slots of it that take part, one process each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, as ssh knows it.
    pub name: String,
    /// The slots, in order; with CUDA the numbers of its GPUs.
    pub slots: Vec<usize>,
}

/// Reads a hostfile; `path` is its name in messages.
pub(super) fn parse(text: &str, path: &str) -> Result<Vec<Host>> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut faults = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut fault = |what: String| {
            faults.push(Error::new(Code::BadValue, format!("{path}:{}: {what}", i + 1)));
        };
        match entry(line) {
            None => fault(format!("expected `host slots=N`, found `{line}`")),
            Some((name, 0)) => fault(format!("{name} has no slots")),
            Some((name, _)) if hosts.iter().any(|host| host.name == name) => {
                fault(format!("{name} stands in the file twice"));
            }
            Some((name, slots)) => {
                hosts.push(Host { name: name.to_owned(), slots: (0..slots).collect() });
            }
        }
    }
    if hosts.is_empty() && faults.is_empty() {
        faults.push(Error::new(Code::BadValue, format!("{path} names no host")));
    }
    Error::all(faults).map_or(Ok(hosts), Err)
}

/// The name and the number of slots in a line `host slots=N`.
fn entry(line: &str) -> Option<(&str, usize)> {
    let mut words = line.split_whitespace();
    let (name, slots) = (words.next()?, words.next()?);
    let slots = slots.strip_prefix("slots=")?.parse().ok()?;
    words.next().is_none().then_some((name, slots))
}

/// The hosts and slots that a filter names, in the order of the hostfile.
pub(super) fn include(hosts: &[Host], filter: &str) -> Result<Vec<Host>> {
    let named = Named::read(hosts, filter, "--include")?;
    left(hosts, |host, slot| named.has(host, slot), "--include")
}

/// The hosts and slots that a filter does not name.
pub(super) fn exclude(hosts: &[Host], filter: &str) -> Result<Vec<Host>> {
    let named = Named::read(hosts, filter, "--exclude")?;
    left(hosts, |host, slot| !named.has(host, slot), "--exclude")
}

/// The hosts of a filter, each with some of its slots, or with all.
struct Named<'a>(Vec<(&'a str, Option<Vec<usize>>)>);

impl<'a> Named<'a> {
    fn read(hosts: &[Host], filter: &'a str, option: &str) -> Result<Self> {
        let mut named = Vec::new();
        let mut faults = Vec::new();
        for part in filter.split('@') {
            match read_part(hosts, part.trim()) {
                Ok(part) => named.push(part),
                Err(e) => faults.push(e.option(option)),
            }
        }
        Error::all(faults).map_or(Ok(Self(named)), Err)
    }

    fn has(&self, host: &str, slot: usize) -> bool {
        let all_or_listed =
            |slots: &Option<Vec<usize>>| slots.as_ref().is_none_or(|slots| slots.contains(&slot));
        self.0.iter().any(|(name, slots)| *name == host && all_or_listed(slots))
    }
}

fn read_part<'a>(hosts: &[Host], part: &'a str) -> Result<(&'a str, Option<Vec<usize>>)> {
    let (name, slots) = match part.split_once(':') {
        Some((name, slots)) => (name, Some(slots)),
        None => (part, None),
    };
    let Some(host) = hosts.iter().find(|host| host.name == name) else {
        let e = Error::new(Code::BadValue, format!("there is no host `{name}`"));
        let near = nearest(name, hosts.iter().map(|host| host.name.as_str()));
        return Err(e.hint_if(near.map(|near| format!("did you mean `{near}`?"))));
    };
    let Some(slots) = slots else { return Ok((name, None)) };
    let slot = |text: &str| -> Result<usize> {
        let Ok(slot) = text.trim().parse() else {
            bail!(Code::BadValue, "`{text}` in `{part}` is no slot: NAME[:SLOT[,SLOT ...]]");
        };
        if !host.slots.contains(&slot) {
            bail!(Code::BadValue, "{name} has no slot {slot}: it has {:?}", host.slots);
        }
        Ok(slot)
    };
    Ok((name, Some(slots.split(',').map(slot).collect::<Result<_>>()?)))
}

fn left(hosts: &[Host], keep: impl Fn(&str, usize) -> bool, option: &str) -> Result<Vec<Host>> {
    let kept = hosts.iter().filter_map(|host| {
        let slots = host.slots.iter().copied().filter(|&slot| keep(&host.name, slot));
        let slots: Vec<usize> = slots.collect();
        (!slots.is_empty()).then(|| Host { name: host.name.clone(), slots })
    });
    let kept: Vec<Host> = kept.collect();
    if kept.is_empty() {
        return Err(Error::new(Code::BadValue, "no slot of any host is left").option(option));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        parse("a slots=2\nb slots=3 # the new one\n\n# c slots=8\n", "hosts").unwrap()
    }

    /// `a:0,1 b:2` and so on.
    fn text(hosts: &[Host]) -> String {
        let slots = |host: &Host| {
            host.slots.iter().map(|slot| slot.to_string()).collect::<Vec<_>>().join(",")
        };
        let hosts = hosts.iter().map(|host| format!("{}:{}", host.name, slots(host)));
        hosts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_hostfile_is_read() {
        assert_eq!(text(&hosts()), "a:0,1 b:0,1,2");
    }

    #[test]
    fn every_faulty_line_is_named() {
        let file = "a slots=2\na slots=1\nb\nc slots=x\nd slots=0\ne slots=1 f slots=2\n";
        let e = parse(file, "hosts").unwrap_err();
        assert_eq!(
            e.to_string(),
            "hosts:2: a stands in the file twice\n\
             hosts:3: expected `host slots=N`, found `b`\n\
             hosts:4: expected `host slots=N`, found `c slots=x`\n\
             hosts:5: d has no slots\n\
             hosts:6: expected `host slots=N`, found `e slots=1 f slots=2`"
        );
        assert_eq!(parse("# none\n", "hosts").unwrap_err().message(), "hosts names no host");
    }

    #[test]
    fn filters_are_deepspeeds() {
        let included = [
            ("a", "a:0,1"),
            ("b@a", "a:0,1 b:0,1,2"),
            ("a@b:0,2", "a:0,1 b:0,2"),
            ("b:2,0,2", "b:0,2"),
            ("b:0@b:1", "b:0,1"),
        ];
        for (filter, expected) in included {
            assert_eq!(text(&include(&hosts(), filter).unwrap()), expected, "{filter}");
        }
        let excluded = [
            ("a", "b:0,1,2"),
            ("b:0", "a:0,1 b:1,2"),
            ("a:1@b:1,2", "a:0 b:0"),
            ("b:0,1,2", "a:0,1"),
        ];
        for (filter, expected) in excluded {
            assert_eq!(text(&exclude(&hosts(), filter).unwrap()), expected, "{filter}");
        }
    }

    #[test]
    fn what_a_filter_names_must_exist() {
        let e = include(&hosts(), "worker@b:3@a:x").unwrap_err();
        assert_eq!(
            e.to_string(),
            "there is no host `worker`\n\
             b has no slot 3: it has [0, 1, 2]\n\
             `x` in `a:x` is no slot: NAME[:SLOT[,SLOT ...]]"
        );
        let e = exclude(&hosts(), "a@b").unwrap_err();
        assert_eq!(e.message(), "no slot of any host is left");
    }
}
