//! The user's grants to a recipe: the flags, the question on a terminal, the list without a run.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    ask::{Answer, ask, ask_to_run},
    console::{self, Console},
    origin::FetchArgs,
};
use crate::{
    error::{Code, Error},
    foreign::Foreign,
    fs::Place,
    permission::{
        Capability, Grants, Permissions, Scope, TrustFile,
        sandbox::{self, Needs, Sandbox},
    },
    recipe::{
        Failure, Recipe,
        address::has_files,
        caches,
        requests::{self, Requests},
        rights::Rights,
    },
    script::Host,
    units::Bytes,
};

/// What the recipe may do.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What the recipe may do")]
pub(super) struct GrantArgs {
    /// Let the recipe read these paths, or all.
    #[arg(long, value_name = "PATHS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    allow_read: Option<Vec<String>>,

    /// Let the recipe write below these paths, or everywhere.
    #[arg(long, value_name = "PATHS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    allow_write: Option<Vec<String>>,

    /// Let the recipe connect to these hosts, such as huggingface.co, or to all.
    #[arg(long, value_name = "HOSTS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    allow_net: Option<Vec<String>>,

    /// Refuse these paths, or all; denying wins over allowing.
    #[arg(long, value_name = "PATHS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    deny_read: Option<Vec<String>>,

    /// Refuse to write below these paths, or everywhere.
    #[arg(long, value_name = "PATHS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    deny_write: Option<Vec<String>>,

    /// Refuse these hosts, or the network.
    #[arg(long, value_name = "HOSTS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    deny_net: Option<Vec<String>>,

    /// Allow everything except credentials and files of the kernel.
    #[arg(short = 'A', long)]
    allow_all: bool,

    /// Never ask: refuse everything that no flag allows.
    #[arg(long)]
    no_prompt: bool,

    /// Append each access, allowed or refused, to this file as a line of JSON.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,

    /// Enforce the allowed paths in the kernel too, where it has Landlock [default: landlock].
    #[arg(long, value_enum, value_name = "KIND")]
    sandbox: Option<SandboxKind>,

    /// Stop after this many hours, as Ctrl-C would.
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    max_hours: Option<f64>,

    /// Stop a recipe that prints more than this, such as 10MB [default: 1GB].
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Bytes>,

    /// Print the recipe's text as it is, with what moves the cursor or sets the title of the terminal.
    #[arg(long)]
    raw: bool,

    /// The hash of the texts that the launcher trusts.
    #[arg(long, hide = true, value_name = "SHA256")]
    trusted: Option<String>,

    #[command(flatten)]
    fetch: FetchArgs,
}

/// The grants of `DSR_ALLOW_READ`, `_WRITE`, `_NET` and `_IMPORT`, for jobs that nobody attends: lists as
/// those of the flags. An empty one gives nothing.
fn of_environment() -> Grants {
    let mut grants = Grants::default();
    for capability in Capability::ALL {
        let name = format!("DSR_ALLOW_{}", capability.name().to_uppercase());
        let value = std::env::var(name).unwrap_or_default();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            grants.add(capability, item.to_owned());
        }
    }
    grants
}

/// Bytes that a recipe prints at most, where the user does not say it.
const MOST_OUTPUT: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SandboxKind {
    Landlock,
    Off,
}

fn hours(text: &str) -> Result<f64, String> {
    let hours = text.parse::<f64>().ok().filter(|h| *h > 0.0 && *h <= 1e6);
    hours.ok_or_else(|| "a number above 0, such as 1.5".to_owned())
}

impl GrantArgs {
    /// The grants and denials.
    pub(super) fn grants(&self) -> Grants {
        let scope = |flag: &Option<Vec<String>>| flag.clone().map_or(Scope::None, Scope::of_flag);
        let fetch = self.fetch.grants();
        let allowed = |flag| if self.allow_all { Scope::All } else { scope(flag) };
        Grants {
            read: allowed(&self.allow_read),
            write: allowed(&self.allow_write),
            net: allowed(&self.allow_net),
            deny_read: scope(&self.deny_read),
            deny_write: scope(&self.deny_write),
            deny_net: scope(&self.deny_net),
            import: if self.allow_all { Scope::All } else { fetch.import },
            deny_import: fetch.deny_import,
        }
        .and(&of_environment())
    }

    /// Where code may come from.
    pub(super) fn fetch(&self) -> &FetchArgs {
        &self.fetch
    }

    /// The recipe that `spec` names; what is denied holds for it too.
    pub(super) fn open(&self, spec: &Path) -> crate::error::Result<Recipe> {
        self.fetch.open_with(spec, self.grants())
    }

