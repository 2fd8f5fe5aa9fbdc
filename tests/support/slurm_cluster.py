"""A private Slurm of two nodes on this machine: its own munge, controller and daemons, on loopback only, as root."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from support.two_ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES = ("node1", "node2")
GPUS = 2
"""GPUs of a node: devices that behave as /dev/null, so that jobs may ask for GPUs."""

GRACE, KILL_WAIT = 40, 40
"""Seconds from the signal of a preemption to SIGTERM, and from SIGTERM to SIGKILL."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

# FirstJobId: Lightning derives the port at which ranks meet from a job's id, and another private Slurm may run here.
# cred_expire: a job that is requeued waits that long before it starts again, by default 120 s. config_overrides: the
# CPUs of a node are those of this file.
SETTINGS = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimitsExcept=ALL
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
KillWait={kill_wait}
KillOnBadExit=1
MinJobAge=86400
ReturnToService=2
SlurmdTimeout=120
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=node1 Gres=gpu:{gpus} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=node2 Gres=gpu:{gpus} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=node[1-2] MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""

HOSTS = 'mount --make-rprivate / && mount --bind "$1" /etc/hosts && exec slurmd -N "$2" -f "$3"'
"""Node names have to resolve in jobs: each daemon, and what it starts, sees an /etc/hosts of its own."""


def find_obstacle() -> str:
    """Return why no private Slurm can run here; empty if one can."""
    sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=sbin) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (.ci/install-slurm)"
    return "" if os.geteuid() == 0 else "only root can start a private Slurm"


class Cluster:
    """The daemons below a folder; `start` before the first job, `stop` after the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, folder / "slurm.conf"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.settings),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Write the settings, start the daemons, and wait until both nodes are idle."""
        munge = self.folder / "munge"
        munge.mkdir(parents=True)
        munge.chmod(0o711)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        (self.folder / "state").mkdir()
        host, ports = socket.gethostname().partition(".")[0], [free_port() for _ in range(3)]
        settings = SETTINGS.format(
            host=host,
            ports=ports,
            first=random.randint(1, 9000),
            folder=self.folder,
            gpus=GPUS,
            grace=GRACE,
            kill_wait=KILL_WAIT,
        )
        self.settings.write_text(settings)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for i in range(GPUS):
            os.mknod(self.folder / f"gpu{i}", 0o666 | 0o020000, os.makedev(1, 3))
        devices = f"NodeName=node[1-2] Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(devices)
        hosts = self.folder / "hosts"
        hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in names.items()]
        self.run("munged", "--force", "--num-threads=2", *options)  # --force: the folder lies in one that all may write
        self.run("slurmctld")
        for node in NODES:
            self.run("unshare", "-m", "bash", "-c", HOSTS, "slurmd", str(hosts), node, str(self.settings))
        self.wait(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle").count("\n") == len(NODES), 60)

    def stop(self) -> None:
        """Cancel the jobs, and end the daemons that `start` started, by their pid files."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        deadline = time.monotonic() + 30
        while self.list_jobs() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in (*(f"slurmd.{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
            file = self.folder / name
            if file.exists():
                number = int(file.read_text())
                os.kill(number, signal.SIGTERM)
                while Path(f"/proc/{number}").exists() and time.monotonic() < deadline + 30:
                    time.sleep(0.05)

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command in the cluster's environment, and return what it prints."""
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120)
        if done.returncode:
            self.fail(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def list_jobs(self) -> list[str]:
        """Return the ids of jobs that have not ended."""
        done = subprocess.run(["squeue", "-h", "-o", "%i"], env=self.environment, capture_output=True, text=True)
        return done.stdout.split()

    def describe(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job."""
        return dict(re.findall(r"\b([A-Z]\w+)=(\S*)", self.run("scontrol", "show", "job", job)))

    def wait_for_end(self, job: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended for good, and return what the controller knows of it."""
        self.wait(lambda: self.describe(job)["JobState"] in ENDED and job not in self.list_jobs(), seconds, job)
        return self.describe(job)

    def wait_for_text(self, log: Path, text: str, seconds: float, begin: int = 0) -> None:
        """Wait until a job has printed a text, after the first `begin` characters."""
        self.wait(lambda: log.exists() and text in log.read_text(errors="replace")[begin:], seconds, text, log)

    def wait(
        self, holds: Callable[[], bool], seconds: float, what: str = "idle nodes", log: Path | None = None
    ) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                said = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
                self.fail(f"waited {seconds} s for {what}\n{said}")
            time.sleep(0.2)

    def fail(self, what: str) -> NoReturn:
        """Raise an error with the ends of the daemons' logs."""
        logs = [f"{file}:\n{file.read_text(errors='replace')[-1500:]}" for file in sorted(self.folder.glob("*.log"))]
        raise AssertionError("\n".join([what, *logs]))
