"""Strike a study with faults at random moments; the study must end as if no fault had struck."""

import errno
import random
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exactness import find_faults, results_of
from processes import Process, family, kill_all, signal_all, trial_processes, wait_until_gone
from room import NAME, Session, Size, begin, lines_of, phase_of, record_of, wait_for_trial
from services import free_port, node, server


@dataclass(frozen=True)
class Reference:
    """The same study without a fault, run one trial at a time."""

    size: Size
    results: list[object]
    lines: int
    """Number of lines in its journal at the end."""


@dataclass(frozen=True)
class Outcome:
    """The strikes on a study, and what is wrong with the study at its end."""

    strikes: list[str]
    """Phase of the study at each strike, from `phase_of`."""
    faults: list[str]
    """One sentence per fault; empty if the study is exact."""


Fault = Callable[[Path, random.Random, Reference], Outcome]


def run_reference(room: Path, size: Size) -> Reference:
    """Run the study without a fault, and return its results."""
    session = begin(room, size, 1)
    session.wait()
    reference = Reference(size, results_of(record_of(room)), lines_of(room))
    faults = finish(room, session, reference)
    assert not faults, faults
    return reference


def kill_driver(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Kill the driver repeatedly; half of the studies run one trial at a time, and must equal the reference."""
    concurrent = generator.choice((1, 2))
    strikes: list[str] = []
    had: set[Process] = set()
    session = begin(room, reference.size, concurrent)
    # A part below 0 strikes soon after the start, whether or not a record exists yet.
    for part in sorted(generator.uniform(-0.1, 1) for _ in range(reference.size.kills)):
        if not run_past(part, room, session, generator, reference):
            break
        had |= session.kill()
        strikes.append(phase_of(room))
        session = begin(room, reference.size, concurrent)
    faults = finish(room, session, reference, same=concurrent == 1)
    return Outcome(strikes, faults + wait_until_gone(had))


def kill_worker(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Kill a trial's process twice; if its process died a third time, the trial would count as failed."""
    session = begin(room, reference.size, 2)
    strikes = []
    for part in sorted(generator.uniform(0, 0.7) for _ in range(2)):
        run_past(part, room, session, generator, reference)
        if processes := wait_for_trial(session):
            kill_all(family(generator.choice(processes)))
            strikes.append(phase_of(room))
    return Outcome(strikes, finish(room, session, reference))


def kill_node(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Kill one of the two nodes of a cluster while it runs a trial."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    address = f"127.0.0.1:{free_port()}"
    with node(room, token, "--head", "--include-dashboard=false", f"--port={address.rpartition(':')[2]}"):
        with node(room, token, f"--address={address}", ip="127.0.0.2") as second:
            session = begin(room, reference.size, 2, "--ray-address", address, "--cpus-per-trial", "1", **token)
            while session.runs and not trial_processes(second.pid):
                time.sleep(0.1)
            session.run_on(generator.uniform(0, reference.size.pause_s))
            strikes = [phase_of(room)] if session.runs else []
        return Outcome(strikes, finish(room, session, reference))


def kill_tracking(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Kill the tracking server, and restart it while the study runs, or only for the next session."""
    port = free_port()
    with server(room, port) as uri:
        session = begin(room, reference.size, 2, "--tracking-uri", uri)
        run_past(generator.uniform(0, 0.7), room, session, generator, reference)
        strikes = [phase_of(room)] if session.runs else []
    stays_away = generator.random() < 0.5
    if stays_away:
        session.wait()
    else:
        session.run_on(generator.uniform(1, 15))
    with server(room, port) as uri:
        if session.wait():
            return Outcome(strikes, [f"session: {session.log.read_text()[-2000:]}"])
        output = session.log.read_text()
        lacks = [sentence for sentence in ("send them with --resume", "--resume tries again") if sentence in output]
        if stays_away and strikes and not lacks:
            return Outcome(strikes, ["console: must report that MLflow lacks runs or the model, but does not"])
        if lacks:
            session = begin(room, reference.size, 2)
        return Outcome(strikes, finish(room, session, reference, uri=uri))


def fill_disk(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Fill the disk that the study writes to, wait until the study ends, free the disk, and resume the study."""
    mlruns = room / "mlruns"
    mlruns.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m", "study-chaos", str(mlruns)], check=True)
    try:
        session = begin(room, reference.size, 2)
        run_past(generator.uniform(0, 0.7), room, session, generator, reference)
        filler = mlruns / "filler"
        fill(filler)
        strikes = [phase_of(room)] if session.runs else []
        code = session.wait()
        last = session.log.read_text().rstrip().rpartition("\n")[2]
        filler.unlink()
        faults = finish(room, begin(room, reference.size, 2), reference)
        if code and not (last.startswith("study: ") and str(mlruns) in last):
            faults.append(f"console: must end with a line that names the file, but ends with {last!r}")
        return Outcome(strikes, faults)
    finally:
        subprocess.run(["umount", "--lazy", str(mlruns)], check=True)


def resume_twice(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Kill the driver, and resume the study twice at once: one session must go on, the other must be refused."""
    session = begin(room, reference.size, 1)
    run_past(generator.uniform(0, 0.7), room, session, generator, reference)
    session.kill()
    strikes = [phase_of(room)]
    pair = begin(room, reference.size, 1), begin(room, reference.size, 1)
    codes = [each.wait() for each in pair]
    faults = finish(room, pair[codes.index(0)] if 0 in codes else pair[0], reference, same=True)
    refused = [each for each, code in zip(pair, codes, strict=True) if code == 1]
    if len(refused) != 1 or "is being run by another process" not in refused[0].log.read_text():
        faults.append(f"sessions: one of two must be refused, but they ended with {codes}")
    return Outcome(strikes, faults)


def change_surroundings(room: Path, generator: random.Random, reference: Reference) -> Outcome:
    """Send SIGHUP, close the terminal, move the directory, and let the machine sleep, in a random order.

    A short study meets one of these faults. Sleep comes last, because it ends no session. The study ends where it is
    moved to, and is moved back at last.
    """
    kinds = generator.sample(SURROUNDINGS, min(len(SURROUNDINGS), reference.size.kills))
    kinds.sort(key=lambda kind: kind == "slept")
    parts = sorted(generator.uniform(0, 0.7) for _ in kinds)
    strikes: list[str] = []
    place = room
    try:
        for kind, part in zip(kinds, parts, strict=True):
            session = begin(place, reference.size, 1, terminal=kind == "terminal")
            if not run_past(part, place, session, generator, reference):
                break
            strikes.append(f"{phase_of(place)}, {kind}")
            match kind:
                case "hangup":
                    session.process.send_signal(signal.SIGHUP)
                case "terminal":
                    session.close_terminal()
                case "moved":
                    place = room.rename(room.with_name(f"{room.name} moved"))
                    session.log = place / session.log.name
                case "slept":
                    halted = {pid for pid, _ in family(session.process.pid)}
                    signal_all(halted, signal.SIGSTOP)
                    time.sleep(generator.uniform(2, 8))
                    signal_all(halted, signal.SIGCONT)
            if session.wait() not in ((0,) if kind == "slept" else (0, 1, 130)):
                return Outcome(strikes, [f"session: {kind}: {session.log.read_text()[-2000:]}"])
        faults = finish(place, begin(place, reference.size, 1), reference, same=True)
        if place != room:
            shutil.rmtree(room / "cache", ignore_errors=True)  # the place of the session's feature store
            faults += [f"files: {path} was made where the directory was before" for path in room.rglob("*")]
        return Outcome(strikes, faults)
    finally:
        if place != room:
            shutil.rmtree(room, ignore_errors=True)
            place.rename(room)


SURROUNDINGS = ("hangup", "terminal", "moved", "slept")

FAULTS: dict[str, tuple[Fault, int]] = {
    "driver": (kill_driver, 100),
    "worker": (kill_worker, 20),
    "node": (kill_node, 5),
    "tracking": (kill_tracking, 5),
    "disk": (fill_disk, 3),
    "twice": (resume_twice, 5),
    "surroundings": (change_surroundings, 12),
}
"""Each fault by name, and its number of strikes in the full chaos test."""


def finish(
    room: Path, session: Session, reference: Reference, *, same: bool = False, uri: str | None = None
) -> list[str]:
    """Wait for a session's end, and return its study's faults; with `same`, results must equal the reference's."""
    if code := session.wait():
        return [f"session: must end with 0, but ended with {code}: {session.log.read_text()[-2000:]}"]
    faults = find_faults(room, NAME, trials=reference.size.trials, repeats=reference.size.repeats, uri=uri)
    if same and results_of(record_of(room)) != reference.results:
        faults.append("results: must equal those of the study without a fault, but differ")
    faults += [f"console: {log.name} has a traceback" for log in room.glob("*.log") if has_traceback(log)]
    return faults


def has_traceback(log: Path) -> bool:
    """Return whether a session printed a traceback; the logs of servers, which are not ours, may contain one."""
    return log.name.startswith("session-") and "Traceback" in log.read_text()


def run_past(part: float, room: Path, session: Session, generator: random.Random, reference: Reference) -> bool:
    """Let a session run until its journal reaches a part of the reference's lines, and a random pause longer.

    The clock is not used, because the machine may be faster now than when the reference ran.

    Returns:
        Whether the session still runs.
    """
    while session.runs and lines_of(room) < part * reference.lines:
        time.sleep(0.05)
    return session.run_on(generator.uniform(0, reference.size.pause_s))


def fill(file: Path) -> None:
    """Write to a file until the disk is full."""
    try:
        with open(file, "wb", buffering=0) as filler:
            while filler.write(bytes(2**16)):
                pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
