//! Two machines: network namespaces with addresses of their own, joined by a veth pair, and an ssh
//! that leads from one into the other. Skipped, with the reason, where namespaces are not allowed.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use super::*;

/// The namespaces `<name>-a` and `<name>-b`, removed in the end.
struct Machines {
    name: String,
    /// The third number of their addresses.
    net: u8,
}

impl Machines {
    /// `None` where the system does not allow it; the reason is printed.
    fn start(net: u8) -> Option<Self> {
        let machines = Self { name: format!("dsr{}-{net}", std::process::id()), net };
        let [a, b] = [machines.space('a'), machines.space('b')];
        // The names of interfaces are short.
        let (link_a, link_b) = (format!("dsrA{net}"), format!("dsrB{net}"));
        let steps = [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("-n {a} link add name {link_a} type veth peer name {link_b} netns {b}"),
            format!("-n {a} addr add {}/24 dev {link_a}", machines.address(1)),
            format!("-n {b} addr add {}/24 dev {link_b}", machines.address(2)),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set lo up"),
            format!("-n {a} link set {link_a} up"),
            format!("-n {b} link set {link_b} up"),
        ];
        for step in &steps {
            if let Err(reason) = ip(step) {
                println!("skipped: `ip {step}`: {reason}");
                return None;
            }
        }
        Some(machines)
    }

    fn space(&self, machine: char) -> String {
        format!("{}-{machine}", self.name)
    }

    fn address(&self, number: u8) -> String {
        format!("10.213.{}.{number}", self.net)
    }

    fn set_link(&self, state: &str) {
        ip(&format!("-n {} link set dsrA{} {state}", self.space('a'), self.net)).unwrap();
    }

    /// A folder with a recipe, a hostfile for both machines and an ssh that leads to the second.
    fn folder(&self, recipe: &str) -> Folder {
        let folder = Folder::new(recipe);
        let hosts = format!("{} slots=1\n{} slots=1\n", self.address(1), self.address(2));
        fs::write(folder.path().join("hosts"), hosts).unwrap();
        let ssh = folder.path().join("ssh");
        let (address, space) = (self.address(2), self.space('b'));
        let lines = format!(
            "#!/bin/sh\n[ \"$1\" = {address} ] || exit 255\nexec ip netns exec {space} sh -c \"$2\"\n"
        );
        fs::write(&ssh, lines).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    /// `dsr launch` on the first machine.
    fn launch(&self, folder: &Folder, args: &[&str]) -> Launched {
        let ssh = folder.path().join("ssh").display().to_string();
        let on_both = ["-H", "hosts", "--ssh", &ssh];
        let command = launch(folder.path(), &[&on_both, args].concat());
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.space('a')]).arg(command.get_program());
        inside.args(command.get_args()).current_dir(folder.path());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Launched::start(inside)
    }

    /// The processes on a machine.
    fn processes(&self, machine: char) -> Vec<u32> {
        let pids = ip(&format!("netns pids {}", self.space(machine))).unwrap();
        pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in ['a', 'b'] {
            // It may never have been made.
            let _ = ip(&format!("netns del {}", self.space(machine)));
        }
    }
}

/// Runs `ip`; gives what it prints, or what it says against it.
fn ip(args: &str) -> Result<String, String> {
    let output = Command::new("ip").args(args.split(' ')).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).trim().to_owned()),
    }
}

#[test]
fn two_machines_train_and_agree() {
    let Some(machines) = Machines::start(1) else { return };
    let folder = machines.folder(TRAIN);
    let output = machines.launch(&folder, &["r.rhai"]).end();
    assert_eq!(out(&output), "trained\n");
    // The same as two ranks on one machine: a sum of two numbers has one order.
    assert_eq!(losses(&folder.run_dir()), undisturbed());
    let log = |name: &str| fs::read_to_string(folder.run_dir().join(name)).unwrap();
    assert!(log("rank-0.log").contains("[rank 0] step 30/30"));
    assert_eq!(log("rank-1.log"), "[rank 1] trained\n");
}

#[test]
fn a_rank_of_another_machine_is_named_with_it() {
    let Some(machines) = Machines::start(2) else { return };
    let at_step = "if second && engine.global_step == 3 { throw \"rank 1 is unwell\"; }";
    let folder = machines.folder(&LOOP.replace("AT_STEP", at_step));
    let output = machines.launch(&folder, &["r.rhai"]).end();
    assert_eq!(output.status.code(), Some(1));
    let sentence = format!("rank 1 on {} failed with exit status 1:\n", machines.address(2));
    let last = last_lines(&output, &sentence);
    assert!(last.contains("error[E111]: rank 1 is unwell\n   ,-[ r.rhai:8:44 ]"), "{last}");
}

#[test]
fn a_machine_that_cannot_be_entered_is_named() {
    let Some(machines) = Machines::start(3) else { return };
    let folder = machines.folder(TRAIN);
    let hosts = format!("{} slots=1\n10.213.3.9 slots=1\n", machines.address(1));
    fs::write(folder.path().join("hosts"), hosts).unwrap();
    let output = machines.launch(&folder, &["r.rhai"]).end();
    assert_eq!(output.status.code(), Some(7));
    let last = last_lines(&output, "10.213.3.9 could not be started");
    assert!(last.contains("exit status: 255"), "{last}");
}

#[test]
fn a_link_that_is_cut_ends_both_machines_and_leaves_a_whole_checkpoint() {
    let Some(machines) = Machines::start(4) else { return };
    let folder = machines.folder(TRAIN);
    let args = ["--timeout", "8", "r.rhai", "-p", "pause=0.05"];
    let launched = machines.launch(&folder, &args);
    wait_for_steps(&folder.run_dir(), 7);
    machines.set_link("down");
    let output = launched.end();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let last = last_lines(&output, &machines.address(2));
    assert!(last.contains("has shown no sign of life for "), "{last}");
    wait_for("the end of the second machine", || machines.processes('b').is_empty().then_some(()));
    machines.set_link("up");
    out(&machines.launch(&folder, &[&args[..], &["--resume", "auto"]].concat()).end());
    assert_eq!(losses(&folder.run_dir()), undisturbed());
}
