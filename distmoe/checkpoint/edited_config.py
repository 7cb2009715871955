"""The configuration of a run that begins with an edited model: the old one's, with what may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmoe.checkpoint.run_files import TOKENIZER
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_edit import TaskEdit
from distmoe.config import build, leaves, merged
from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig

MAY_CHANGE = frozenset(
    {
        "freeze",
        "dropout",
        "attention_dropout",
        "activation_checkpointing",
        "init_std",
        "moe.capacity_factor",
        "moe.deduplicate",
        "moe.kernel",
        "moe.upcycle_noise",
        "moe.gate.init",
        "moe.gate.init_std",
        "moe.gate.noise",
        "moe.gate.noise_eps",
        "moe.gate.detach_input",
        "moe.losses.balance",
        "moe.losses.z",
        "moe.losses.importance",
        "moe.losses.mutual_information",
    }
)
"""Keys of section ``model`` that say how it is trained. All others decide which tensors there are, or what they
compute for the other tasks."""


def config_of_new_run(
    loaded: StoredModel, out: Path, edit: TaskEdit, config: Mapping[str, Any], overlay: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the old configuration with the new tasks, groups and folder; the overlay wins except over these.

    Args:
        loaded: The checkpoint that was edited.
        out: Folder of the new run.
        edit: The change.
        config: The old configuration with what the change alone decides.
        overlay: Values of the new run, by section.

    Raises:
        ConfigError: If the overlay makes another model.
    """
    changed = merged(config, overlay)
    _refuse_another_model(config.get("model", {}), changed.get("model", {}))
    changed.setdefault("tasks", {})["names"] = list(edit.tasks.names)
    # Learning goes on from a state of its own, which does not know the edited tasks; what it has found is kept.
    changed.setdefault("structure", {})["learn"] = None
    moe = changed.get("model", {}).get("moe")
    if moe is not None and edit.grouping.layers:
        assert loaded.model.moe is not None
        if loaded.model.moe.experts_per_task_group is None:
            moe["num_experts"] = edit.num_experts(loaded.model.moe.num_experts, loaded.grouping)
        changed.setdefault("structure", {})["grouping"] = [
            [[edit.tasks[task].name for task in members] for members in partition] for partition in edit.grouping.layers
        ]
    changed.setdefault("data", {})["tokenizer"] = str(out.resolve() / TOKENIZER)
    _set_trained_tasks(changed, edit)
    run = changed.setdefault("run", {})
    run["name"], run["output_dir"] = out.resolve().name, str(out.resolve().parent)
    return changed


def _refuse_another_model(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """The tensors are the old model's: another section ``model`` would describe a model that nobody trained."""
    old, new = leaves(build(ModelConfig, before)), leaves(build(ModelConfig, after))
    absent = object()  # a key of a section that is switched off; the section itself is null then
    wrong = sorted(
        key for key in old.keys() | new.keys() if key not in MAY_CHANGE and old.get(key, absent) != new.get(key, absent)
    )
    if "pretrained" in wrong and None not in (old["pretrained"], new["pretrained"]):
        wrong.remove("pretrained")  # the same folder elsewhere; its weights are not read where a checkpoint is
    known = old.keys() | new.keys()  # a section that is switched off is one key; its own keys would say no more
    wrong = [key for key in wrong if not any(key.startswith(f"{above}.") for above in known)]
    if wrong:
        raise ConfigError(
            "an edited model keeps the shape and the routes of the checkpoint",
            got=", ".join(f"model.{key}={new.get(key, 'a section')}" for key in wrong[:6]),
            expected=", ".join(f"model.{key}={old.get(key, 'a section')}" for key in wrong[:6]),
            remedy="remove these keys from the overrides and the recipe; only how the model is trained may change "
            "(model.freeze, dropout, model.moe.losses, router noise)",
        )


def _set_trained_tasks(config: dict[str, Any], edit: TaskEdit) -> None:
    """With a frozen body, examples of the tasks that were there could change nothing but their own heads and routes."""
    added = [edit.tasks[new].name for new, was in enumerate(edit.task_origin) if was is None]
    sampling = config["data"].setdefault("sampling", {})
    if added and config.get("model", {}).get("freeze") == "body":
        sampling["tasks"] = added
    elif sampling.get("tasks") is not None:
        sampling["tasks"] = [name for name in sampling["tasks"] if name in edit.tasks.names] or None