    /// The arguments that say the same, for a rank.
    pub(super) fn words(&self) -> Vec<String> {
        let lists = [
            ("--allow-read", &self.allow_read),
            ("--allow-write", &self.allow_write),
            ("--allow-net", &self.allow_net),
            ("--deny-read", &self.deny_read),
            ("--deny-write", &self.deny_write),
            ("--deny-net", &self.deny_net),
        ];
        let mut words = Vec::new();
        for (flag, list) in lists.into_iter().chain(self.fetch.lists()) {
            if let Some(list) = list {
                words.push(match Scope::of_flag(list.clone()) {
                    Scope::These(items) => format!("{flag}={}", items.join(",")),
                    _ => flag.to_owned(),
                });
            }
        }
        words.extend(self.fetch.words());
        words.extend(self.allow_all.then(|| "--allow-all".to_owned()));
        words.extend(self.no_prompt.then(|| "--no-prompt".to_owned()));
        words.extend(self.audit.as_ref().map(|file| format!("--audit={}", file.display())));
        words.extend((self.sandbox == Some(SandboxKind::Off)).then(|| "--sandbox=off".to_owned()));
        words.extend(self.max_hours.map(|hours| format!("--max-hours={hours}")));
        words.extend(self.raw.then(|| "--raw".to_owned()));
        words.extend(self.trusted.as_ref().map(|hash| format!("--trusted={hash}")));
        let kilobytes = self.max_output.map(|bytes| bytes.0 as f64 / 1e3);
        words.extend(kilobytes.map(|size| format!("--max-output={size}kB")));
        words
    }

    /// The console that prints the recipe's text.
    pub(super) fn output(&self, console: &Console) -> Console {
        console.clone().raw(self.raw)
    }

    /// Notes that the user's trust, and so each grant, is for these texts. What else the recipe comes to
    /// import is asked for again.
    fn trust_texts(&mut self, rights: &mut Rights, requests: &Requests, may_ask: bool) {
        self.trusted = Some(requests.hash());
        rights.trust(requests.texts.clone());
        rights.ask_to_run = may_ask.then(|| Box::new(ask_to_run) as _);
    }

    /// Adds what was given by an answer.
    fn add(&mut self, grants: &Grants) {
        let lists = [
            (&mut self.allow_read, &grants.read),
            (&mut self.allow_write, &grants.write),
            (&mut self.allow_net, &grants.net),
        ];
        for (list, scope) in lists {
            if !scope.items().is_empty() {
                list.get_or_insert_default().extend(scope.items().iter().cloned());
            }
        }
        self.fetch.allow(&grants.import);
    }

    /// Gives `host` what the flags say. True where the user may be asked for more.
    pub(super) fn give(&self, host: &mut Host) -> bool {
        host.workspace.rights.grants = self.grants();
        host.workspace.rights.audit = self.audit.clone();
        host.output.limit = self.max_output.map_or(MOST_OUTPUT, |bytes| bytes.0);
        !self.no_prompt && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Gives `host` what the flags say, what the trust file says of this recipe, and, on a terminal,
    /// what the user answers.
    pub(super) fn settle(&mut self, host: &mut Host, recipe: &Recipe) -> Result<(), Failure> {
        let may_ask = self.give(host);
        let trust = trust_file(&host.workspace.rights);
        let mut given = Grants::default();
        let (mut is_looked_up, mut is_own) = (false, false);
        let mut asked = Vec::new();
        // Imports from elsewhere can be read once that is granted, and may ask for more.
        loop {
            let requests = requests::read(&host.workspace, recipe)?;
            let permissions =
                host.workspace.rights.permissions_with(host.workspace.rights.grants.clone());
            let missing: Vec<_> = requests.missing(&permissions).cloned().collect();
            if self.trusted.as_ref().is_some_and(|hash| *hash == requests.hash()) {
                self.trust_texts(&mut host.workspace.rights, &requests, may_ask);
            }
            if missing.is_empty() {
                return Ok(());
            }
            let hash = requests.hash();
            if let Some(trusted) = &self.trusted
                && *trusted != hash
            {
                let message = format!("{} is not the text that is trusted", recipe.name);
                return Err(Error::new(Code::Permission, message).into());
            }
            if !is_looked_up {
                is_looked_up = true;
                if let Some(file) = &trust
                    && let Some(trusted) = file.grants(&hash)?
                {
                    self.add(&trusted);
                    let rights = &mut host.workspace.rights;
                    rights.grants = self.grants();
                    self.trust_texts(rights, &requests, may_ask);
                    given = trusted;
                    continue;
                }
                if let Some(file) = &trust
                    && has_files(&recipe.name)
                    && file.trusts_directory(&recipe.base_dir)?
                {
                    is_own = true;
                }
            }
            // What is still missing after it was given is denied.
            let is_given = is_own && missing != asked;
            if !is_given && !may_ask {
                // Better now than when the training is done.
                return requests.check_given(&host.workspace);
            }
            let wanted = requests::grants(&host.workspace.rights.work_dir, &missing);
            if !is_given {
                let answer = ask(recipe, &hash, &missing, &requests, trust.is_some());
                if answer == Answer::No {
                    return Err(refused(recipe, &wanted).into());
                }
                for capability in Capability::ALL {
                    let items = wanted.allowed(capability).items().iter();
                    items.for_each(|item| given.add(capability, item.clone()));
                }
                if let (Answer::Trust, Some(file)) = (&answer, &trust) {
                    file.trust(&hash, &recipe.name, &given)?;
                }
            }
            self.add(&wanted);
            host.workspace.rights.grants = self.grants();
            asked.clone_from(&missing);
            if !missing.iter().any(|request| request.capability == Capability::Import) {
                return Ok(());
            }
        }
    }

    /// Prints what the recipe will ask for, as far as its text says.
    pub(super) fn explain(&self, host: &mut Host, recipe: &Recipe) -> Result<(), Failure> {
        host.workspace.rights.grants = self.grants();
        let requests = requests::read(&host.workspace, recipe)?;
        let permissions = host.workspace.rights.permissions_with(self.grants());
        let mut text = format!("{} (sha256 {})\n", recipe.name, requests.hash());
        for request in &requests.list {
            let verdict = match permissions.allows(request.access()) {
                true => "allowed",
                false if permissions.is_never(request.access()) => "never given",
                false => "needs a grant",
            };
            let (name, what) = (request.capability.name(), Foreign(&request.what));
            let _ =
                writeln!(text, "  {name:6}  {what}  ({verdict})  {}", Foreign(&request.wanted_by));
        }
        for fault in requests.faults() {
            let _ = writeln!(text, "  not read, as {}", Foreign(fault.message()));
        }
        if requests.list.is_empty() {
            text.push_str("  nothing that its text says\n");
        }
        console::out(&text);
        Ok(())
    }

    /// Stops the run when its time is up.
    pub(super) fn limit_time(&self, host: &Host, console: &Console) {
        let Some(hours) = self.max_hours else { return };
        let (interrupt, console) = (host.interrupt.clone(), console.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs_f64(hours * 3600.0));
            console.note(&format!("the time is up: --max-hours={hours}"));
            interrupt.request();
        });
    }

    /// Locks the process into its paths.
    pub(super) fn lock(&self, host: &Host) -> Result<(), Failure> {
        if self.sandbox == Some(SandboxKind::Off) {
            return Ok(());
        }
        let permissions: Permissions =
            host.workspace.rights.permissions_with(host.workspace.rights.grants.clone());
        match sandbox::apply(&permissions, &needs(host))? {
            Sandbox::On => tracing::debug!("Landlock keeps this process to its paths"),
            Sandbox::Unavailable => {
                tracing::debug!("this kernel has no Landlock: paths are checked by dsr alone");
            }
        }
        Ok(())
    }
}

