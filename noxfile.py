"""The jobs of this repository, one session each. Plain `nox` runs what CI runs; `nox -l` lists the rest.

Every package is tested in an environment that holds that package, what it declares, and nothing else: this is how the
core is known to work without transformers. Packages are installed as wheels, not as links to their folders, so a
file that the wheel forgot is missed here. The versions come from `constraints.txt`.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nox
from packaging.requirements import Requirement
from packaging.version import Version

nox.needs_version = ">=2025.2.9"
# The tests come last, so that the output closes with their summaries.
nox.options.sessions = ["lint", "types", "docs", "build", "tests", "tests-integration"]
nox.options.sessions += ["tests-vllm-spread", "tests-vllm-v2"]
nox.options.reuse_venv = "yes"
# pip's own settings decide where packages come from; uv, which nox would prefer, does not read them.
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
WORKSPACE = nox.project.load_toml(ROOT / "pyproject.toml")
PROJECTS = {path.parent.name: nox.project.load_toml(path) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
FOLDERS = {package: str(ROOT / "packages" / package) for package in PROJECTS}
PEER = "nnsight==0.8.1"
# The engine that this package is tested with has pins of its own, and an environment that its sessions share.
VLLM = "nnsight-vllm"
VLLM_PINS = ROOT / "packages" / VLLM / "requirements-cpu.txt"
# What servers of NDIF ran before, and spoke another protocol with.
OLDER_PEER = "nnsight==0.7.0"
OTHERS = ["pyvene==0.1.8", "transformer-lens==4.3.0"]

# Nothing is fetched from a model hub: what the tests and the demo load lies in the repository.
OFFLINE = {"HF_HUB_OFFLINE": "1"}
# The models of the tests are tiny, and threads of torch that wait for each other cost more than they compute.
TESTING = {**OFFLINE, "OMP_NUM_THREADS": "1"}


def group(name: str, project: dict[str, Any] = WORKSPACE) -> list[str]:
    return nox.project.dependency_groups(project, name)


def with_siblings(package: str) -> list[str]:
    """The folders of a package and of the siblings that it declares: no index knows those yet."""
    declared = [Requirement(text).name for text in PROJECTS[package]["project"]["dependencies"]]
    siblings = [folder for name in declared if name in PROJECTS for folder in with_siblings(name)]
    return [*siblings, FOLDERS[package]]


def pinned(constraints: Path = ROOT / "constraints.txt") -> list[str]:
    """Arguments of every install. Bytecode is left to the first import: compiling torch outlasts unpacking it."""
    return ["--no-compile", "--constraint", str(constraints)]


def lowest(package: str) -> list[str]:
    """The lowest versions that a package and the siblings below it declare, as constraints."""
    bounds: dict[str, Version] = {}
    for folder in with_siblings(package):
        project = PROJECTS[Path(folder).name]["project"]
        extras = [text for texts in project.get("optional-dependencies", {}).values() for text in texts]
        for requirement in map(Requirement, [*project["dependencies"], *extras]):
            for bound in requirement.specifier:
                if bound.operator == ">=" and requirement.name not in PROJECTS:
                    bounds[requirement.name] = max(Version(bound.version), bounds.get(requirement.name, Version("0")))
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def environment(session: nox.Session, place: Path, *requirements: str) -> str:
    """Make an environment, not the session's own, that holds the requirements only, and return its Python."""
    session.run("python", "-m", "venv", "--clear", str(place), silent=True)
    python = next(str(path) for path in (place / "bin/python", place / "Scripts/python.exe") if path.exists())
    session.run(python, "-m", "pip", "install", "--quiet", *pinned(), *requirements, external=True, silent=True)
    return python


def spread(session: nox.Session) -> list[str]:
    """Arguments of pytest: all tests are shared out among the cores; those that somebody picks run in this process."""
    return [] if session.posargs else ["--numprocesses=auto"]


def run_tests(session: nox.Session, package: str, constraints: Path = ROOT / "constraints.txt") -> None:
    session.install(*pinned(constraints), *with_siblings(package), *group("test", PROJECTS[package]))
    session.run("pytest", *spread(session), f"{FOLDERS[package]}/tests", *session.posargs, env=TESTING)


