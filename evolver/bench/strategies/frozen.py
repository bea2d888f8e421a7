"""`frozen`: nothing is learned."""

from __future__ import annotations

from evolver.bench.added_memory import AddedMemory
from evolver.bench.strategy import Cost, Learned, Strategy, Task
from evolver.bench.version_files import copy_version, load_blend, load_version
from evolver.device import device_of_run
from evolver.locate import Location
from evolver.lora import lora_parameters
from evolver.trunk import decoder_layers


def keep(task: Task) -> Learned:
    """The parent, file for file."""
    copy_version(task.parent, task.out)
    with AddedMemory(device_of_run(task.settings.train_device)) as memory:
        version = load_version(task.out, task.inputs.items, task.settings)
    n_layers = len(decoder_layers(version.model))
    return Learned(
        version=version,
        blend=load_blend(task.out),
        location=Location((), (0,) * n_layers, (1.0,) * n_layers),
        forgotten_interactions=0,
        forgotten_share=0.0,
        consistency=0.0,
        validation_loss=None,
        cost=Cost(
            seconds={},
            examples=0,
            tokens_forward=0,
            tokens_backward=0,
            trainable_parameters=0,
            lora_parameters=sum(parameter.numel() for _, _, parameter in lora_parameters(version.model)),
            added_memory_mib=memory.mib,
        ),
    )


FROZEN = Strategy("frozen", "Nothing is learned: the version of the past, retriever and blend included.", keep)
