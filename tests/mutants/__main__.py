"""Plants faults in copies of the working tree and counts those that the fast tests notice.

``make mutants`` makes small changes of the code by rule, ``make mutants-planted`` takes patches that people wrote.
"""

import argparse
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher, unified_diff
from functools import partial
from pathlib import Path

from covering import Chooser, Code, recorded
from mutations import mutations
from trees import PACKAGES, Outcome, Tree

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "mutants"
SAMPLED = (
    r"engine/spine_engine/((anatomy|engine|results)\.py|bundle/(bundle|manifest|strict_json)\.py"
    r"|run/(dispatcher|ledger|run)\.py|(dicom|detection|scheduler)/.*"
    r"|voxels/(placement|prepared|reference|window)\.py)|training/spine_training/(metric|evaluation/calibration)\.py"
)
AT_MOST = 40  # mutants of a change, so that 20 lines take less than 5 minutes
MUST_NOTICE = 0.92  # of planted faults
MAY_SURVIVE = 1  # in each area
NOTICED = ("failed", "timeout")


@dataclass(frozen=True)
class Fault:
    """A change to try: the lines that it touches and how to make its texts; no lines where a patch does not apply."""

    name: str
    area: str
    lines: dict[str, list[int]]
    texts: Callable[[], dict[str, str]]
    words: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a fault. ``key`` names the change in accepted.md: file, function and text, wherever lines move."""

    name: str
    area: str
    verdict: str
    by: str = ""
    tests: int = 0
    seconds: float = 0.0
    key: str = ""
    diff: str = ""


def _lines(old: str, new: str) -> list[int]:
    """List the lines of the old text that the new one changes, or before which it inserts."""
    changes = SequenceMatcher(
        None, old.splitlines(), new.splitlines(), autojunk=False
    ).get_opcodes()
    spans = [
        range(first, max(last, first + 1))
        for kind, first, last, _, _ in changes
        if kind != "equal"
    ]
    return [index + 1 for span in spans for index in span]


def mutants(tree: Tree, options: argparse.Namespace) -> list[Fault]:
    """Make the mutants of a change, or a seeded sample over the modules whose behaviour matters most."""
    wanted: dict[str, set[int] | None] = {}
    if options.sample:
        files = [
            str(path.relative_to(tree.root))
            for name in PACKAGES
            for path in (tree.root / name).rglob("*.py")
        ]
        chosen = [
            path
            for path in sorted(files)
            if re.match(SAMPLED, path) and re.search(options.only, path)
        ]
        wanted = {path: None for path in chosen if "njit" not in tree.read(path)}
    else:
        main = subprocess.run(
            ["git", "rev-parse", "-q", "--verify", "origin/main"],
            cwd=ROOT,
            capture_output=True,
        )
        command = [
            "git",
            "merge-base",
            "main" if main.returncode else "origin/main",
            "HEAD",
        ]
        base = (
            options.base
            or subprocess.check_output(command, cwd=ROOT, text=True).strip()
        )
        files = subprocess.check_output(
            ["git", "diff", "--name-only", base], cwd=ROOT, text=True
        ).splitlines()
        for path in files:
            if (
                path.startswith(PACKAGES)
                and path.endswith(".py")
                and (tree.root / path).is_file()
            ):
                old = subprocess.run(
                    ["git", "show", f"{base}:{path}"], cwd=ROOT, capture_output=True
                ).stdout.decode()
                wanted[path] = set(_lines(tree.read(path), old))
    made = [
        mutation
        for path, lines in wanted.items()
        for mutation in mutations(path, tree.read(path), lines)
    ]
    taken = random.Random(options.seed).sample(
        made, min(len(made), options.sample or AT_MOST)
    )
    print(f"{len(taken)} of {len(made)} mutants in {len(wanted)} files", flush=True)
    areas = {path: path.split("/", 2)[2].removesuffix(".py") for path in wanted}
    return [
        Fault(
            mutant.name, areas[mutant.path], {mutant.path: [mutant.line]}, mutant.texts
        )
        for mutant in taken
    ]


def planted(tree: Tree, options: argparse.Namespace) -> list[Fault]:
    """Read the patches of a folder: `Area: ...`, `Seen by users: ...`, and the diff."""
    faults = []
    for patch in sorted(Path(options.folder).glob("*.patch")):
        text = patch.read_text(encoding="utf-8")
        area, seen = (line.partition(": ")[2] for line in text.splitlines()[:2])
        before = {
            path: tree.read(path)
            for path in re.findall(r"^--- a/(\S+)", text, re.MULTILINE)
        }
        with tree.changed(before):
            env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.root.parent)}
            command = ["git", "apply", "--recount", "-C1", str(patch.resolve())]
            subprocess.run(command, cwd=tree.root, env=env, stderr=subprocess.DEVNULL)
            after = {path: tree.read(path) for path in before}
        lines = {
            path: _lines(before[path], after[path])
            for path in before
            if before[path] != after[path]
        }
        name = f"{patch.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        faults.append(Fault(name, area, lines, partial(dict, after), seen))
    return faults


def _described(
    fault: Fault, texts: dict[str, str], tree: Tree, code: Code
) -> tuple[str, str]:
    """Return what names a change in accepted.md, and its diff."""
    diff: list[str] = []
    for path, text in texts.items():
        diff += list(
            unified_diff(
                tree.read(path).splitlines(), text.splitlines(), lineterm="", n=0
            )
        )[2:]
    removed = " ".join(line[1:].strip() for line in diff if line.startswith("-"))
    added = " ".join(line[1:].strip() for line in diff if line.startswith("+"))
    path, lines = next(iter(fault.lines.items()))
    return (
        f"{path} {code.place(path, lines[0]).qualname or 'module'}: `{removed}` => `{added}`",
        "\n".join(diff),
    )


def attempt(
    fault: Fault, trees: "queue.Queue[Tree]", chooser: Chooser, code: Code, rest: bool
) -> Result:
    """Plant a fault in a free tree and run its tests; ``rest`` adds all others when those pass."""
    if not fault.lines:
        return Result(fault.name, fault.area, "does not apply")
    tests = list(
        dict.fromkeys(
            test
            for path, lines in fault.lines.items()
            for test in chooser.tests(path, lines)
        )
    )
    cold = any(chooser.cold(path, lines) for path, lines in fault.lines.items())
    texts = fault.texts()
    outcome = Outcome("no tests")
    seconds = 0.0
    tree = trees.get()
    try:
        key, diff = _described(fault, texts, tree, code)
        with tree.changed(texts):
            for batch in (tests, chooser.rest(tests) if rest else []):
                if batch and outcome.verdict not in NOTICED:
                    outcome = tree.test(
                        batch, limit_s=60 + 5 * chooser.seconds(batch), cold=cold
                    )
                    seconds += outcome.seconds
    finally:
        trees.put(tree)
    return Result(
        fault.name,
        fault.area,
        outcome.verdict,
        outcome.failure,
        len(tests),
        round(seconds, 1),
        key,
        diff,
    )


def run(
    faults: list[Fault],
    trees: list[Tree],
    file: Path,
    attempt_in: Callable[..., Result],
) -> list[Result]:
    """Try every fault whose result the file does not have yet, and add each result as it comes."""
    file.touch()
    names = {fault.name for fault in faults}
    done = [
        result
        for line in file.read_text().splitlines()
        if (result := Result(**json.loads(line))).name in names
    ]
    names -= {result.name for result in done}
    free: queue.Queue[Tree] = queue.Queue()
    for tree in trees:
        free.put(tree)
    with ThreadPoolExecutor(len(trees)) as pool:
        futures = [
            pool.submit(attempt_in, fault, free)
            for fault in faults
            if fault.name in names
        ]
        try:
            for future in as_completed(futures):
                result = future.result()
                done.append(result)
                with file.open("a") as results:
                    results.write(json.dumps(asdict(result)) + "\n")
                print(
                    len(done),
                    "of",
                    len(faults),
                    result.name,
                    result.verdict,
                    result.seconds,
                    result.by,
                    flush=True,
                )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for tree in trees:
                tree.end_processes()
    return done


def report(results: list[Result], words: dict[str, str]) -> bool:
    """Print survivors and, by area, how many were noticed; say whether that is what planted faults must show."""
    accepted = [
        line.removeprefix("- ")
        for line in (HERE / "accepted.md").read_text(encoding="utf-8").splitlines()
    ]
    areas: dict[str, Counter[str]] = defaultdict(Counter)
    for result in sorted(results, key=lambda result: (result.area, result.name)):
        survived = result.verdict not in NOTICED
        explained = (
            survived
            and result.key
            and any(line.startswith(result.key) for line in accepted)
        )
        verdict = (
            "accepted"
            if explained
            else "survived"
            if result.verdict in ("passed", "no tests")
            else result.verdict
        )
        for area in (result.area, "all"):
            areas[area][verdict] += 1
        if survived and not explained:
            print(
                f"\n{verdict} ({result.tests} tests): {result.name} {words[result.name]}\n{result.key}\n{result.diff}"
            )
    print()
    for area, verdicts in sorted(
        areas.items(), key=lambda item: (item[0] == "all", item[0])
    ):
        noticed = verdicts["failed"] + verdicts["timeout"]
        apart = [
            f"{verdicts[verdict]} {verdict}"
            for verdict in sorted(verdicts)
            if verdict != "failed"
        ]
        print(
            f"{area:32}{noticed:5} of {verdicts.total() - verdicts['accepted']:4} noticed  {', '.join(apart)}"
        )
    overall = areas.pop("all", Counter())
    enough = overall["failed"] + overall["timeout"] >= MUST_NOTICE * (
        overall.total() - overall["accepted"]
    )
    even = all(verdicts["survived"] <= MAY_SURVIVE for verdicts in areas.values())
    return bool(results) and enough and even and not overall["does not apply"]


def tried(options: argparse.Namespace, place: Path) -> tuple[list[Fault], list[Result]]:
    """Copy the tree, record or update what tests run, see that they pass, and try the faults."""
    trees = [Tree(place / f"tree-{index}") for index in range(options.jobs)]
    trees[0].take(ROOT)
    code = Code(trees[0].root)
    chooser = Chooser(
        code, recorded(trees[0], code, BUILD / "record", options.tests, options.jobs)
    )
    faults = (planted if options.kind == "planted" else mutants)(trees[0], options)
    needed = {
        test
        for fault in faults
        for path, lines in fault.lines.items()
        for test in chooser.tests(path, lines)
    }
    if options.kind == "planted":
        needed |= set(chooser.rest([]))
    if not needed:
        return faults, []
    before = trees[0].test(sorted(needed), limit_s=3600, more=("-n", str(options.jobs)))
    if before.verdict != "passed":
        sys.exit(
            f"nothing can be tried, because tests fail without any fault: {before.verdict} {before.failure}"
        )
    print(
        f"without a fault {len(needed)} tests pass in {before.seconds:.0f} s",
        flush=True,
    )
    for tree in trees[1:]:
        shutil.copytree(trees[0].root, tree.root)
    state = hashlib.sha256(options.kind.encode())
    for path, text in code.texts.items():
        state.update(
            b"" if path.startswith("tests/mutants") else f"{path}\0{text}".encode()
        )
    file = BUILD / f"{options.kind}-{state.hexdigest()[:12]}.jsonl"
    return faults, run(
        faults,
        trees,
        file,
        partial(attempt, chooser=chooser, code=code, rest=options.kind == "planted"),
    )


def main() -> int:
    """Read the options, try the faults and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["mutants", "planted"])
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        help="so many mutants over all modules, not those of a change",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="sample only files whose path this pattern finds"
    )
    parser.add_argument(
        "--base", default="", help="the commit that the change began at"
    )
    parser.add_argument(
        "--folder", default=str(HERE / "planted"), help="the folder of patches"
    )
    parser.add_argument(
        "--tests", nargs="*", default=["tests"], help="the folders of tests to record"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = Path(tempfile.mkdtemp(prefix="spine-mutants-"))
    try:
        faults, results = tried(options, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    enough = report(results, {fault.name: fault.words for fault in faults})
    return int(options.kind == "planted" and not enough)


if __name__ == "__main__":
    sys.exit(main())
