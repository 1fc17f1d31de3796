"""A real SLURM of several nodes on one machine, for tests: half a second to start, as root.

    python slurm/testcluster/cluster.py [--nodes 4] COMMAND...

runs COMMAND beside a fresh slurmctld, munged and one slurmd a node. Every node is a set of
namespaces with a host name, an address and a mount table of its own; all of it lives in one more
set that ends with COMMAND, or with this process, however that dies. The machine's own network never
sees it, and jobs reach nothing but the cluster. So clusters can run side by side, and know nothing
of each other: `make test-slurm` gives one to each worker of pytest-xdist.

Inside, `Cluster.here()` crashes nodes, starts them again, and cuts them off the network.
Debian: slurmctld slurmd slurm-client munge iproute2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.77.0"
CONTROL = f"{NETWORK}.254"
CPUS, GPUS, MEMORY_MB = 16, 8, 24_000
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "setpriv")
PACKAGES = "apt-get install slurmctld slurmd slurm-client munge iproute2"
FOLDER = "TESTCLUSTER_FOLDER"
FILES = Path("/run/testcluster")
PATIENCE = 300.0
"""Seconds. Who waits longer waits for what does not come, however busy the machine is."""

SLURM_CONF = """\
ClusterName=testcluster
SlurmctldHost={host}({control})
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for as long as credentials live: 120 s where nothing is said.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# What is said of the nodes below counts, not what slurmd finds.
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=2
# Preemption begins with the signal of sbatch --signal.
SlurmctldParameters=preempt_send_user_signal
KillWait=5
# On a busy machine processes take long to die, and slurmd to answer. SLURM would drain the node of
# the first after 60 s, for ever, and give up the node of the second.
UnkillableStepTimeout=300
SlurmdTimeout=30
SlurmctldTimeout=30
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
# It has no GPUs and never runs: SLURM can be asked about it, if a test puts it into a partition.
NodeName=bare NodeAddr={control} Port=16828 CPUs=1 State=DOWN
PartitionName=main Nodes=n[1-{count}] Default=YES State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=n[1-{count}] State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=paid Nodes=n[1-{count}] State=UP PriorityTier=10 PreemptMode=OFF AllowAccounts=lab
PartitionName=short Nodes=n[1-{count}] State=UP PriorityTier=10 PreemptMode=OFF MaxTime=10
"""

NODE = """\
NodeName=n{number} NodeAddr={network}.{number} Port=16827 CPUs={cpus} RealMemory={memory} \
Gres=gpu:{gpus} State=UNKNOWN"""

# Process 1 of a node. bash reaps what is orphaned.
INIT = """\
hostname "$1"
mount --bind "$2/etc/hosts" /etc/hosts
mount --bind "$2/etc/nsswitch.conf" /etc/nsswitch.conf
mkdir -p "$2/of-this-node"; mount -t tmpfs tmpfs "$2/of-this-node"
slurmd -f "$SLURM_CONF" -N "$1" || exit 1
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path
    count: int

    @staticmethod
    def here() -> Cluster:
        """The one this process runs beside."""
        folder = Path(os.environ[FOLDER])
        return Cluster(folder, int((folder / "count").read_text()))

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.count + 1)]

    @property
    def unshared(self) -> Path:
        """A folder that every node has for itself."""
        return self.folder / "of-this-node"

    def start(self, name: str) -> None:
        """Make a node's namespaces and start its slurmd."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "spool" / f"{name}.pid").unlink(missing_ok=True)
        space = f"node-{name}"
        if not (Path("/run/netns") / space).exists():
            run("ip", "netns", "add", space)
            run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", name, "master", "bridge", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "addr", "add", f"{NETWORK}.{name[1:]}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
        self.heal(name)
        with (self.folder / "log" / f"init-{name}.log").open("ab") as log:
            node = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    space,
                    "unshare",
                    "--mount",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "bash",
                    "-c",
                    INIT,
                    "init",
                    name,
                    self.folder,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / f"{name}.pid").write_text(str(node.pid))

    def crash(self, name: str) -> None:
        """The node and all its processes die at once, and nobody hears of it."""
        self.cut(name)
        os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)

    def cut(self, name: str) -> None:
        """Its processes live on, and reach nobody."""
        run("ip", "link", "set", name, "down")

    def heal(self, name: str) -> None:
        run("ip", "link", "set", name, "up")

    def states(self) -> dict[str, str]:
        words = output("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").split()
        return dict(zip(words[::2], words[1::2], strict=True))

    def wait_until_idle(self) -> None:
        """Wait for that, or end with what SLURM says of its nodes."""
        try:
            wait_until(lambda: set(self.states().values()) == {"idle"}, "all nodes idle")
        except TimeoutError as error:
            error.add_note(output("sinfo", "-N", "-p", "main", "-o", "%N %T %E"))
            error.add_note(output("squeue", "-o", "%i %T %N %r"))
            for log in sorted((self.folder / "log").glob("slurm*.log")):
                tail = log.read_text(errors="replace").splitlines()[-20:]
                error.add_note("\n".join([f"The end of {log.name}:", *tail]))
            raise

    def bring_up(self) -> None:
        for part in ("etc", "log", "state", "spool", "dev"):
            (self.folder / part).mkdir()
        (self.folder / "count").write_text(str(self.count))
        self._configure()
        self._start_munge()
        run("ip", "link", "set", "lo", "up")
        Path("/run/netns").mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "netns", "/run/netns")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "addr", "add", f"{CONTROL}/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        run("slurmctld", "-f", os.environ["SLURM_CONF"])
        wait_until(lambda: "UP" in output("scontrol", "ping"), "slurmctld")
        for name in self.names:
            self.start(name)
        self.wait_until_idle()

    def _configure(self) -> None:
        etc, host = self.folder / "etc", os.uname().nodename.partition(".")[0]
        nodes = "\n".join(
            NODE.format(number=n, network=NETWORK, cpus=CPUS, memory=MEMORY_MB, gpus=GPUS)
            for n in range(1, self.count + 1)
        )
        (etc / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host, control=CONTROL, folder=self.folder, nodes=nodes, count=self.count
            )
        )
        for gpu in range(GPUS):  # SLURM wants a device for each; null's will do
            os.mknod(self.folder / "dev" / f"nvidia{gpu}", 0o20666, os.makedev(1, 3))
        devices = f"{self.folder}/dev/nvidia[0-{GPUS - 1}]"
        (etc / "gres.conf").write_text(f"NodeName=n[1-{self.count}] Name=gpu File={devices}\n")
        # slurmd 22.05 looks for /sys/fs/cgroup, though nothing uses it, unless told where it is.
        (etc / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\nCgroupAutomount=no\n"
        )
        addresses = [f"{NETWORK}.{name[1:]} {name}" for name in self.names]
        hosts = ["127.0.0.1 localhost", f"{CONTROL} {host}", *addresses]
        (etc / "hosts").write_text("\n".join(hosts) + "\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        os.environ["SLURM_CONF"] = str(etc / "slurm.conf")

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        run("munged", "--force", f"--seed-file={munge / 'seed'}", *options)


def run(*command: object) -> None:
    """Run a program; standard input and output belong to the command beside the cluster."""
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def output(*command: str) -> str:
    """What it says; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_until(
    is_so: Callable[[], bool], what: str, seconds: float = PATIENCE, poll: float = 0.1
) -> None:
    """Wait for a condition, or raise TimeoutError. Give a longer `poll` if asking starts a
    process."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(poll)


def enter(arguments: list[str]) -> None:
    """Start this file again inside namespaces that end with it."""
    os.execvp(
        "setpriv",
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            sys.executable,
            __file__,
            "--inside",
            *arguments,
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command beside a SLURM of its own.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if os.geteuid() != 0 or missing or not options.command:
        lacks = f"{', '.join(missing)} missing: {PACKAGES}" if missing else "needs root, a command"
        print(f"testcluster: {lacks}", file=sys.stderr)
        return 2
    if not options.inside:
        enter(sys.argv[1:])
    # In memory, and seen from inside alone: it is gone when this process is killed, too.
    FILES.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "testcluster", FILES)
    os.environ[FOLDER] = str(FILES)
    Cluster(FILES, options.nodes).bring_up()
    return subprocess.run(options.command).returncode


if __name__ == "__main__":
    sys.exit(main())