/// The paths that the program needs beside the recipe's grants.
fn needs(host: &Host) -> Needs {
    let dirs = |name: &str| {
        let value = std::env::var_os(name).unwrap_or_default();
        std::env::split_paths(&value).filter(|p| !p.as_os_str().is_empty()).collect::<Vec<_>>()
    };
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut read = dirs("LD_LIBRARY_PATH");
    for name in ["HF_HOME", "HF_TOKEN_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CUDA_HOME"] {
        read.extend(dirs(name));
    }
    read.extend(home.iter().map(|home| home.join(".cache/huggingface")));
    let mut write = vec![std::env::temp_dir()];
    write.extend(home.iter().map(|home| home.join(".nv")).filter(|dir| dir.exists()));
    write.extend(dirs("CUDA_CACHE_PATH"));
    let env = &host.workspace.rights.env;
    let kept = [caches::tokens(env), caches::streams(env)].into_iter().flatten();
    // A rule holds for a directory that is there.
    write.extend(kept.filter(|dir| Place::unguarded(dir).create_dir_all().is_ok()));
    write.extend(
        dirs(crate::launch::ERROR_FILE).iter().filter_map(|file| file.parent().map(Path::to_owned)),
    );
    write.extend(host.workspace.rights.audit.clone());
    // A file that appears whole is written beside its place.
    let profile = host.run.profile.borrow();
    write.extend(
        profile
            .iter()
            .map(|file| host.workspace.rights.work_dir.join(file))
            .filter_map(|file| file.parent().map(Path::to_owned)),
    );
    Needs { read, write }
}

fn refused(recipe: &Recipe, wanted: &Grants) -> Error {
    let flags = Capability::ALL.map(|capability| (capability, wanted.allowed(capability).items()));
    let flags = flags.iter().filter(|(_, items)| !items.is_empty());
    let flags =
        flags.map(|(c, items)| format!("--allow-{}={}", c.name(), Foreign(&items.join(","))));
    let message = format!("{} was not given what it asks for", Foreign(&recipe.name));
    Error::new(Code::Permission, message)
        .hint(format!("it would run with {}", flags.collect::<Vec<_>>().join(" ")))
}

/// The trust file, where there is a home for it.
pub(super) fn trust_file(rights: &Rights) -> Option<TrustFile> {
    let path = |name: &str| (rights.env)(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let config = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")))?;
    Some(TrustFile::at(config.join("dsr/trust.toml")))
}
