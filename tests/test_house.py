"""How the house is laid out: who may import whom, how files are named, how long they are.

It is CONTRIBUTING.md's table as a test. Every rule is also tried on a planted violation, so that a
rule which finds nothing is known to look.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = 400
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc"}


@dataclass(frozen=True)
class Folder:
    """What a folder's files may import; its own modules always."""

    ours: tuple[str, ...] = ()  # other packages and modules of ours
    never: tuple[str, ...] = ()  # packages of others
    is_run: bool = False  # `python folder/run.py` puts the folder itself on the path


SHARED = ("model", "recipes", "curation.shards", "curation.video")
LIGHTNING = ("lightning", "pytorch_lightning")
FOLDERS = {
    "recipes": Folder(),
    "model": Folder(never=(*LIGHTNING, "duckdb", "webdataset")),
    "curation": Folder(ours=("recipes",), never=LIGHTNING, is_run=True),
    "training": Folder(ours=SHARED, never=("duckdb",), is_run=True),
    "eval": Folder(ours=SHARED, is_run=True),
}
# What is read is untrusted, and these run what they read
UNSAFE = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
# training and eval read shards and video where there is neither catalog nor DuckDB
LIGHT = ("curation.shards", "curation.video")
HEAVY = ("duckdb", "curation.catalog")


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in packages)


