"""What leaves the house: the wheel's contents, the declared dependencies, the pins."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = {"click", "jinja2", "ml-dtypes", "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "protobuf", "rich"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel-check` and a release build it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def declared(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"bnfold-{PROJECT['version']}.dist-info/METADATA"))


def test_wheel_holds_only_bnfold(names: list[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"bnfold", f"bnfold-{PROJECT['version']}.dist-info"}


def test_wheel_holds_every_module_template_and_the_type_marker(names: list[str]) -> None:
    files = [*(ROOT / "bnfold").rglob("*.py"), *(ROOT / "bnfold").glob("*/templates/*")]
    expected = {path.relative_to(ROOT).as_posix() for path in files} | {"bnfold/py.typed"}
    assert {name for name in names if name.startswith("bnfold/")} == expected


def test_wheel_holds_the_license_and_the_command(wheel: Path) -> None:
    info = f"bnfold-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "bnfold = bnfold.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_wheel_declares_bounded_runtime_dependencies(declared: Message) -> None:
    requirements = [Requirement(line) for line in declared.get_all("Requires-Dist", [])]
    runtime = {canonicalize_name(r.name): r.specifier for r in requirements if r.marker is None}
    assert set(runtime) == RUNTIME
    for name, specifier in runtime.items():
        assert {part.operator for part in specifier} == {">=", "<"}, f"{name} needs a lower and an upper bound"
    assert "0.6.0" not in runtime[canonicalize_name("onnx-graphsurgeon")]
    assert declared["Requires-Python"] == ">=3.11"


def test_torch_is_only_in_extras(declared: Message) -> None:
    requirements = [Requirement(line) for line in declared.get_all("Requires-Dist", [])]
    assert [str(r.marker) for r in requirements if r.name == "torch"] == ['extra == "train"', 'extra == "zoo"']


def test_every_import_of_bnfold_is_declared() -> None:
    imported: set[str] = set()
    for path in (ROOT / "bnfold").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    third_party = imported - sys.stdlib_module_names - {"bnfold", "PIL"}
    assert [Requirement(line).name for line in PROJECT["optional-dependencies"]["images"]] == ["pillow"]
    providers = metadata.packages_distributions()
    providers = {**providers, "markupsafe": ["jinja2"]}  # jinja2's own string type
    undeclared = [name for name in third_party if RUNTIME.isdisjoint(map(canonicalize_name, providers.get(name, ())))]
    assert not undeclared, f"imported in bnfold/, not declared in pyproject.toml: {sorted(undeclared)}"


def test_pins_lie_in_the_declared_ranges_and_cover_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(re.split("==", line, maxsplit=1) for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["test"], *extras["train"]]):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} has no pin in constraints.txt"
        assert versions[name] in requirement.specifier, f"{name}=={versions[name]} is outside {requirement}"


def test_installed_version_is_the_declared_one_and_stands_in_the_changelog() -> None:
    assert metadata.version("bnfold") == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