def served_by_vllm(session: nox.Session) -> str:
    """Make the environment with an engine, if no session has made it yet, put the packages as they are now into it, and
    return its Python. All that it holds is pinned: vLLM declares packages that have no builds for a CPU."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or sys.version_info < (3, 11):
        session.skip("vLLM's pinned build for CPUs is for Python 3.11 or later on Linux (x86-64, aarch64)")
    place = session.cache_dir.resolve() / f"vllm-{hashlib.sha256(VLLM_PINS.read_bytes()).hexdigest()[:12]}"
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    if not (place / "complete").exists():
        session.run("python", "-m", "venv", "--clear", str(place), silent=True)
        session.run(*pip, "--requirement", str(VLLM_PINS), external=True)
        (place / "complete").touch()
    ours = [FOLDERS[package] for package in ("nnsight-core", "nnsight-hf", "nnsight-remote", VLLM)]
    session.run(*pip, "--force-reinstall", *ours, external=True)
    return pip[0]


def run_vllm_tests(session: nox.Session, *arguments: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run tests of engines: in one process, for several engines at once starve one another."""
    python = served_by_vllm(session)
    # An engine that starts counts for the test that asks for it first.
    arguments = ("--timeout=300", *arguments, *session.posargs)
    session.run(python, "-m", "pytest", *arguments, env={**TESTING, **env}, external=True)


each_package = nox.parametrize("package", [nox.param(package, id=package) for package in PROJECTS])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `nox -s lint -- --fix` repairs what can be repaired."""
    session.install(*pinned(), *group("lint"))
    check, format_ = (["--fix"], []) if "--fix" in session.posargs else ([], ["--check"])
    session.run("ruff", "check", *check, ".")
    session.run("ruff", "format", *format_, ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of every package, or of those named after `--`; strictly in the core."""
    session.install(*pinned(), *group("types"), *FOLDERS.values())
    for package in session.posargs or PROJECTS:
        strict = ["--strict"] if package == "nnsight-core" else []
        session.run("mypy", *strict, f"{FOLDERS[package]}/src")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; `nox -s docs -- serve` shows it while it is written."""
    session.install(*pinned(), *group("docs"))
    # Material prints a notice about a successor of mkdocs, as if something here were amiss.
    session.run("mkdocs", *(session.posargs or ["build"]), "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def build(session: nox.Session) -> None:
    """Build every wheel from its sdist into dist/, then install them all into an empty environment and try them."""
    session.install(*pinned(), *group("build"))
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for folder in FOLDERS.values():
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), folder, silent=True)
    session.run("twine", "check", "--strict", *(str(path) for path in sorted(dist.iterdir())))

    wheels = [str(path) for path in sorted(dist.glob("*.whl"))]
    python = environment(
        session, ROOT / session.create_tmp() / "clean", "--find-links", str(dist), "nnsight-core[all]", *wheels
    )
    # Isolated and away from the repository: nothing but the wheels can be imported.
    with session.chdir(session.create_tmp()):
        session.run(python, "-I", str(ROOT / ".ci" / "smoke.py"), *PROJECTS, env=OFFLINE, external=True)


@nox.session
@each_package
def tests(session: nox.Session, package: str) -> None:
    """Test one package in an environment of its own: `nox -s "tests(nnsight-core)" -- -k rename`."""
    if package != VLLM:
        return run_tests(session, package)
    folder = f"{FOLDERS[VLLM]}/tests"
    run_vllm_tests(session, folder, f"--ignore={folder}/spread", f"--ignore={folder}/v2")


@nox.session(name="tests-vllm-spread")
def tests_vllm_spread(session: nox.Session) -> None:
    """Test models that vLLM spreads over processes: tensor and pipeline parallel, Ray, the asynchronous engine."""
    run_vllm_tests(session, f"{FOLDERS[VLLM]}/tests/spread")


@nox.session(name="tests-vllm-v2")
def tests_vllm_v2(session: nox.Session) -> None:
    """Test vLLM's second model runner: with Triton, in a folder beside the environment of all others, which has none."""
    pins, backend = VLLM_PINS.with_name("requirements-cpu-v2.txt"), f"{FOLDERS[VLLM]}/tests/v2/triton-cpu"
    beside = session.cache_dir.resolve() / f"vllm-v2-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    if not beside.exists():
        made = beside.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        pip = [
            served_by_vllm(session),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--no-deps",
            "--target",
            str(made),
        ]
        session.run(*pip, "--requirement", str(pins), backend, external=True)
        made.rename(beside)
    run_vllm_tests(session, f"{FOLDERS[VLLM]}/tests/v2", env={"PYTHONPATH": str(beside)})


@nox.session
@nox.parametrize("package", [nox.param(package, id=package) for package in PROJECTS if package != VLLM])
def oldest(session: nox.Session, package: str) -> None:
    """Test one package with the oldest versions that it declares to work with, on a Python that has them all (3.11)."""
    constraints = ROOT / session.create_tmp() / "lowest.txt"
    constraints.write_text("\n".join(lowest(package)))
    run_tests(session, package, constraints)


