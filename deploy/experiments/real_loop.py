"""The loop on a real dataset, with the commands that a user would type; writes the results and the page made of them.

    python -m deploy.experiments.real_loop --data FOLDER --out docs

FOLDER has `items.jsonl.gz` and `interactions.csv.gz`. The past is the first 70 % of the interactions; then the next
7.5 % are ingested, one evolution runs, and a user is asked before and after. The base is made from the past alone;
`--base docs/results/bases/78c228168f558ce0` is such a one, and spares half an hour of pretraining.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.demo.state import free_port
from deploy.local.supervisor import RUN_MODULE
from shared.config import SHIPPED_BASE_MODEL

PAST, WINDOW = 0.70, 0.775
START_S = 300


@dataclass
class Transcript:
    """Every command as typed, with what it printed; `env` holds what differs from the defaults."""

    env: dict[str, str]
    results: dict[str, Any]
    text: list[str] = field(default_factory=list)

    def evorec(self, *arguments: str, save_as: str | None = None) -> None:
        """Run a command; with `save_as`, its JSON becomes a result."""
        shown = " ".join(["evorec", *(Path(a).name if "/" in a else a for a in arguments)])
        print(f"$ {shown}", flush=True)  # noqa: T201
        extra = ["--json"] if save_as else []
        began = time.monotonic()
        done = subprocess.run(
            [*RUN_MODULE, "deploy.cli.main", *arguments, *extra],
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - began
        self.text.append(f"$ {shown}    # {seconds:.0f} s")
        if save_as:
            self.results[save_as] = json.loads(done.stdout)
            self.results["seconds"][save_as] = round(seconds, 1)
        else:
            self.text += done.stdout.rstrip().splitlines()

    def recommend(self, user: str, save_as: str) -> None:
        """Ask over HTTP as a shop would."""
        body = {"domain": self.results["domain"], "user_id": user, "count": 5}
        url = f"http://127.0.0.1:{self.env['EVOREC_PORT']}/recommend"
        data = json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            found = json.load(answer)
        self.results[save_as] = found
        self.text.append(
            f"$ curl -s localhost:8000/recommend -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        )
        self.text += [f"  {item['rank']}. {item['score']:.3f}  {item['title']}" for item in found["items"]]
        self.text.append(f"  answered by {found['adapter']}, degraded: {found['degraded']}")


def main(
    data: Annotated[Path, typer.Option(help="Folder with items.jsonl.gz and interactions.csv.gz")],
    out: Annotated[Path, typer.Option(help="Folder of the page and of results/")] = Path("docs"),
    domain: str = "beauty",
    base: Annotated[Path | None, typer.Option(help="A base made from this past; default: pretrained first")] = None,
    scale: Annotated[float, typer.Option(help="Pretraining steps as a multiple of the shipped recipe's")] = 0.35,
    state: Path = Path(".evorec/real-loop"),
    remark: Annotated[list[str] | None, typer.Option(help="What a reader has to know of this run; shown first")] = None,
) -> None:
    """Pretrain, bootstrap, ingest, evolve, recommend."""
    items, interactions = data / "items.jsonl.gz", data / "interactions.csv.gz"
    past, window, user = _dates(interactions)
    base = (base or state / domain / "base").absolute()
    env = {
        "EVOREC_STATE_DIR": str(state.absolute()),
        "EVOREC_BASE_MODEL": str(base),
        "EVOREC_PORT": str(free_port()),
        "EVOREC_EVOLVE_MIN_INTERACTIONS": str(10**9),
        "EVOREC_EVOLVE_MAX_AGE_S": str(10**9),
    }
    env["EVOREC_URL"] = f"http://127.0.0.1:{env['EVOREC_PORT']}"
    results: dict[str, Any] = {
        "domain": domain,
        "base": base.name,
        "past_until": past,
        "window_until": window,
        "seconds": {},
        "remarks": remark or [],
    }
    run = Transcript(env, results)
    source = ["--items", str(items), "--interactions", str(interactions), "--until", past]
    if not (base / "pretrain.json").exists():
        start = ["--start-from", str(SHIPPED_BASE_MODEL), "--scale", str(scale)]
        run.evorec("pretrain", *source, "--out", str(base), *start, save_as="pretrain")
        results["pretrain"]["base_model"] = base.name  # the folder is this machine's own
    with _up(run):
        run.evorec("bootstrap", "--domain", domain, *source, save_as="bootstrap")
        _wait_for_swap(run, user, "bootstrap")
        run.recommend(user, "recommended_before")
        ingest = ["--domain", domain, str(interactions), "--since", past, "--until", window]
        run.evorec("ingest", *ingest, save_as="ingest")
        run.evorec("evolve", "--domain", domain, "--force", save_as="evolve")
        _wait_for_swap(run, user, "evolve")
        run.recommend(user, "recommended_after")
        run.evorec("adapters")
    (out / "results").mkdir(parents=True, exist_ok=True)
    results["transcript"] = run.text
    (out / "results" / f"{domain}-loop.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{domain}.md").write_text(page(results))


def _dates(interactions: Path) -> tuple[str, str, str]:
    """ISO dates of both quantiles, and the user with most purchases between them (ties: by id)."""
    with gzip.open(interactions, "rt") as file:
        rows = [line.rstrip().split(",") for line in file][1:]
    times = sorted(float(row[2]) for row in rows)
    start, end = (times[int(share * len(times))] for share in (PAST, WINDOW))
    old = {row[0] for row in rows if float(row[2]) < start}
    bought = Counter(row[0] for row in rows if start <= float(row[2]) < end and row[0] in old)
    user = min(bought, key=lambda each: (-bought[each], each))
    past, window = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for t in (start, end))
    return past, window, user


@contextmanager
def _up(run: Transcript) -> Iterator[None]:
    """`evorec up` in the background until it is ready, stopped at the end."""
    state = Path(run.env["EVOREC_STATE_DIR"])
    state.mkdir(parents=True, exist_ok=True)
    for old in ("redis", "artifacts"):
        subprocess.run(["rm", "-rf", str(state / old)], check=True)  # noqa: S607
    run.text.append(f"$ EVOREC_BASE_MODEL={run.results['base']} evorec up &")
    with (state / "up.log").open("wb") as log:
        command = [*RUN_MODULE, "deploy.cli.main", "up"]
        process = subprocess.Popen(command, env={**os.environ, **run.env}, stdout=log, stderr=log)
        try:
            _wait_ready(run, process)
            yield
        finally:
            process.terminate()
            process.wait(timeout=90)


def _wait_ready(run: Transcript, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{run.env['EVOREC_URL']}/health/ready", timeout=5):  # noqa: S310
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"evorec up did not become ready: see {run.env['EVOREC_STATE_DIR']}/up.log")


def _wait_for_swap(run: Transcript, user: str, evolution: str) -> None:
    """Returns once the service answers with what the evolution made; SystemExit where a minute is not enough."""
    for _ in range(60):
        said = len(run.text)
        run.recommend(user, "asked")
        del run.text[said:]
        if run.results.pop("asked")["adapter"] == run.results[evolution]["adapter"]:
            return
        time.sleep(1)
    raise SystemExit(f"the service did not take {run.results[evolution]['adapter']} within a minute")


def page(results: dict[str, Any]) -> str:
    """The Markdown page; every figure comes from the results."""
    evolve, lines = results["evolve"], []
    lines += [f"# The loop on Amazon {results['domain'].capitalize()}", ""]
    lines += ["Generated by `python -m deploy.experiments.real_loop` from"]
    lines += [f"[results/{results['domain']}-loop.json](results/{results['domain']}-loop.json); do not edit.", ""]
    lines += [f"Past: all interactions before {results['past_until']} (70 %). Window: from there to"]
    lines += [f"{results['window_until']} (7.5 %). The base (`{results['base']}`) was pretrained on the past,"]
    lines += ["without the panel.", ""]
    lines += [*(f"- {remark}" for remark in results["remarks"]), ""] if results["remarks"] else []
    lines += ["## Panel metrics", ""]
    for name in ("bootstrap", "evolve"):
        lines += [*metric_table(results[name], name), ""]
    lines += ["## What the evolution did", ""]
    lines += [f"- Located layers: {evolve['located_layers']}; votes per layer: {evolve['layer_votes']}"]
    lines += [f"- Forgotten: {evolve['forgotten_share']:.1%} of the older interactions of active users"]
    gate, seconds = evolve["gate"], results["seconds"]
    lines += [f"- Gate: {'passed' if gate['passed'] else '; '.join(gate['reasons'])}"]
    lines += [f"- Seconds: {', '.join(f'{stage} {taken:,.0f}' for stage, taken in seconds.items())}", ""]
    lines += ["## Transcript", "", "```", *results["transcript"], "```", ""]
    return "\n".join(lines)


def metric_table(evolution: dict[str, Any], name: str) -> list[str]:
    """Metrics of one evolution, before and after, for each group; nothing where nobody was asked."""
    groups = ("U_A", "U_I", "U")
    columns = [f"{group} {when}" for group in groups for when in ("before", "after")]
    rows = [f"| {name} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for metric in evolution["metrics"]["after"]["U"]:
        asked = metric[: metric.rfind(":") + 1] + "n"
        found = [evolution["metrics"][when][group] for group in groups for when in ("before", "after")]
        digits = ".0f" if metric == asked else ".3f"
        shown = [f"{cells[metric]:{digits}}" if cells.get(asked) else "" for cells in found]
        rows.append(f"| {metric} | {' | '.join(shown)} |")
    return rows


if __name__ == "__main__":
    typer.run(main)
