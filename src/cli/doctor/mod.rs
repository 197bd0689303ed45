//! `dsr doctor`: one screen with the facts that a report of a problem needs, and the remedy for each
//! fault.
//!
//! Each probe tries the real thing where that is cheap (a kernel on each GPU, a group over Gloo), as
//! versions alone have misled many. Nothing is changed, and no secret is shown.

mod finding;
mod gpu;
mod system;

use std::fmt::Write;

use serde_json::{Value, json};

use self::finding::{Finding, Severity};
use super::{args::DoctorArgs, console};

/// Looks at this machine and prints what it found; the result is the exit status.
pub(super) fn run(args: &DoctorArgs) -> u8 {
    let env = super::origin::environment(false);
    let mut findings = gpu::findings(&env);
    findings.extend(system::findings(&env));
    match args.json {
        true => console::out_json(format_args!("{:#}", as_json(&findings))),
        false => console::out(&text(&findings)),
    }
    // The status of every failure that has none of its own.
    u8::from(!is_usable(&findings))
}

fn is_usable(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != Severity::Problem)
}

/// A line for each finding, marked where something is wrong, with what to do below it.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { name, value, state, advice } in findings {
        let mark = match state {
            Severity::Fine => ' ',
            Severity::Warning => '!',
            Severity::Problem => 'x',
        };
        let _ = writeln!(text, "{mark} {name:width$}  {value}");
        if let Some(advice) = advice {
            let _ = writeln!(text, "  {:width$}  -> {advice}", "");
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let verdict = match (count(Severity::Problem), count(Severity::Warning)) {
        (0, 0) => "everything is as it should be".to_owned(),
        (0, warnings) => format!("dsr works; {warnings} marked ! could be better"),
        (problems, _) => format!("{problems} marked x must be mended"),
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

fn as_json(findings: &[Finding]) -> Value {
    json!({ "usable": is_usable(findings), "findings": findings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_marked_and_says_what_to_do() {
        let fine = Finding::fine("dsr", "0.1.0");
        let warning = Finding::warning("Landlock", "no", "a newer kernel has it");
        let problem = Finding::problem("Gloo", "fails", "set GLOO_SOCKET_IFNAME");
        assert_eq!(
            text(std::slice::from_ref(&fine)),
            "  dsr  0.1.0\n\neverything is as it should be\n"
        );
        let all = [fine, warning, problem];
        let expected = "  dsr       0.1.0\n\
                        ! Landlock  no\n\
                        \x20           -> a newer kernel has it\n\
                        x Gloo      fails\n\
                        \x20           -> set GLOO_SOCKET_IFNAME\n\n\
                        1 marked x must be mended\n";
        assert_eq!(text(&all), expected);
        assert!(is_usable(&all[..2]) && !is_usable(&all));
        assert_eq!(as_json(&all)["usable"], false);
        assert!(text(&all[..2]).ends_with("dsr works; 1 marked ! could be better\n"));
    }
}
