"""What was run: data, base, machine, settings, command and strategies of one dataset's seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from evolver.bench.reading import Results, has_seconds, n_asked, n_updates, span, strategies_of, took
from evolver.bench.rules import RULES
from evolver.bench.runner import SETTINGS_THAT_COUNT
from evolver.bench.tables import markdown
from evolver.bench.timeline import FOLDS
from shared.config import Settings

SAID_ELSEWHERE = {"max_train_examples", "train_device"}
"""Settings that the benchmark's own options or the machine's line tell."""
_IN_MINUTES = 180  # up to so many


def about(seeds: Sequence[Results]) -> list[str]:
    """Data, base, command and strategies of one dataset."""
    data, base, arguments, machine = (seeds[0][name] for name in ("data", "base", "arguments", "machine"))
    numbers = ", ".join(str(one["seed"]) for one in seeds)
    origin = f"{base['pretraining_steps']} steps on the past" if base["pretrained_on_the_past"] else "as given"
    lines = [
        f"- Data: {data['users']:,} users, {data['items']:,} items ({data['items_without_title']:,} without a title), "
        f"{data['interactions']:,} interactions from {_day(data['from'])} to {_day(data['until'])} "
        f"({data['interactions_left_out']:,} left out). The past ends on {_day(data['past_until'])}.",
        f"- Base: {base['name'] if not base['pretrained_on_the_past'] else 'made by the benchmark'}, "
        f"{base['parameters'] / 1e6:,.1f} M parameters, {base['layers']} layers, {base['hidden_size']} wide, {origin}.",
        f"- At most {arguments['max_train_examples']:,} training prompts per strategy and {_update(seeds)}, "
        f"{arguments['max_evaluated']:,} users per group and target. Seeds: {numbers}.",
        f"- Users asked in a round: {_asked(seeds)}. The panel is fold {arguments.get('fold', 0)} of 0 to {FOLDS - 1}.",
        f"- Machine: {machine['cores']} cores (threads used: {machine['threads']}) and "
        f"{machine['accelerator'] or 'no accelerator'}. {_clock(seeds)}",
        *_unusual(arguments),
        *_unlike_code(seeds),
        f"- Command: {_command(seeds)}",
        "",
    ]
    said = seeds[0]["strategies"]
    named = [[name, said[name]] for name in strategies_of(seeds)]
    rules = [[*row] for row in RULES.items()]
    lines += markdown(["strategy", "what it does"], named, align="---")
    lines += _left_out(seeds)
    return [*lines, *markdown(["rule", "ranks a candidate by"], rules, align="---")]


def _asked(seeds: Sequence[Results]) -> str:
    return "; ".join(
        f"`{kind}` {', '.join(f'{span(counts)} of {group}' for group, counts in groups.items())}"
        for kind, groups in n_asked(seeds).items()
    )


def _update(seeds: Sequence[Results]) -> str:
    """When a strategy learns."""
    n = n_updates(seeds)
    return "round" if n == 1 else f"update, {n} updates a round from windows {n} times shorter"


def _command(seeds: Sequence[Results]) -> str:
    """The results name no seeds: a command without them makes seed 0."""
    numbers = [int(one["seed"]) for one in seeds]
    if max(numbers) - min(numbers) + 1 == len(numbers):
        calls = [(min(numbers), len(numbers))]
    else:
        calls = [(number, 1) for number in numbers]
    return ", ".join(
        f"`{seeds[0]['command']}{f' --first-seed {first}' if first else ''}{f' --seeds {n}' if n > 1 else ''}`"
        for first, n in calls
    )


def _unlike_code(seeds: Sequence[Results]) -> list[str]:
    """A line on who was made by which code, where it was not the same."""
    of_code: dict[str, dict[str, None]] = {}
    for one in seeds:
        for a_round in one["rounds"]:
            for name in strategies_of(seeds):
                of_code.setdefault(a_round["strategies"][name].get("code", "unknown"), {})[name] = None
    if len(of_code) == 1:
        return []
    said = "; ".join(f"{', '.join(names)} ({code})" for code, names in of_code.items())
    return [f"- Code that learned: {said}. Seconds of unlike code say little beside each other."]


def _unusual(arguments: Mapping[str, Any]) -> list[str]:
    """A line on settings that are not the defaults of the code that makes the report: set so, or older than it."""
    defaults = Settings.model_construct().model_dump(mode="json", include={*SETTINGS_THAT_COUNT} - SAID_ELSEWHERE)
    found = [
        f"{f'{name} {_value(arguments[name])}' if name in arguments else f'no {name}'} ({_value(default)})"
        for name, default in defaults.items()
        if arguments.get(name) != default
    ]
    return [f"- Settings other than today's defaults (in parentheses): {', '.join(found)}."] if found else []


def _value(setting: object) -> str:
    """As one would write it into the environment.

    >>> _value(0.5), _value(["purchase", "cart"])
    ('0.5', 'purchase,cart')
    """
    return ",".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def _left_out(seeds: Sequence[Results]) -> list[str]:
    """A line on strategies that not all seeds have."""
    everyone = strategies_of(seeds)
    names = dict.fromkeys(name for one in seeds for name in one["strategies"] if name not in everyone)
    with_it = {name: ", ".join(str(one["seed"]) for one in seeds if name in one["strategies"]) for name in names}
    said = "; ".join(f"{name} (seeds {numbers})" for name, numbers in with_it.items())
    return [f"Left out, since not all seeds have them: {said}.", ""] if said else []


def _clock(seeds: Sequence[Results]) -> str:
    if not has_seconds(seeds):
        return "Other processes used the accelerator meanwhile, so no seconds are given."
    accelerated = seeds[0]["machine"]["accelerator"]
    learning, asking = (sum(part) / len(seeds) for part in zip(*map(took, seeds), strict=True))
    said = (
        f"Seconds are {'those that pass' if accelerated else 'the processor time of all threads'}. A seed's learning "
        f"took {_long(learning)} of these, asking its versions {_long(asking)} by the clock, over all processes"
    )
    if not all("elapsed_seconds" in one for one in seeds):  # written before it was noted
        return f"{said}."
    elapsed = sum(one["elapsed_seconds"] for one in seeds) / len(seeds)
    return (
        f"{said}; {_long(elapsed)} lie between its beginning and its last step's end, pauses included, making the "
        "base left out."
    )


def _long(seconds: float) -> str:
    """
    >>> _long(471.2), _long(11_000)
    ('8 minutes', '3.1 hours')
    """
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < _IN_MINUTES else f"{minutes / 60:.1f} hours"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