def imports(path: Path, root: Path) -> set[str]:
    """What a file imports, at its top or inside a function, by full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(root).parts[: -node.level] if node.level else ()
            name = ".".join((*above, *filter(None, [node.module])))
            if (root / name.replace(".", "/")).is_dir():  # from curation import shards
                found |= {f"{name}.{alias.name}" for alias in node.names}
            else:
                found.add(name)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def wrong_imports(root: Path) -> Iterator[str]:
    for name, folder in FOLDERS.items():
        siblings = {path.stem for path in (root / name).glob("*.py")}
        for path in sorted((root / name).rglob("*.py")):
            for one in sorted(imports(path, root)):
                what = f"{path.relative_to(root)} imports {one}"
                if one.split(".")[0] in FOLDERS:
                    if not within(one, (name, *folder.ours)):
                        yield f"{what}: of ours only {', '.join(folder.ours) or 'nothing'}"
                elif within(one, (*folder.never, *UNSAFE)):
                    yield f"{what}: never in {name}/"
                elif one.split(".")[0] in siblings:
                    yield f"{what}: say {name}.{one}, the same module however it is started"


def heavy_imports(root: Path) -> Iterator[str]:
    """What the light modules import in the end, through other modules of ours too."""
    for start in LIGHT:
        seen, queue = set(), [(start,), (f"{start.split('.')[0]}.__init__",)]
        while queue:
            chain = queue.pop()
            path = root / f"{chain[-1].replace('.', '/')}.py"
            if within(chain[-1], HEAVY):
                yield " imports ".join(chain)
            elif chain[-1] not in seen and path.is_file():
                queue += [(*chain, one) for one in sorted(imports(path, root))]
            seen.add(chain[-1])


def wrong_names(root: Path) -> Iterator[str]:
    for path in sources(root):
        relative = path.relative_to(root)
        vague = VAGUE & {*relative.with_suffix("").parts}
        if vague:
            yield f"{relative}: {vague.pop()} says nothing; name the noun it is about"
        folder = FOLDERS.get(relative.parts[0])
        on_path = folder and folder.is_run and len(relative.parts) == 2
        if on_path and path.stem in sys.stdlib_module_names:
            yield f"{relative}: hides the standard library's {path.stem} when its folder is run"
        if relative.parts[0] == "data":
            yield f"{relative}: no Python in data/"


def long_files(root: Path) -> Iterator[str]:
    for path in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES:
            yield f"{path.relative_to(root)}: {lines} lines of at most {LINES}"


def sources(root: Path) -> list[Path]:
    """Every Python file of ours."""
    return sorted(
        path
        for folder in (*FOLDERS, "tests", "data/samples")
        for path in (root / folder).rglob("*.py")
    )


@pytest.mark.parametrize("rule", [wrong_imports, heavy_imports, wrong_names, long_files])
def test_the_house_is_in_order(rule):
    assert list(rule(ROOT)) == []


def test_the_rules_look_at_files():
    assert ROOT / "recipes/load.py" in sources(ROOT)
    assert Path(__file__) in sources(ROOT)
    assert "recipes.keys" in imports(ROOT / "recipes/load.py", ROOT)


def test_every_package_says_what_it_is():
    for name in FOLDERS:
        tree = ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), name


@pytest.fixture
def house(tmp_path):
    """Plants files: path, content, … over empty packages; gives what a rule finds there."""
    for name in (*FOLDERS, "tests", "data/samples"):
        (tmp_path / name).mkdir(parents=True)

    def plant(rule, **files: str) -> list[str]:
        for name, content in files.items():
            (tmp_path / f"{name.replace('__', '/', 1)}.py").write_text(content, encoding="utf-8")
        return list(rule(tmp_path))

    return plant


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("recipes__load", "from curation.catalog import Catalog"),
        ("recipes__load", "import model"),
        ("model__dit", "import recipes.load"),
        ("model__dit", "import lightning as L"),
        ("model__dit", "from webdataset import TarWriter"),
        ("model__dit", "def f():\n    import duckdb.typing"),
        ("curation__basic", "from model import vae"),
        ("curation__basic", "from training.fit import main"),
        ("curation__basic", "from eval import stats"),
        ("curation__basic", "import pytorch_lightning"),
        ("curation__basic", "from lightning.pytorch import Trainer"),
        ("curation__basic", "from ..eval import stats"),
        ("curation__basic", "from ..eval.stats import mean"),
        ("curation__basic", "import importlib\nimportlib.import_module('eval.stats')"),
        ("curation__basic", "import basic"),
        ("curation__basic", "if True:\n    from basic import sharpness"),
        ("training__fit", "import duckdb"),
        ("training__fit", "import curation"),
        ("training__fit", "from curation import shards, catalog"),
        ("training__fit", "from eval.stats import mean"),
        ("training__fit", "try:\n    import curation.shardsx\nexcept ImportError:\n    pass"),
        ("training__data", "import pickle"),
        ("eval__run", "from training import fit"),
        ("eval__run", "from curation.basic import sharpness"),
    ],
)
def test_a_planted_import_is_found(house, name, line):
    assert len(house(wrong_imports, **{name: line})) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("recipes__load", "from recipes.keys import Key\nimport yaml"),
        ("model__dit", "from model import vae\nfrom . import flow\nfrom .flow import sigma"),
        ("curation__run", "import duckdb\nfrom recipes import load\nfrom curation.basic import x"),
        ("training__fit", "import lightning\nimport model.dit\nfrom curation import shards, video"),
        ("eval__run", "from curation.video import frames\nimport recipes.load, duckdb"),
    ],
)
def test_what_is_allowed_is_not_found(house, name, line):
    assert house(wrong_imports, **{name: line}) == []


def test_a_heavy_import_is_found_through_other_modules(house):
    light = {"curation__shards": "from curation import cut", "curation__cut": "import av"}
    assert house(heavy_imports, **light, curation__video="import cv2") == []
    found = house(heavy_imports, curation__cut="def f():\n    from curation.catalog import Catalog")
    assert found == ["curation.shards imports curation.cut imports curation.catalog"]
    found = house(heavy_imports, curation__cut="import av", curation__video="import duckdb")
    assert found == ["curation.video imports duckdb"]
    found = house(heavy_imports, curation__video="", curation____init__="import curation.catalog")
    assert found == ["curation.__init__ imports curation.catalog"] * 2


def test_a_circle_of_imports_is_walked_once(house):
    circle = {"curation__shards": "import curation.cut", "curation__cut": "import curation.shards"}
    assert house(heavy_imports, **circle) == []


@pytest.mark.parametrize(
    "name",
    [
        *("curation__select", "training__profile", "eval__statistics", "curation__utils"),
        *("model__common", "tests__helpers", "recipes__misc", "data__samples/make"),
    ],
)
def test_a_planted_name_is_found(house, name):
    assert len(house(wrong_names, **{name: ""})) == 1


def test_a_name_of_the_standard_library_is_free_where_nothing_is_run(house):
    assert house(wrong_names, model__types="", eval__stats="") == []


def test_a_long_file_is_found(house):
    assert house(long_files, model__dit="x = 1\n" * LINES) == []
    found = house(long_files, model__dit="x = 1\n" * (LINES + 1))
    assert found == ["model/dit.py: 401 lines of at most 400"]
