"""Data never becomes code: what our packages may not call, and a broker with poisoned messages in it."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from celery import Celery
from redis import Redis

from evolver import tasks
from evolver.backend import Backend
from evolver.worker import create_app
from service.engine import engine_arguments
from shared.config import Settings
from shared.evolutions import EVOLVE_TASK, EvolutionStatus
from shared.redis_urls import broker_url, task_queue
from tests.conftest import make_settings
from tests.faults.conftest import Tell
from tests.integration.evolver_support import DOMAIN, WorkerProcess, fill, finished, until

pytest_plugins = ("tests.integration.evolver_fixtures",)

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "service", "evolver", "deploy")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "code"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "pandas.read_pickle"}
# Keyword, or key of a dict of arguments -> the values that are forbidden.
ARGUMENTS = {"trust_remote_code": {True}, "shell": {True}, "allow_pickle": {True}, "weights_only": {False}}
TEXTS = {"pickle", "application/x-python-serialize"}


def dangers(source: str) -> Iterator[str]:
    """What of the above a module does, as `line: what`."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    for node in ast.walk(tree):
        for found in _dangers_of(node, aliases):
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.asname or name.name, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((name.asname or name.name, f"{node.module}.{name.name}") for name in node.names)


def _dangers_of(node: ast.AST, aliases: dict[str, str]) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
            yield f"from {module} import"
        case ast.Call():
            first, _, rest = ast.unparse(node.func).partition(".")
            called = f"{aliases.get(first, first)}{'.' if rest else ''}{rest}"
            if called in CALLS or called.removeprefix("builtins.") in NAMES:
                yield f"{called}()"
        case ast.keyword(arg=str(name), value=ast.Constant(value)) if value in ARGUMENTS.get(name, ()):
            yield f"{name}={value!r}"
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            named = [(each.value, value) for each, value in pairs if isinstance(each, ast.Constant)]
            yield from (f"{name}: {value}" for name, value in _constants(named) if value in ARGUMENTS.get(name, ()))
        case ast.Constant(value=str(text)) if text in TEXTS:
            yield repr(text)


def _constants(pairs: list[tuple[Any, ast.expr]]) -> Iterator[tuple[str, Any]]:
    yield from ((str(name), value.value) for name, value in pairs if isinstance(value, ast.Constant))


PLANTED = [
    "import pickle",
    "from marshal import loads",
    "import shelve as s",
    "import torch\ntorch.load('x')",
    "from torch import load as fetch\nfetch('x')",
    "import torch as t\nt.load('x', weights_only=False)",
    "eval('1')",
    "exec('x = 1')",
    "import builtins\nbuiltins.eval('1')",
    "AutoModel.from_pretrained('x', trust_remote_code=True)",
    "arguments = {'trust_remote_code': True}",
    "import yaml\nyaml.load('x')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import os\nos.system('ls')",
    "import numpy\nnumpy.load('x', allow_pickle=True)",
    "app.conf.update(accept_content=['json', 'pickle'])",
]


def test_our_packages_unpickle_nothing_and_run_nobodys_code(outcome: Tell) -> None:
    for sample in PLANTED:
        assert list(dangers(sample)), f"the check does not see: {sample}"
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = {str(file.relative_to(ROOT)): list(dangers(file.read_text())) for file in files}
    assert {name: what for name, what in found.items() if what} == {}
    outcome(
        6,
        "No module unpickles, evaluates or trusts remote code",
        faults={"planted sample": len(PLANTED)},
        cases=len(files),
    )


def test_every_model_is_loaded_from_safetensors_without_code() -> None:
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                    given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                    assert given.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
                    assert given.get("use_safetensors") == "True", f"{file}:{node.lineno}"
    for on_cpu in (True, False):
        arguments = engine_arguments(make_settings(), on_cpu=on_cpu)
        assert (arguments["trust_remote_code"], arguments["load_format"]) == (False, "safetensors")


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._path,)


def queue_of(settings: Settings) -> Redis:
    """The broker's database."""
    broker = urlsplit(broker_url(settings))
    return Redis(unix_socket_path=broker.path, db=int(parse_qs(broker.query)["virtual_host"][0]))


def plant(settings: Settings, kind: str, crater: Path) -> None:
    """A poisoned message in the worker's queue, as somebody with access to the broker could put it."""
    app = Celery("attacker", broker=broker_url(settings), set_as_current=False)
    queue = task_queue(settings)
    app.conf.update(task_serializer="pickle", accept_content=["pickle"], task_default_queue=queue)
    task = tasks.UPKEEP_TASK if kind == "upkeep of another shape" else EVOLVE_TASK
    app.send_task(task, args=[Bomb(crater), DOMAIN], retry=False)
    app.close()
    if kind == "pickle":
        return
    with queue_of(settings) as client:
        message = json.loads(client.lpop(queue))
        body = base64.b64encode(pickle.dumps(Bomb(crater))).decode()
        if kind == "pickle that says json":
            message |= {"content-type": "application/json", "body": body}
        elif kind == "unknown type":
            message |= {"content-type": "application/x-yaml", "body": base64.b64encode(b"!!python/none").decode()}
        elif kind in ("json of another shape", "upkeep of another shape"):
            message |= {"content-type": "application/json", "body": base64.b64encode(b'{"a": 1}').decode()}
        client.lpush(queue, json.dumps(message))


@pytest.fixture
def craters(tmp_path: Path) -> Path:
    folder = tmp_path / "craters"
    folder.mkdir()
    return folder


async def test_a_poisoned_broker_runs_nothing_and_blocks_nothing(
    backend: Backend,
    worker: WorkerProcess,
    evolver_settings: Settings,
    craters: Path,
    outcome: Tell,
    full: bool,
    rng: random.Random,
) -> None:
    armed = craters / "armed"
    pickle.loads(pickle.dumps(Bomb(armed)))  # noqa: S301 - the bomb works
    assert armed.exists()
    armed.rmdir()
    await fill(backend)
    kinds = ["pickle", "pickle that says json", "unknown type", "json of another shape", "upkeep of another shape"]
    planted = kinds if not full else rng.choices(kinds, k=40)
    for number, kind in enumerate(planted):
        await asyncio.to_thread(plant, evolver_settings, kind, craters / str(number))
    evolution = await backend.evolutions.create(DOMAIN)
    app = create_app(evolver_settings)
    tasks.enqueuer(app)(evolution.id, DOMAIN)
    app.close()
    worker.start()
    assert (await finished(backend, evolution.id, 60)).status is EvolutionStatus.published

    async def emptied() -> bool:
        with queue_of(evolver_settings) as client:
            return not client.llen(task_queue(evolver_settings)) and not client.hlen("unacked")

    await until(emptied, "an empty queue")
    exploded = os.listdir(craters)  # noqa: PTH208
    outcome(
        6,
        "Poisoned broker messages run nothing and hold nothing up",
        faults={f"message: {kind}": planted.count(kind) for kind in kinds if kind in planted},
        cases=len(planted),
        lost=len(exploded),
    )
