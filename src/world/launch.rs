//! Who started this process, and which of how many it is: by the environment that the usual launchers set.
//!
//! | launcher | rank, ranks | place on the machine | where to meet |
//! |---|---|---|---|
//! | torchrun, Kubeflow | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | `MASTER_ADDR`, `MASTER_PORT` |
//! | Kubeflow's trainer without torchrun | `PET_NODE_RANK`, `PET_NNODES` | | `PET_MASTER_ADDR`, `PET_MASTER_PORT` |
//! | srun | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` | `MASTER_ADDR`, or the first of `SLURM_STEP_NODELIST` |
//! | mpirun of Open MPI | `OMPI_COMM_WORLD_RANK`, `..._SIZE` | `..._LOCAL_RANK`, `..._LOCAL_SIZE` | `MASTER_ADDR`, or this machine |
//! | mpirun of MPICH, Intel | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` | the same |
//!
//! `MASTER_ADDR` and `MASTER_PORT` count with every launcher. What can go wrong: half of a pair is missing, or is no number.

use crate::error::{Error, Result};

/// Where PyTorch's launchers meet unless told otherwise; also ours.
const PORT: u16 = 29_500;
/// Slurm's jobs on one machine must not meet at one port.
const SLURM_PORTS: u64 = 10_000;

/// One process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number on this machine, from 0.
    pub local_rank: usize,
    /// How many there are on this machine.
    pub local_size: usize,
    /// Where the store is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The launcher keeps a store there.
    pub launcher_keeps_store: bool,
}

/// The environment, of this process or of a test.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Launch {
    /// Whether it is this process that opens the store at its place.
    pub(super) fn opens_store(&self) -> bool {
        self.rank == 0 && !self.launcher_keeps_store
    }

    /// What the environment says; none where it speaks of no launcher, or of one process alone.
    ///
    /// # Errors
    /// A variable is missing beside its companion, is no number, or they contradict each other.
    pub fn from_env(env: Env<'_>) -> Result<Option<Self>> {
        let launch =
            [by_torchrun, by_kubeflow, by_slurm, by_open_mpi, by_mpich].into_iter().find_map(|by| by(env).transpose());
        let Some(launch) = launch.transpose()?.filter(|launch| launch.size > 1) else { return Ok(None) };
        let (rank, size) = (launch.rank, launch.size);
        if rank >= size || launch.local_rank >= launch.local_size {
            return Err(Error::usage(format!(
                "this is rank {rank} of {size}, number {} of {} on this machine: ranks count from 0 to one below their number",
                launch.local_rank, launch.local_size
            ))
            .with_hint("look at RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE in the environment"));
        }
        Ok(Some(launch))
    }
}

