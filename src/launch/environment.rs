//! The environment of a rank: torchrun's variables, and dsr's.

use super::{COMMAND, ERROR_FILE, LAUNCHER, Launch};

/// Which rank it is, and where the ranks meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankPlace {
    pub(super) rank: usize,
    pub(super) local_rank: usize,
    pub(super) world_size: usize,
    pub(super) port: u16,
}

/// The variables that a rank gets beside those of its launcher.
pub(super) fn of_rank(
    launch: &Launch,
    place: RankPlace,
    error_file: String,
) -> Vec<(&'static str, String)> {
    let plan = &launch.plan;
    let here = plan.here.slots.len();
    let mut variables = vec![
        ("RANK", place.rank.to_string()),
        ("WORLD_SIZE", place.world_size.to_string()),
        ("LOCAL_RANK", place.local_rank.to_string()),
        ("LOCAL_WORLD_SIZE", here.to_string()),
        ("GROUP_RANK", plan.node_rank.to_string()),
        ("NODE_RANK", plan.node_rank.to_string()),
        ("GROUP_WORLD_SIZE", plan.nnodes.to_string()),
        ("MASTER_ADDR", plan.master.0.clone()),
        ("MASTER_PORT", place.port.to_string()),
        // The store is this launcher's, or the first machine's.
        ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
        ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
        ("TORCHELASTIC_MAX_RESTARTS", "0".to_owned()),
        (ERROR_FILE, error_file),
        (LAUNCHER, std::process::id().to_string()),
        ("DSR_TIMEOUT", plan.timeout.as_secs().to_string()),
        // A list of strings always has a JSON form.
        (COMMAND, serde_json::to_string(&launch.command).unwrap_or_default()),
    ];
    let set = |wanted: &str| launch.environment.iter().find(|(name, _)| name == wanted);
    // torchrun's default: several processes would otherwise each start a thread a core.
    if here > 1 && set("OMP_NUM_THREADS").is_none() {
        variables.push(("OMP_NUM_THREADS", "1".to_owned()));
    }
    if let Some(devices) = &plan.devices {
        let visible = set("CUDA_VISIBLE_DEVICES").map(|(_, value)| value.as_str());
        variables.push(("CUDA_VISIBLE_DEVICES", visible_devices(devices, visible)));
    }
    variables
}

/// The GPUs of these numbers among those that are visible: a scheduler may have chosen some.
fn visible_devices(devices: &[usize], visible: Option<&str>) -> String {
    let visible: Vec<&str> = visible.map_or_else(Vec::new, |ids| ids.split(',').collect());
    let names = devices.iter().map(|&device| match visible.get(device) {
        Some(name) => (*name).to_owned(),
        None => device.to_string(),
    });
    names.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_count_among_the_gpus_that_a_scheduler_left() {
        assert_eq!(visible_devices(&[0, 2], None), "0,2");
        assert_eq!(visible_devices(&[0, 2], Some("4,5,GPU-7")), "4,GPU-7");
    }
}
