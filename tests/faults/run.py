# SPDX-License-Identifier: Apache-2.0
"""Breaks training runs on purpose, and checks that it does not show in what they release.

    python tests/faults/run.py                       # all kinds, with 50 kills at random instants
    python tests/faults/run.py kills --kills 500     # one kind, longer
    python tests/faults/run.py --secure_noise --seed 3

Whatever happens to a run, afterwards it must end with the release of an undisturbed one, byte for
byte, and be in the ledger once and in full; or it must stop with one line that says why.
"""

import argparse
import ctypes
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from lab import FINISHED, REFUSED, Lab, Run, kill_at


def kills(lab: Lab, rng: random.Random, options) -> str:
    """SIGKILL at random instants, of fresh runs and of resumed ones."""
    done = runs = 0
    while done < options.kills:
        run, entropy, secret, broken = lab.run(), 1, None, True
        while broken:
            instant = rng.uniform(0, lab.seconds) if done < options.kills else None
            broken = run.killed(run.start(entropy), instant)
            done, entropy = done + broken, 2
            assert secret in (None, run.secret()), "a started run has changed its secret"
            secret = run.secret()
            run.check_meanwhile()
        run.check_end()
        runs += 1
    return f"{done} kills of {runs} runs"


def operations(lab: Lab, rng: random.Random, options) -> str:
    """SIGKILL right before an operation on a file of the run or the ledger."""
    short = {"head_stage": {"steps": 2}, "train": {"steps": 2}}
    (lab.scratch / "short").mkdir()
    whole = Lab(lab.scratch / "short", lab.compiled, lab.secure_noise, short)
    run = whole.run()
    child = run.start(1, kill_at(run.folder, lambda number, name: False, report=True))
    status, output = run.wait(child)
    assert status == FINISHED, output
    total = int(output.split()[0])
    chosen = range(total)
    if options.operations < total:
        chosen = sorted(rng.sample(chosen, options.operations))
    for at in chosen:
        run = whole.run()
        before = kill_at(run.folder, lambda number, name, at=at: number == at)
        assert run.killed(run.start(1, before), None), f"operation {at} was never reached"
        run.check_meanwhile()
        run.finish()
    return f"{len(chosen)} of {total} operations"


def full_disk(lab: Lab, rng: random.Random, options) -> str:
    """No room on the device of run and ledger; then there is room, and the run is resumed."""
    lab.undisturbed(1), lab.undisturbed(2)
    folder = lab.scratch / "disk"
    folder.mkdir()
    child = os.fork()
    if not child:
        status = 1
        try:
            if not mount_tmpfs(folder, "4m"):
                status = 77
            else:
                for room in rng.sample(range(0, 120, 4), options.disks):
                    run_out_of_room(lab, folder, 1024 * room)
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 77)
    if status == 0:
        return f"{options.disks} disks of a few kilobytes"
    for limit in [rng.randrange(0, 5000) for _ in range(options.disks)]:
        run = lab.run()
        limited = lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        run.refuse("File too large", 1, before=limited)
        run.finish()
    return f"{options.disks} limits on the size of a file (a small disk cannot be mounted here)"