@nox.session
@nox.parametrize("package", [nox.param(package, id=package) for package in ("nnsight-core", "nnsight-remote")])
def fuzz(session: nox.Session, package: str) -> None:
    """Try thousands of bad inputs, others each time, where the tests try a few; `-- 10000` says how many for each."""
    session.install(*pinned(), *with_siblings(package), *group("test", PROJECTS[package]))
    files = sorted(map(str, (ROOT / "packages" / package / "tests").glob("test_*_fuzz.py")))
    cases = session.posargs[0] if session.posargs else "2000"
    session.run("pytest", "--timeout=0", *files, env={**TESTING, "NNSIGHT_FUZZ": cases})


@nox.session(name="tests-integration")
def tests_integration(session: nox.Session) -> None:
    """Test all packages together, with the example distributions beside these tests installed from their wheels."""
    here = ROOT / "tests-integration"
    # Not in the session's own folder for passing things: that lies in the environment, and the tests would get it as theirs.
    # What is to be written to must not lie among the code that blocks on a server may read.
    wheels = session.cache_dir.resolve() / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    for project in sorted(here.glob("*/pyproject.toml")):
        session.run("python", "-m", "pip", "wheel", "--no-deps", "-w", str(wheels), str(project.parent), silent=True)
    examples = [str(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    session.install(*pinned(), *group("integration"), *FOLDERS.values(), *examples)
    # What we send to NDIF is run by what runs there, which is imported as `nnsight` too, and so lives apart.
    peers = {"NNSIGHT_PEER_PYTHON": ("peer", PEER), "NNSIGHT_OLDER_PEER_PYTHON": ("older-peer", OLDER_PEER)}
    pythons = {
        name: environment(session, session.cache_dir.resolve() / place, version, "transformers")
        for name, (place, version) in peers.items()
    }
    session.run("pytest", *spread(session), str(here), *session.posargs, env={**TESTING, **pythons})


@nox.session
def demo(session: nox.Session) -> None:
    """See a language model's insides, offline: the first command of the README."""
    *siblings, package = with_siblings("nnsight-hf")
    session.install(*pinned(), *siblings, f"{package}[demo]")
    session.run("python", "-m", "nnsight_hf.demo", *session.posargs, env=OFFLINE)


@nox.session(name="demo-diffusion")
def demo_diffusion(session: nox.Session) -> None:
    """See how a diffusion model draws, offline."""
    *siblings, package = with_siblings("nnsight-diffusers")
    session.install(*pinned(), *siblings, f"{package}[demo]")
    session.run("python", "-m", "nnsight_diffusers.demo", *session.posargs, env=OFFLINE)


@nox.session
def bench(session: nox.Session) -> None:
    """Time ours, raw hooks and the peer in one run; `nox -s bench -- --others` adds pyvene and TransformerLens."""
    *siblings, package = with_siblings("nnsight-remote")
    families = [folder for family in ("nnsight-hf", "nnsight-diffusers") for folder in with_siblings(family)]
    session.install(*pinned(), *siblings, *families, f"{package}[server]", *group("bench"))
    arguments = [argument for argument in session.posargs if argument != "--others"]
    others = OTHERS if "--others" in session.posargs else []
    # The peer is imported as `nnsight` too, so it lives apart.
    peer = environment(
        session, ROOT / session.create_tmp() / "peer", PEER, "transformers", "diffusers", "accelerate", *others
    )
    if others:
        arguments += ["--others-python", peer]
    session.run("python", "benchmarks/run.py", "--peer-python", peer, *arguments, env=OFFLINE)


@nox.session(name="bench-vllm")
def bench_vllm(session: nox.Session) -> None:
    """Time ours in vLLM beside vLLM's own engine, on the CPU; `-- --rounds 30 --only steered`."""
    python = served_by_vllm(session)
    session.run(python, "benchmarks/vllm/run.py", *session.posargs, env=TESTING, external=True)


@nox.session
def load(session: nox.Session) -> None:
    """Put a server under load: 200 users, 2,000 jobs, and where the time of a remote block goes."""
    *siblings, package = with_siblings("nnsight-remote")
    session.install(*pinned(), *siblings, f"{package}[server]", *group("bench"))
    session.run("python", "benchmarks/load/run.py", *session.posargs, env=TESTING)


@nox.session
def dev(session: nox.Session) -> None:
    """Make .venv for working on everything at once: all packages linked to their folders, and all tools."""
    links = [argument for folder in FOLDERS.values() for argument in ("--editable", folder)]
    tools = {tool for project in PROJECTS.values() for tool in group("test", project)}
    environment(session, ROOT / ".venv", *links, *sorted(tools), *group("lint"), *group("types"))