fn by_torchrun(env: Env<'_>) -> Result<Option<Launch>> {
    let Some((rank, size)) = pair(env, "RANK", "WORLD_SIZE")? else { return Ok(None) };
    let local_rank = number(env, "LOCAL_RANK")?.unwrap_or(0);
    let local_size = number(env, "LOCAL_WORLD_SIZE")?.unwrap_or(local_rank + 1);
    let host = match env("MASTER_ADDR") {
        Some(host) => host,
        None if local_size == size => "127.0.0.1".into(),
        None => return Err(nowhere("RANK and WORLD_SIZE")),
    };
    Ok(Some(Launch {
        rank,
        size,
        local_rank,
        local_size,
        host,
        port: port(env, "MASTER_PORT")?,
        launcher_keeps_store: env("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
    }))
}

fn by_kubeflow(env: Env<'_>) -> Result<Option<Launch>> {
    let Some((rank, size)) = pair(env, "PET_NODE_RANK", "PET_NNODES")? else { return Ok(None) };
    if number(env, "PET_NPROC_PER_NODE").ok().flatten().is_some_and(|here| here > 1) {
        return Err(Error::usage("PET_NPROC_PER_NODE asks for several processes a pod, which torchrun would start")
            .with_hint("start `torchrun --no-python shoal pretrain ...` in the pod, or one process a pod"));
    }
    let host = env("PET_MASTER_ADDR").ok_or_else(|| nowhere("PET_NODE_RANK and PET_NNODES"))?;
    Ok(Some(alone_here(rank, size, host, port(env, "PET_MASTER_PORT")?)))
}

fn by_slurm(env: Env<'_>) -> Result<Option<Launch>> {
    // A batch script has SLURM_PROCID too; only in a step that srun started are there companions.
    if env("SLURM_STEP_NUM_TASKS").is_none() {
        return Ok(None);
    }
    let Some((rank, size)) = pair(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")? else { return Ok(None) };
    let nodes = env("SLURM_STEP_NODELIST").or_else(|| env("SLURM_JOB_NODELIST"));
    let host = env("MASTER_ADDR").or_else(|| nodes.as_deref().map(first_node));
    let local_rank = number(env, "SLURM_LOCALID")?.unwrap_or(0);
    let tasks = env("SLURM_STEP_TASKS_PER_NODE").or_else(|| env("SLURM_TASKS_PER_NODE"));
    let node = number(env, "SLURM_NODEID")?.unwrap_or(0);
    let local_size = tasks.as_deref().and_then(|tasks| tasks_on(tasks, node)).unwrap_or(local_rank + 1);
    let port = match env("MASTER_PORT") {
        Some(_) => port(env, "MASTER_PORT")?,
        None => {
            let job = number(env, "SLURM_JOB_ID")?.unwrap_or(0) as u64;
            PORT + u16::try_from(job % SLURM_PORTS).unwrap_or(0)
        }
    };
    let host = host.ok_or_else(|| nowhere("SLURM_PROCID"))?;
    Ok(Some(Launch { local_rank, local_size, ..alone_here(rank, size, host, port) }))
}

fn by_open_mpi(env: Env<'_>) -> Result<Option<Launch>> {
    by_mpi(
        env,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    )
}

fn by_mpich(env: Env<'_>) -> Result<Option<Launch>> {
    by_mpi(env, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"])
}

fn by_mpi(env: Env<'_>, [rank, size, local_rank, local_size]: [&str; 4]) -> Result<Option<Launch>> {
    let Some((number_of, count)) = pair(env, rank, size)? else { return Ok(None) };
    let here = number(env, local_rank)?.unwrap_or(0);
    let all_here = number(env, local_size)?.unwrap_or(here + 1);
    let host = match env("MASTER_ADDR") {
        Some(host) => host,
        None if all_here == count => "127.0.0.1".into(),
        None => return Err(nowhere(rank)),
    };
    let launch = alone_here(number_of, count, host, port(env, "MASTER_PORT")?);
    Ok(Some(Launch { local_rank: here, local_size: all_here, ..launch }))
}

fn alone_here(rank: usize, size: usize, host: String, port: u16) -> Launch {
    Launch { rank, size, local_rank: 0, local_size: 1, host, port, launcher_keeps_store: false }
}

fn nowhere(what: &str) -> Error {
    Error::usage(format!("{what} speak of several processes, but MASTER_ADDR does not say where they meet"))
        .with_hint("set MASTER_ADDR (the machine of rank 0) and MASTER_PORT for every process")
}

/// Both numbers, or neither.
fn pair(env: Env<'_>, first: &str, second: &str) -> Result<Option<(usize, usize)>> {
    let missing = |missing: &str, there: &str| {
        Error::usage(format!("{there} is in the environment, but {missing} is not"))
            .with_hint(format!("set {missing}, or unset {there} to train alone"))
    };
    match (number(env, first)?, number(env, second)?) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing(second, first)),
        (None, Some(_)) => Err(missing(first, second)),
    }
}

fn number(env: Env<'_>, name: &str) -> Result<Option<usize>> {
    let Some(text) = env(name) else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::usage(format!("{name}={text} in the environment is no number"))),
    }
}

