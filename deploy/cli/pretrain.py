"""`evorec pretrain`: a small base model from generated stores, or from any catalog's past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.files import parse_date, read_interactions, read_items
from deploy.output import note_console, print_json, result_console, share_progress, show_bad_lines
from shared.allocator import keep_freed_memory
from shared.config import Settings
from shared.errors import InvalidInput
from shared.panel import in_panel

if TYPE_CHECKING:
    from evolver.pretrain.config import PretrainConfig
    from evolver.pretrain.corpus import Corpus

_SMOOTHING = 0.97


def pretrain(
    out: Annotated[
        Path, typer.Option(help="Folder of the base model; a second call with the same data and options goes on")
    ],
    items: Annotated[Path | None, typer.Option(help="items.jsonl[.gz]; without it, generated stores")] = None,
    interactions: Annotated[Path | None, typer.Option(help="interactions.csv[.gz] or .parquet")] = None,
    until: Annotated[str | None, typer.Option(help="ISO date, exclusive: the model sees nothing from here on")] = None,
    stores: Annotated[int, typer.Option(min=1, help="Number of generated stores")] = 60,
    first_seed: Annotated[int, typer.Option(help="Seed of the first generated store")] = 1000,
    scale: Annotated[float, typer.Option(min=0.001, help="Steps as a multiple of the shipped recipe's")] = 1.0,
    hidden_size: Annotated[int, typer.Option(min=96, help="Width, a multiple of 96; the shipped base's is 192")] = 192,
    layers: Annotated[int, typer.Option(min=4, help="Decoder blocks; the shipped base has 10")] = 10,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Base of the same shape whose blocks are the starting point: a fraction of the steps"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and the order of equal timestamps")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for scripts")] = False,
) -> None:
    """Train tokenizer and model from scratch, without a network. Point EVOREC_BASE_MODEL at the result."""
    if (items is None) != (interactions is None):
        raise InvalidInput("--items and --interactions come together, or neither (generated stores)")
    from evolver.pretrain.config import PretrainConfig, scaled, shaped  # torch is slow to import

    config = scaled(PretrainConfig(seed=seed, start_from=None if start_from is None else str(start_from)), scale)
    config = shaped(config, hidden_size=hidden_size, n_layers=layers)
    with note_console().status("Preparing the corpus"):
        if items is not None and interactions is not None:
            corpora = [corpus_of_files(items, interactions, until, seed)]
        else:
            corpora = [_generated(number) for number in range(first_seed, first_seed + stores)]
    measured = _train(corpora, out, config)
    if as_json:
        print_json({"base_model": str(out), "steps": config.total_steps, **measured})
    else:
        result_console().print(
            f"Base model in {out}. Use it with EVOREC_BASE_MODEL={out}", markup=False, soft_wrap=True
        )


def _train(corpora: list[Corpus], out: Path, config: PretrainConfig) -> dict[str, float]:
    """The smoothed parts of the loss at the end."""
    from evolver.device import device_of_run
    from evolver.pretrain.run import pretrain as run

    keep_freed_memory()
    smooth: dict[str, float] = {}
    with share_progress(note_console()) as progress:
        task = progress.add_task("Training", total=config.total_steps)

        def report(step: int, total: int, parts: dict[str, float]) -> None:
            for name, value in parts.items():
                smooth[name] = _SMOOTHING * smooth.get(name, value) + (1 - _SMOOTHING) * value
            text = f"Training: step {step + 1}/{total}, loss {smooth['loss']:.3f}, HR@1 {smooth['hr@1']:.3f}"
            progress.update(task, completed=step + 1, description=text)

        run(corpora, out, config, report, device=device_of_run(Settings().train_device))
    return smooth


def corpus_of_files(items: Path, interactions: Path, until: str | None, seed: int) -> Corpus:
    """What a base may learn from. Raises `InvalidInput` where nobody has two interactions."""
    from evolver.bench.timeline import PANEL_SHARE, learnable
    from evolver.pretrain.corpus import corpus_of

    catalog = read_items(items)
    show_bad_lines(catalog, str(items))
    events = read_interactions(interactions, until=None if until is None else parse_date(until), seed=seed)
    show_bad_lines(events, str(interactions))
    # The panels, the service's and the benchmark's, judge every version later on; their users teach nothing, not even
    # the base. Items that nobody knew by then would leak the future: through the vocabulary, and as candidates that
    # never come true.
    settings = Settings()
    share = max(settings.panel_share, PANEL_SHARE)
    items_by_id = {item.item_id: item for item in catalog.rows}
    positive = learnable(events.rows, items_by_id, settings)
    if left_out := len(events.rows) - len(positive):
        note_console().print(
            f"{left_out:,} interactions are left out: of items that the catalog lacks, of other event types than "
            f"EVOREC_POSITIVE_EVENTS ({', '.join(sorted(settings.positive_events))}), or twice the same",
            markup=False,
        )
    known = {event.item_id for event in positive}
    past = tuple(item for item in items_by_id.values() if item.item_id in known)
    corpus = corpus_of(past, (event for event in positive if not in_panel(event.user_id, share)))
    if not any(len(sequence) > 1 for sequence in corpus.sequences.values()):
        raise InvalidInput(
            f"{interactions} has no user with two interactions with items of {items} before {until or 'its end'}"
        )
    return corpus


def _generated(seed: int) -> Corpus:
    from evolver.pretrain.corpus import corpus_of
    from evolver.stores import make_store

    store = make_store(seed)
    corpus = corpus_of(store.items, (*store.first_period, *store.second_period))
    index = {item.item_id: number for number, item in enumerate(store.items)}
    sequences = {user: (*corpus.sequences.get(user, ()), index[item]) for user, item in store.future.items()}
    return replace(corpus, sequences=sequences)