def mount_tmpfs(folder: Path, size: str) -> bool:
    """In namespaces of this process's own, so it needs no rights and ends with the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts = 0x10000000, 0x00020000
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(new_user | new_mounts):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


def run_out_of_room(lab: Lab, folder: Path, room: int) -> None:
    ballast, state = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
    run = lab.run(folder / "own")
    status, output = run.wait(run.start(1))
    if status != FINISHED:
        assert status == REFUSED and output.count("\n") == 1, (room, output)
        assert "No space left" in output or "cannot be made" in output, (room, output)
    ballast.unlink()
    run.check_meanwhile()
    if status != FINISHED:
        run.finish()
    shutil.rmtree(run.folder)


def half_done(lab: Lab) -> Run:
    """A run that was killed in its second stage, right before its twelfth step was saved."""
    run = lab.run()
    before = kill_at(run.folder, lambda number, name: name == "1-12")
    assert run.killed(run.start(1, before), None)
    return run


def damaged_checkpoints(lab: Lab, rng: random.Random, options) -> str:
    """The newest checkpoint is cut short, changed in one bit, empty, zeros or gone; or all are."""
    run = half_done(lab)

    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    ways = [
        flip,
        lambda content: content[: rng.randrange(len(content))],
        lambda content: b"",
        lambda content: bytes(len(content)),
        None,
    ]
    for number, way in enumerate(itertools.islice(itertools.cycle(ways), options.damages)):
        with run.restored_after():
            checkpoints = run.private / "checkpoints"
            assert sorted(p.name for p in checkpoints.glob("?-*[0-9]")) == ["1-10", "1-8"]
            files = [sorted(checkpoints.glob(f"{name}/**/*")) for name in ("1-10", "1-8")]
            saved = [rng.choice([path for path in each if path.is_file()]) for each in files]
            # every third time the one before as well
            for path in saved if number % 3 == 2 else saved[:1]:
                path.unlink() if way is None else path.write_bytes(way(path.read_bytes()))
            run.finish()
    return f"{options.damages} damages"


def damaged_ledger(lab: Lab, rng: random.Random, options) -> str:
    """A torn tail is cut off, a changed one is refused, a lost one is entered again."""
    run = half_done(lab)
    path = run.ledger.path
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: rng.randrange(1, len(whole))].replace(b"\n", b""))
    with run.restored_after():
        run.finish()
    for place in [len(whole) - 1, rng.randrange(len(whole))]:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        run.refuse("not what was written there")
    path.write_bytes(b"")
    run.finish()
    return "torn, changed, lost"


def two_processes(lab: Lab, rng: random.Random, options) -> str:
    """A second process on the same run directory."""
    run = lab.run()
    slowly = lambda: sys.addaudithook(lambda event, _: time.sleep(0.2 * (event == "os.rename")))  # noqa: E731
    first = run.start(1, slowly)
    while run.secret() is None:
        assert os.waitpid(first[0], os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    run.refuse("in use by another process")
    assert run.killed(first, 0)
    run.finish()
    return "refused"


def clock(lab: Lab, rng: random.Random, options) -> str:
    """A wall clock that is a day late and runs backwards, a thousand times too fast."""

    def backwards():
        start, begin = time.time() - 86_400, time.monotonic()
        time.time = lambda: start - 1000 * (time.monotonic() - begin)
        time.time_ns = lambda: int(1e9 * time.time())

    run = lab.run()
    status, output = run.wait(run.start(1, backwards))
    assert status == FINISHED, output
    run.check_end()
    run = half_done(lab)
    status, output = run.wait(run.start(2, backwards))
    assert status == FINISHED, output
    run.check_end()
    return "a whole run and a resumed one"


def settings(lab: Lab, rng: random.Random, options) -> str:
    """Resumed with other settings: refused if they change mechanism or result, else allowed."""
    run = half_done(lab)
    changes = [
        ("privacy", "noise_multiplier", 19.0),
        ("privacy", "epsilon", 3.0),
        ("privacy", "l2_clip_norm", 0.2),
        ("privacy", "secure_noise", not lab.secure_noise),
        ("privacy", "ledger", None),
        ("train", "steps", 21),
        ("train", "expected_batch_size", 16.0),
        ("train", "learning_rate", 0.1),
        ("run", "research_seed", 1),
    ]
    for section, field, value in changes[: options.damages]:
        alone = {"total_budget": None} if field == "ledger" else {}
        run.refuse(f"config.{section}.{field}", changes={section: {field: value, **alone}})
    reports = lab.scratch / "reports.csv"
    content = reports.read_text()
    reports.write_text(content[: content.rindex("\n", 0, -1) + 1])
    run.refuse("other training reports")
    reports.write_text(content)
    often = {"checkpoint_every": 3, "keep_checkpoints": 1, "eval_every": 7}
    status, output = run.wait(run.start(2, changes={"run": often}))
    assert status == FINISHED, output
    run.check_end()
    return f"{len(changes[: options.damages])} changes and other reports refused, one allowed"


KINDS = (
    kills,
    operations,
    full_disk,
    damaged_checkpoints,
    damaged_ledger,
    two_processes,
    clock,
    settings,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [kind.__name__ for kind in KINDS]
    parser.add_argument("kinds", nargs="*", metavar="kind", help=", ".join(names))
    parser.add_argument("--kills", type=int, default=50, help="at random instants")
    parser.add_argument("--operations", type=int, default=1000, help="kills before an operation")
    parser.add_argument("--disks", type=int, default=8, help="sizes of a full disk")
    parser.add_argument("--damages", type=int, default=12, help="damaged checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults")
    parser.add_argument("--secure_noise", action="store_true", help="runs with secure noise")
    parser.add_argument("--compiled", help="folder of compiled programs to use")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(names):
        parser.error(f"unknown kind {', '.join(unknown)}; there are {', '.join(names)}")
    outcomes = {}
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(Path(scratch).resolve(), options.compiled, options.secure_noise)
        for kind in KINDS:
            name = kind.__name__
            if options.kinds and name not in options.kinds:
                continue
            begin = time.monotonic()
            try:
                passed, text = True, kind(lab, random.Random(f"{name} {options.seed}"), options)
            except Exception:
                passed, text = False, traceback.format_exc()
            outcomes[name] = {"passed": passed, "text": text}
            seconds = time.monotonic() - begin
            print(
                f"{'passed' if passed else 'FAILED'}  {name}: {text} ({seconds:.0f} s)", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=2) + "\n")
    return 0 if all(outcome["passed"] for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
