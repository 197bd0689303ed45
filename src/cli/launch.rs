//! `dsr launch`: the arguments, the signals and the screen of a launcher, and a rank's reports to it.

use std::{path::Path, sync::Arc, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{
    args::{self, LaunchArgs},
    console, help, host, report, signals,
    words::own_words,
};
use crate::{
    error::{Code, Error, Result},
    fs::{self, Guard, Place},
    launch::{
        self, COMMAND, ERROR_FILE, Launch, LaunchOptions, LaunchPlan, Report, Screen, Stopper,
    },
    recipe::{self, Failure, Recipe},
    script::written_meshes,
    tensor::{self, DeviceChoice, LocalRank},
};

/// Launches a run; the result is the exit status.
pub(super) fn run(mut args: LaunchArgs, console: &console::Console) -> Result<u8, Failure> {
    let Some(recipe) = args.run.recipe.clone() else {
        console::out(&args::help("launch"));
        return Ok(0);
    };
    let recipe = args.run.grants.open(&recipe)?;
    if args.run.help {
        help::print_recipe(&recipe)?;
        return Ok(0);
    }
    // Mistakes in its text and its parameters are shown once, not by each rank.
    recipe::describe(&recipe)?;
    // The question is asked here, as the ranks have no terminal.
    let fetch = args.run.grants.fetch();
    let mut host = host::of(&recipe, &args.run.given, fetch, console, |_| ())?;
    args.run.lock.settle(&mut host.workspace, &recipe)?;
    if args.run.explain_permissions {
        args.run.grants.explain(&mut host, &recipe)?;
        return Ok(0);
    }
    args.run.grants.settle(&mut host, &recipe)?;
    let rights = &host.workspace.rights;
    let guard: Arc<dyn Guard> = Arc::new(rights.permissions_with(rights.grants.clone()));
    let meshes = written_meshes(&host.workspace, &guard, &recipe)?;
    let launch = launch(&args, &recipe, guard)?;
    meshes.into_iter().try_for_each(|mesh| launch.plan.check_mesh(mesh))?;
    let (stopper, events) = launch::events();
    listen(stopper)?;
    let outcome = launch::run(&launch, events)?;
    console::err(&outcome.text);
    Ok(outcome.status)
}

fn launch(args: &LaunchArgs, recipe: &Recipe, guard: Arc<dyn Guard>) -> Result<Launch> {
    let read = |path: &std::path::PathBuf| -> Result<(String, String)> {
        Ok((fs::read_to_string(Place::unguarded(path))?, path.display().to_string()))
    };
    let choice = LaunchOptions {
        nproc_per_node: args.nproc_per_node,
        nnodes: args.nnodes,
        node_rank: args.node_rank,
        master_addr: args.master_addr.clone(),
        master_port: args.master_port,
        hostfile: args.hostfile.as_ref().map(read).transpose()?,
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        timeout: args.timeout,
    };
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let device = args.run.device.choice();
    // As many processes as there are devices for them, where nobody says how many.
    let gpus = match device {
        DeviceChoice::Cpu | DeviceChoice::CudaIndex(_) => 0,
        DeviceChoice::Best | DeviceChoice::Cuda => tensor::cuda_device_count(),
    };
    let plan = LaunchPlan::new(&choice, gpus, &hostname)?;
    if device != DeviceChoice::Best {
        // Said once, and not by each rank.
        device.resolve(LocalRank { rank: 0, count: plan.here.slots.len() })?;
    }
    let place = |e| Error::new(Code::Io, "cannot find this program").caused_by(e);
    let work_dir = std::env::current_dir()
        .map_err(|e| Error::new(Code::Io, "there is no working directory").caused_by(e))?;
    Ok(Launch {
        plan,
        program: std::env::current_exe().map_err(place)?,
        run_args: args.run.words().into_iter().chain(console::colour_argument()).collect(),
        // A recipe without a grant for it writes nowhere else either.
        root: Place::guarded(work_dir.join("runs"), guard),
        work_dir,
        name: args.run.name.clone().unwrap_or_else(|| Recipe::stem(&recipe.name)),
        is_trial: args.run.dry_run,
        command: own_words(),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        ssh: ssh(args),
        screen: Arc::new(Terminal),
    })
}

/// ssh, which must not ask for a password, or what the user has put in its place.
fn ssh(args: &LaunchArgs) -> Vec<String> {
    let given = args.ssh.as_deref().unwrap_or("ssh -o BatchMode=yes");
    let mut words: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    if let Some(port) = args.ssh_port {
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    words
}

/// Hands the signals that end a program on to the ranks.
fn listen(stopper: Stopper) -> Result<()> {
    let hangup = signals::hears_hangup().then_some(SIGHUP);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup))
        .map_err(|e| Error::new(Code::Internal, "cannot listen for signals").caused_by(e))?;
    thread::spawn(move || signals.forever().for_each(|_| stopper.stop()));
    Ok(())
}

/// This process's streams.
struct Terminal;

impl Screen for Terminal {
    fn out(&self, bytes: &[u8]) {
        console::out_bytes(bytes);
    }

    fn err(&self, bytes: &[u8]) {
        console::err_bytes(bytes);
    }
}

/// The command line to write down for this process: that of its launcher, where it has one.
pub(super) fn command() -> Vec<String> {
    let of_launcher = std::env::var(COMMAND).ok();
    let words = of_launcher.and_then(|words| serde_json::from_str(&words).ok());
    words.unwrap_or_else(own_words)
}

/// Leaves the error that ends this process where its launcher looks for it.
pub(super) fn tell_launcher(failure: &Failure) {
    let Some(path) = std::env::var_os(ERROR_FILE) else { return };
    let code = failure.code().number().to_owned();
    let report = Report { code, text: report::text(failure, false, false) };
    if let Err(e) = report.write(Path::new(&path)) {
        tracing::warn!("the launcher is not told of the error: {e}");
    }
}
