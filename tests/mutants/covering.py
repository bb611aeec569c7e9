"""Which tests run which lines: recorded with coverage's contexts, kept, and brought up to date by test file."""

import ast
import hashlib
import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from coverage import CoverageData
from trees import PACKAGES, Tree

_RC = """[run]
source = {source}
data_file = {record}/coverage
parallel = true
context = ${{RECORDED_TEST-}}
patch = _exit
disable_warnings = no-data-collected, already-imported, couldnt-parse, module-not-measured, module-not-imported
"""
_STEPS = 3  # a constant may be used by a table that is used by a function


@dataclass(frozen=True)
class Place:
    """What a line belongs to: its statement's lines, its function or class, and names by which others use it."""

    statement: range
    qualname: str
    runs: bool  # when a function is called; everything else runs on import
    names: tuple[str, ...]


def _places(
    node: ast.AST, qualname: str = "", runs: bool = False
) -> Iterator[tuple[int, Place]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            yield from _places(child, qualname, runs)
            continue
        first = min(
            [
                child.lineno,
                *(mark.lineno for mark in getattr(child, "decorator_list", [])),
            ]
        )
        end = child.end_lineno or child.lineno
        body = getattr(child, "body", None)
        header_end = max(first, body[0].lineno - 1) if body else end
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = (
            f"{qualname}.{child.name}".strip(".")
            if hasattr(child, "name")
            else qualname
        )
        stored = [
            name.id
            for name in ast.walk(child)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        ]
        plain = [name for name in inner.split(".") if not name.startswith("__")]
        names = tuple(stored) if stored and not runs and not body else tuple(plain[-1:])
        place = Place(range(first, header_end + 1), inner, runs, names)
        yield from ((line, place) for line in range(first, end + 1))
        yield from _places(child, inner, runs or function)


class Code:
    """The Python files of a tree: what each line belongs to, and where names are used."""

    def __init__(self, root: Path) -> None:
        paths = [
            path
            for name in (*PACKAGES, "tests")
            for path in sorted((root / name).rglob("*.py"))
        ]
        self.texts = {
            str(path.relative_to(root)): path.read_text(encoding="utf-8")
            for path in paths
        }
        self._places: dict[str, dict[int, Place]] = {}
        self.uses: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for path, text in self.texts.items():
            module = ast.parse(text)
            self._places[path] = dict(_places(module))
            for node in ast.walk(module):
                if isinstance(node, ast.Name | ast.Attribute) and isinstance(
                    node.ctx, ast.Load
                ):
                    name = node.id if isinstance(node, ast.Name) else node.attr
                    self.uses[name].add((path, node.end_lineno or node.lineno))

    def place(self, path: str, line: int) -> Place:
        """Return what a line belongs to; outside all statements, nothing."""
        return self._places.get(path, {}).get(line) or Place(
            range(line, line + 1), "", False, ()
        )

    def keys(self, path: str, line: int) -> set[tuple[str, str, str]]:
        """Name the lines of a line's statement in a way that holds when lines move: file, function and text."""
        place = self.place(path, line)
        texts = self.texts[path].splitlines()
        lines = {line, *place.statement} if line in place.statement else {line}
        return {(path, place.qualname, texts[line - 1].strip()) for line in lines}


@dataclass
class Record:
    """Tests by line and by function, seconds by test, and the test files, by digest, that were recorded."""

    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[tuple[str, ...], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )

    def forget(self, files: set[str]) -> None:
        """Drop the tests of some files."""
        self.seconds = {
            test: seconds
            for test, seconds in self.seconds.items()
            if test.split("::")[0] not in files
        }
        for tests in self.tests.values():
            tests.intersection_update(self.seconds)

    def add(self, folder: Path, root: Path, code: Code) -> None:
        """Take up what a recorded run of tests left in ``folder``."""
        users: dict[str, set[str]] = defaultdict(set)
        for file in folder.glob("tests-*.json"):
            left = json.loads(file.read_text())
            for test, seconds in left["seconds"].items():
                self.seconds[test] = max(seconds, self.seconds.get(test, 0))
            for test, fixtures in left["shared"].items():
                for context in (test, *fixtures):
                    users[context].add(test)
        for file in folder.glob("coverage.*"):
            data = CoverageData(str(file))
            data.read()
            for measured in data.measured_files():
                path = str(Path(measured).relative_to(root))
                for line, contexts in data.contexts_by_lineno(measured).items():
                    parts = {
                        part for context in contexts for part in context.split("|")
                    }
                    tests = {test for part in parts for test in users.get(part, ())}
                    if code.place(path, line).runs:
                        for key in code.keys(path, line):
                            self.tests[key] |= tests
                            self.tests[key[:2]] |= tests
                            self.tests[key[:1]] |= tests


def recorded(
    tree: Tree, code: Code, kept: Path, folders: list[str], jobs: int
) -> Record:
    """Bring the kept record up to date with the tree: test files that are new or changed run again, with coverage."""
    record: Record = pickle.loads(kept.read_bytes()) if kept.is_file() else Record()
    tests = {
        path: text
        for path, text in code.texts.items()
        if Path(path).name.startswith("test_")
    }
    digests = {
        path: hashlib.sha256(text.encode()).hexdigest() for path, text in tests.items()
    }
    stale = [
        path
        for path in tests
        if path.startswith(tuple(folders)) and digests[path] != record.files.get(path)
    ]
    record.forget({*stale, *(set(record.files) - set(tests))})
    for room, files in groupby(sorted(stale), key=lambda path: Path(path).parent):
        names = list(files)
        print(
            f"recording which lines {len(names)} files of {room} run",
            end=" ... ",
            flush=True,
        )
        folder = tree.root.with_name(f"record-{'-'.join(room.parts)}")
        folder.mkdir()
        source = ", ".join(str(tree.root / name) for name in (*PACKAGES, "tests"))
        (folder / "rc").write_text(_RC.format(source=source, record=folder))
        env = {
            "COVERAGE_PROCESS_START": str(folder / "rc"),
            "RECORDED_TO": str(folder),
            "RECORDED_TEST": "",
        }
        outcome = tree.test(
            names, limit_s=7200, more=("-p", "recording", "-n", str(jobs)), env=env
        )
        record.add(folder, tree.root, code)
        record.files |= {path: digests[path] for path in names}
        print(
            f"{outcome.verdict} in {outcome.seconds:.0f} s {outcome.failure}",
            flush=True,
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".partial").write_bytes(pickle.dumps(record))
        kept.with_suffix(".partial").replace(kept)
    return record


class Chooser:
    """Chooses the tests of changed lines."""

    def __init__(self, code: Code, record: Record) -> None:
        self._code = code
        self._record = record
        kernels = [
            text
            for path, text in code.texts.items()
            if "njit" in text and not path.startswith("tests")
        ]
        self._kernels = "\n".join(kernels)

    def cold(self, path: str, lines: Iterable[int]) -> bool:
        """Say whether kernels compiled from other texts may hold what was changed: a kernel, or a constant of one."""
        module = ".".join(Path(path).with_suffix("").parts[1:])
        constant = any(not self._code.place(path, line).runs for line in lines)
        return "njit" in self._code.texts.get(path, "") or (
            constant and f"from {module} import" in self._kernels
        )

    def _of_line(self, path: str, line: int) -> set[str]:
        keys = self._code.keys(path, line)
        of_line = set().union(*(self._record.tests.get(key, ()) for key in keys))
        return of_line or set().union(
            *(self._record.tests.get(key[:2], ()) for key in keys)
        )

    def _of_names(self, names: Iterable[str]) -> set[str]:
        """Find tests of the functions that use a name, or that use what is made of it."""
        wanted = set(names)
        seen: set[str] = set()
        for _ in range(_STEPS):
            uses = [use for name in wanted for use in self._code.uses[name]]
            tests = set().union(
                *(self._of_line(*use) for use in uses if self._code.place(*use).runs)
            )
            if tests:
                return tests
            seen |= wanted
            wanted = {
                name for use in uses for name in self._code.place(*use).names
            } - seen
        return set()

    def tests(self, path: str, lines: Iterable[int]) -> list[str]:
        """Choose tests of the lines; where none is known, of their function, of users of their names, of the module.

        Files named after the module or its folder come first, then quick files, and quick tests in each.
        """
        chosen: set[str] = set()
        for line in lines if path in self._code.texts else ():
            place = self._code.place(path, line)
            chosen |= (
                self._of_line(path, line) if place.runs else set()
            ) or self._of_names(place.names)
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(
            chosen or self._record.tests.get((path,), set()),
            key=lambda test: self.seconds([test]),
        ):
            by_file[test.split("::")[0]].append(test)

        def rank(file: str) -> tuple[bool, bool, float]:
            return (
                Path(path).stem not in file,
                Path(path).parent.name not in file,
                self.seconds(by_file[file]),
            )

        return [test for file in sorted(by_file, key=rank) for test in by_file[file]]

    def rest(self, tests: Iterable[str]) -> list[str]:
        """List all other tests."""
        return sorted(set(self._record.seconds) - set(tests))

    def seconds(self, tests: Iterable[str]) -> float:
        """Add up what tests took when they were recorded."""
        return sum(self._record.seconds.get(test, 0) for test in tests)