fn port(env: Env<'_>, name: &str) -> Result<u16> {
    let Some(found) = number(env, name)? else { return Ok(PORT) };
    u16::try_from(found).map_err(|_| Error::usage(format!("{name}={found} in the environment is no port")))
}

/// The first host of `node[07-09,12],login1`.
fn first_node(list: &str) -> String {
    let end = list.find(',').unwrap_or(list.len());
    match list.split_once('[') {
        Some((name, numbers)) if name.len() < end => {
            let first: String = numbers.chars().take_while(char::is_ascii_digit).collect();
            format!("{name}{first}")
        }
        _ => list[..end].to_owned(),
    }
}

/// The tasks of a node by `2(x3),1`.
fn tasks_on(list: &str, node: usize) -> Option<usize> {
    let mut nodes = 0;
    for run in list.split(',') {
        let (tasks, times) = run
            .split_once("(x")
            .map_or((run, 1), |(tasks, times)| (tasks, times.trim_end_matches(')').parse().unwrap_or(1)));
        nodes += times;
        if node < nodes {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Launch::from_env(&find)
    }

    #[test]
    fn every_launcher_is_understood() -> Result<()> {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "4711"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ];
        let expected = Launch {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            host: "node7".into(),
            port: 4711,
            launcher_keeps_store: true,
        };
        assert_eq!(launch(&torchrun)?, Some(expected));

        let slurm = [
            ("SLURM_PROCID", "4"),
            ("SLURM_STEP_NUM_TASKS", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "3,2"),
            ("SLURM_STEP_NODELIST", "gpu[07-08],big1"),
            ("SLURM_JOB_ID", "120034"),
        ];
        let found = launch(&slurm)?.expect("several");
        assert_eq!((found.rank, found.size, found.local_rank, found.local_size), (4, 5, 1, 2));
        assert_eq!((found.host.as_str(), found.port), ("gpu07", 29_534));

        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let found = launch(&open_mpi)?.expect("several");
        assert_eq!((found.rank, found.local_rank, found.host.as_str(), found.port), (1, 1, "127.0.0.1", PORT));

        let pod = [
            ("PET_NODE_RANK", "1"),
            ("PET_NNODES", "3"),
            ("PET_MASTER_ADDR", "job-node-0-0"),
            ("PET_NPROC_PER_NODE", "1"),
        ];
        let found = launch(&pod)?.expect("several");
        assert_eq!((found.rank, found.size, found.local_size, found.host.as_str()), (1, 3, 1, "job-node-0-0"));
        Ok(())
    }

    #[test]
    fn one_process_is_alone_whoever_started_it() -> Result<()> {
        assert_eq!(launch(&[])?, None);
        assert_eq!(launch(&[("RANK", "0"), ("WORLD_SIZE", "1")])?, None);
        // What a batch script sees, in which nobody has started steps.
        assert_eq!(launch(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "7")])?, None);
        Ok(())
    }

    #[test]
    fn half_an_environment_is_refused_by_the_name_of_the_other_half() {
        let refused = |variables: &[(&str, &str)]| launch(variables).expect_err("refused").to_string();
        assert!(refused(&[("RANK", "1")]).contains("WORLD_SIZE is not"));
        assert!(refused(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK=x"));
        assert!(refused(&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")]).contains("rank 2 of 2"));
        assert!(refused(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1")]).contains("MASTER_ADDR"));
        let busy = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "70000")];
        assert!(refused(&busy).contains("no port"));
        assert!(refused(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "9")]).contains("MASTER_ADDR"));
    }

    #[test]
    fn lists_of_slurm_are_read() {
        for (list, first) in
            [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003,007-9]", "gpu003"), ("a,b[1-2]", "a"), ("c[12]", "c12")]
        {
            assert_eq!(first_node(list), first);
        }
        assert_eq!((tasks_on("2(x3),1", 2), tasks_on("2(x3),1", 3), tasks_on("2", 1)), (Some(2), Some(1), None));
    }
}
